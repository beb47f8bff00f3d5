"""Gold answers as completions, for algorithms that train on examples and do not sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gpg_vl.answers.box_text import answer_as_stated
from gpg_vl.models.answer_tokens import tokens_of_answer
from gpg_vl.models.load import Processing
from gpg_vl.types import Completion, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldResponder:
    """Answers each group with only its gold answer.

    response: the form of a gold answer as a completion, with `{answer}` in it.

    Example: `GoldResponder(processing=processing, response="<answer>{answer}</answer>")`
    """

    processing: Processing
    response: str

    @property
    def group_size(self) -> int:
        return 1

    def answer(
        self, groups: Sequence[Group], progress: Callable[[str, int, int], None]
    ) -> list[Group]:
        return [replace(group, completions=(self._complete(group),)) for group in groups]

    def _complete(self, group: Group) -> Completion:
        """The tokens of the response and the end of a turn. Raises UserError if a
        token must not be generated."""
        answer = answer_as_stated(group.example, whole=True)
        text = self.response.replace("{answer}", answer)
        who = f"The gold answer of example {group.example.id}"
        token_ids = tokens_of_answer(self.processing, text, who)
        return Completion(token_ids=token_ids, text=text, prefill=group.prompt.prefill)
