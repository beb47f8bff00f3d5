"""Converts a given answer into the tokens that a policy would have sampled."""

from gpg_vl.errors import UserError
from gpg_vl.models.load import Processing


def tokens_of_answer(processing: Processing, text: str, who: str) -> tuple[int, ...]:
    """The tokens of `text` and the end of a turn.

    who: for messages, such as "The gold answer of example 7". Raises UserError if the text holds a
    token that is never sampled.
    """
    token_ids = list(processing.tokenizer(text, add_special_tokens=False).input_ids)
    tokens = processing.tokens
    if wrong := set(token_ids) & {*tokens.never_sampled, *tokens.ends}:
        shown = processing.tokenizer.convert_ids_to_tokens(sorted(wrong))
        raise UserError(
            f"{who} holds the control token(s) {', '.join(shown)}, which a policy never samples. "
            f"Remove them from the answer."
        )

    # of all ids that may end an answer, take the one that ends a turn in this checkpoint's chat
    # template
    end = processing.tokenizer.eos_token_id
    return (*token_ids, end if end in tokens.ends else tokens.ends[0])
