"""Gold answers as completions, for algorithms that learn from examples and sample nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpg_vl.errors import UserError
from gpg_vl.models.load import Processing
from gpg_vl.types import Completion, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldResponder:
    """Answers each group with its gold answer alone.

    response: what a gold answer looks like as a completion, with `{answer}` in it.

    Example: `GoldResponder(processing=processing, response="<answer>{answer}</answer>")`
    """

    processing: Processing
    response: str

    @property
    def group_size(self) -> int:
        return 1

    def answer(
        self, groups: Sequence[Group], progress: Callable[[str, int, int], None]
    ) -> list[tuple[Completion, ...]]:
        return [(self._complete(group),) for group in groups]

    def _complete(self, group: Group) -> Completion:
        """The tokens of the response and the end of a turn. Raises UserError if one of them is never to be said."""
        text = self.response.replace("{answer}", group.example.answer)
        token_ids = list(self.processing.tokenizer(text, add_special_tokens=False).input_ids)
        tokens = self.processing.tokens
        if wrong := set(token_ids) & {*tokens.never_sampled, *tokens.ends}:
            shown = self.processing.tokenizer.convert_ids_to_tokens(sorted(wrong))
            raise UserError(
                f"The gold answer of example {group.example.id} holds the control token(s) {', '.join(shown)}, which "
                f"a policy cannot say. Remove them from the answer."
            )
        # the end of a turn in this checkpoint's chats, among all ids that may end an answer
        end = self.processing.tokenizer.eos_token_id
        return Completion(
            token_ids=(*token_ids, end if end in tokens.ends else tokens.ends[0]),
            logprobs=(),
            text=text,
            finish_reason="stop",
            prefill=group.prompt.prefill,
        )
