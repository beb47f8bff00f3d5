"""The settings of generation, and the digests by which a resumed run recognises the answers that it already has."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from gpg_vl.errors import UserError
from gpg_vl.eval.task import Doc, Task, pick
from gpg_vl.prompting import DEFAULT_LIMITS, PixelLimits, PromptStyle
from gpg_vl.rollout import DEFAULT as DEFAULT_ENGINE
from gpg_vl.types import Example, Message

FIXED = {"repetition_penalty": 1.0, "padding_side": None}
"""Settings that results must report although they are fixed here: no repetition penalty, and no padding, because prompts
are packed."""
_REVISION = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """Everything except the model that determines the answers.

    Example: `settings_for(cvbench(), "official", max_new_tokens=64)`
    """

    task: str
    prompt: str
    """Name of the prompt style."""
    style: PromptStyle
    """The prompt style. NOTE: `render` has already applied template and system turn to the example that a responder gets; the
    responder adds the chat template and the prefill."""
    max_new_tokens: int
    """Maximum length of an answer in tokens, including the end token."""
    temperature: float = 0.0
    """0 is greedy. A checkpoint's own generation config is never consulted."""
    top_p: float = 1.0
    """Below 1 only the most likely tokens that together reach this probability are sampled."""
    top_k: int = 0
    """Above 0 only the `top_k` most likely tokens are sampled."""
    repeats: int = 1
    """Answers per doc, for avg@k and pass@k."""
    coordinates: str | None = None
    """How boxes are written in the answers (`gpg_vl.eval.coordinates`); None where a task has none."""
    seed: int = 0
    batch_size: int = 16
    """Prompts that are answered together. It affects only speed and memory, so it is not part of a prediction's key."""
    limits: PixelLimits = DEFAULT_LIMITS
    """The allowed image size. The default is that of training; published runs use other sizes."""
    dtype: str = "float32"
    engine: str = DEFAULT_ENGINE
    servers: tuple[str, ...] = ()
    """Server addresses for an engine outside this process. Not part of a prediction's key, because the weights are
    checked."""

    def __post_init__(self) -> None:
        least = {
            "max_new_tokens": 1,
            "batch_size": 1,
            "temperature": 0,
            "top_k": 0,
            "repeats": 1,
        }
        for name, bound in least.items():
            _refuse_less(name, getattr(self, name), bound)
        _refuse_less("min_pixels", self.limits.min_pixels, 1)
        if not 0 < self.top_p <= 1:
            raise UserError(
                f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 keeps every token)."
            )
        if not self.temperature and (self.top_p < 1 or self.top_k):
            raise UserError(
                f"top_p is {self.top_p} and top_k {self.top_k}, but the temperature is 0: greedy answers are not drawn. "
                "Give a temperature, or leave them out."
            )
        if self.limits.min_pixels > self.limits.max_pixels:
            raise UserError(
                f"min_pixels is {self.limits.min_pixels}, above max_pixels, {self.limits.max_pixels}. "
                "Lower the one or raise the other."
            )

    def record(self) -> dict[str, Any]:
        """All settings by name, on one level, as in results.json."""
        record: dict[str, Any] = {}
        for name, value in asdict(self).items():
            record |= value if isinstance(value, dict) else {name: value}
        return record


def _refuse_less(name: str, value: float, least: int) -> None:
    if value < least:
        raise UserError(f"{name} is {value}; it must be at least {least}.")


def settings_for(task: Task, prompt: str | None = None, **changes: Any) -> EvalSettings:
    """Settings in a prompt style of the task (its default if None), with some fields changed. None changes nothing.

    Raises UserError for an unknown style or a value out of range.
    """
    name = prompt or task.default_prompt
    published = pick(task, "prompt", name, task.prompts)
    settings = EvalSettings(
        task=task.name,
        prompt=name,
        style=published.style,
        max_new_tokens=published.max_new_tokens,
        coordinates=published.coordinates,
    )
    return replace(
        settings, **{field: value for field, value in changes.items() if value is not None}
    )


def render(settings: EvalSettings, doc: Doc) -> Example:
    """The doc's example with the template filled in and the system turn added. Only the chat template is missing."""
    user = Message(role="user", content=render_turn(settings, doc))
    if settings.style.system is None:
        return replace(doc.example, prompt=(user,))
    system = Message(role="system", content=settings.style.system)
    return replace(doc.example, prompt=(system, user))


def render_turn(settings: EvalSettings, doc: Doc) -> str:
    """The text of the user's turn: the template with the doc's prompt, options and letters in it."""
    if not isinstance(doc.example.prompt, str):
        raise TypeError(
            f"Doc {doc.doc_id} has a conversation as its prompt; an eval template is filled with a text."
        )
    choices = doc.example.choices or ()
    fillings = {
        "prompt": doc.example.prompt,
        "question": str(doc.columns.get("question", doc.example.prompt)),
        "choices": ", ".join(choices),
        "options": "\n".join(
            f"{letter}. {text}" for letter, text in zip(ascii_uppercase, choices, strict=False)
        ),
        "letters": ", ".join(ascii_uppercase[: len(choices)]),
        "instruction": str(doc.columns.get("instruction", "")),
    }
    # One pass over the template's own text, so that a question may contain the word {choices}.
    return re.sub(
        r"\{(prompt|question|choices|options|letters|instruction)\}",
        lambda mark: fillings[mark[1]],
        settings.style.template,
    )


def prompt_sha(settings: EvalSettings, example: Example, image_digests: Sequence[str]) -> str:
    """Digest of the model's complete input for a rendered example. 16 hexadecimal digits."""
    turns = [(turn.role, turn.content) for turn in example.prompt if isinstance(turn, Message)]
    style = settings.style
    return _digest([turns, style.chat, style.prefill, list(image_digests)])


def generation_sha(settings: EvalSettings, model_sha: str, sample: int = 0) -> str:
    """Digest of everything else that determines the answer: weights, decoding, resolution. 16 hexadecimal digits.

    `sample` numbers the repeated answers to a doc. The seed, top_p and top_k are included only if answers are sampled.
    """
    drawn = [settings.seed, settings.top_p, settings.top_k] if settings.temperature else None
    return _digest(
        [
            model_sha,
            settings.max_new_tokens,
            settings.temperature,
            drawn,
            settings.limits.min_pixels,
            settings.limits.max_pixels,
            settings.dtype,
            settings.engine,
            sample,
        ]
    )


def model_revision(folder: Path) -> str | None:
    """The hub's commit of a checkpoint in its cache, whose folder is named by it; None for any other folder."""
    real = folder.resolve()
    return real.name if real.parent.name == "snapshots" and _REVISION.fullmatch(real.name) else None


def file_sha(file: Path) -> str:
    """sha256 of a whole file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:16]
