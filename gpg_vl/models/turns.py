"""Makes the turns of an example in a prompt style, and checks that the rendered prompt contains what the row says."""

import re
from collections.abc import Iterator, Sequence

from gpg_vl.answers.extract import gold_text
from gpg_vl.answers.options import strip_letters, whole_letter
from gpg_vl.data.prompts import IMAGE_MARK, count_marks, turns_of
from gpg_vl.errors import UserError, cut
from gpg_vl.prompting import CHOICES_PLACE, PROMPT_PLACE, PromptStyle
from gpg_vl.types import Example, Message

# marks that templates of other programs use
_OTHER_PLACE = re.compile(
    r"(?<!\\boxed)(?<!\\text)\{(?:question|problem|query|instruction|input|options?|image|images)\}",
    re.IGNORECASE,
)
_REASONING = "</think>"


def apply_style(example: Example, style: PromptStyle) -> tuple[Message, ...]:
    """The conversation with the style's template on its last user turn, its system turn, and a mark
    for every image. Raises UserError.
    """
    turns = turns_of(example.prompt)
    marks = count_marks(example.prompt)
    if marks not in (0, len(example.images)):
        raise UserError(
            f"Example {example.id}: the prompt has {marks} {IMAGE_MARK} mark(s) for {len(example.images)} image(s). Write one "
            f"mark per image, or none to put the images in front."
        )

    of_user = [i for i, turn in enumerate(turns) if turn.role == "user"]
    if not of_user:
        raise UserError(
            f"Example {example.id}: the prompt has no user turn. Add a message with role 'user'."
        )

    messages = []
    if style.system is not None:
        _refuse_second_system(example.id, turns)
        messages.append(Message(role="system", content=style.system))
    for i, turn in enumerate(turns):
        content = turn.content
        if i == of_user[-1]:
            # insert the prompt last, so that text in it that looks like a mark is not replaced
            template = style.template.replace(CHOICES_PLACE, _list_choices(example.choices or ()))
            content = template.replace(PROMPT_PLACE, content)
        if i == of_user[0] and marks == 0:
            content = IMAGE_MARK * len(example.images) + content
        messages.append(Message(role=turn.role, content=content))

    _refuse_other_marks(example, style, messages)
    return tuple(messages)


def _refuse_second_system(example_id: str, turns: Sequence[Message]) -> None:
    if any(turn.role == "system" for turn in turns):
        raise UserError(
            f"Example {example_id}: the row has a system turn, and prompt.system would be a second one. Only one is "
            f"allowed. Remove prompt.system from the config, or the system turns from the data."
        )


def _refuse_other_marks(example: Example, style: PromptStyle, messages: Sequence[Message]) -> None:
    """Raises UserError if the style or the options add image marks beyond the row's images."""
    marks = sum(message.content.count(IMAGE_MARK) for message in messages)
    if marks == len(example.images):
        return

    texts = {
        "prompt.template": style.template,
        "prompt.system": style.system or "",
        "the choices": " ".join(example.choices or ()),
    }
    sources = [name for name, text in texts.items() if IMAGE_MARK in text]
    raise UserError(
        f"Example {example.id}: the prompt renders {marks} {IMAGE_MARK} mark(s) for {len(example.images)} image(s), because "
        f"{' and '.join(sources) or 'the template'} brings some. The marks of a row's own prompt are allowed; without any, its "
        f"images go in front. Remove {IMAGE_MARK} there."
    )


def _list_choices(choices: Sequence[str]) -> str:
    """`a, b or c`, as SAT's prompts write options."""
    if len(choices) < 2:
        return "".join(choices)
    return " or ".join([", ".join(choices[:-1]), choices[-1]])


def split_content(content: str) -> list[dict[str, str]]:
    """Split a text with image marks into the content parts that chat templates of vision models expect."""
    parts: list[dict[str, str]] = []
    for i, text in enumerate(content.split(IMAGE_MARK)):
        if i:
            parts.append({"type": "image"})
        if text:
            parts.append({"type": "text", "text": text})
    return parts


# ---- what the model reads, and what the row says


def texts_of_row(example: Example) -> Iterator[str]:
    """The texts of the row that may become part of the prompt."""
    yield from (turn.content for turn in turns_of(example.prompt))
    yield from example.choices or ()


def refuse_loss(
    example: Example, messages: Sequence[Message], rendered: str, image_token: str | None
) -> None:
    """Raises UserError unless a rendered chat has the text of every turn, and every image, in order.

    image_token: the text that a template writes for an image; None for a model without a vision tower, which gets marks as
        text.
    """
    at = 0
    for number, message in enumerate(messages, 1):
        # templates of reasoning models leave out the reasoning of earlier turns
        text = message.content
        if message.role == "assistant":
            text = text.rpartition(_REASONING)[2]

        pieces = text.split(IMAGE_MARK) if image_token is not None else [text]
        for place, piece in enumerate(pieces):
            wanted = [piece.strip()] if place == 0 else [image_token or "", piece.strip()]
            for one in wanted:
                found = rendered.find(one, at)
                if found < 0:
                    _raise_loss(example.id, number, message, one)
                at = found + len(one)


def _raise_loss(example_id: str, number: int, message: Message, missing: str) -> None:
    raise UserError(
        f"Example {example_id}: the chat template of the checkpoint leaves out or moves {cut(missing)!r} of turn {number} "
        f"({message.role}). The model must read every turn as it is in the row. Use the checkpoint's original chat "
        f"template, a prompt without such a turn, or prompt.chat: plain."
    )


def notes_on(example: Example, style: PromptStyle) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of notes on unusual properties of the question as the model reads it."""
    asked = turns_of(example.prompt)[-1].content.replace(IMAGE_MARK, "")
    if not asked.strip() and style.template.strip() == PROMPT_PLACE:
        loss_text = "the question is empty, so the model sees only images. Write one, or put it into prompt.template"
        yield "question", loss_text
    if CHOICES_PLACE not in style.template and _names_unseen(example):
        loss_text = (
            "the options are not in its prompt, though the answer is the letter of one. Write them into the question, or "
            f"{CHOICES_PLACE} into prompt.template"
        )
        yield "options", loss_text
    if place := _OTHER_PLACE.search(style.template):
        loss_text = (
            f"prompt.template has {place[0]}, which is not replaced: the marks are {PROMPT_PLACE} and {CHOICES_PLACE}. "
            f"Use these, or rephrase it"
        )
        yield "template", loss_text


def _names_unseen(example: Example) -> bool:
    """True if the answer is an option letter, and the text of some option is not in the prompt."""
    if not example.choices or whole_letter(gold_text(example.answer), len(example.choices)) is None:
        return False
    asked = _words(" ".join(turn.content for turn in turns_of(example.prompt)))
    return not all(_words(option) in asked for option in strip_letters(example.choices))


def _words(text: str) -> str:
    return " ".join(text.casefold().split())
