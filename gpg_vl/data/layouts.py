"""Reads prompt and gold answer from the row layouts of other programs.

ms-swift and LLaMA-Factory have conversations whose last turn may be the gold answer, with turns of `role` and `content` or of
`from` and `value`; LLaMA-Factory has `instruction`, `input` and `output` too, ms-swift `query` and `response`, verl
`reward_model.ground_truth`, VLM-R1 `conversations`. Pure functions of names and cells; ambiguous rows are refused.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gpg_vl.data.cells import CellError, quote

CONVERSATIONS = ("messages", "conversations")
"""Columns of conversations, whose last turn may be the gold answer."""
_PAIRS: Mapping[str, str] = {"instruction": "output", "query": "response"}
"""Question columns and their answer columns."""
PROMPT_NAMES = (*CONVERSATIONS, *_PAIRS)
ANSWER_STRUCT, ANSWER_KEY = "reward_model", "ground_truth"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""The `role` for each value of `from` in turns of `from` and `value`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The prompt of a row, and the gold answer if it is the last turn."""

    prompt: object
    """A cell that `prompts.parse_prompt` reads."""
    last_turn: object = None


def columns_of_layout(
    available: Collection[str], mapping: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The columns of fields that are not in `mapping`, by the names that other programs use; and the candidate columns for
    the prompt if there are several.
    """
    found: dict[str, str] = {}
    # a conversation may be declared as the answer column too
    others = {column for field, column in mapping.items() if field != "answer"}
    taken = others | {mapping.get("answer", "")} - set(CONVERSATIONS)
    prompts = [name for name in PROMPT_NAMES if name in available and name not in taken]
    if "prompt" not in mapping and len(prompts) > 1:
        return {}, prompts
    if "prompt" not in mapping and prompts:
        found["prompt"] = prompts[0]

    prompt = mapping.get("prompt") or found.get("prompt", "")
    if prompt in PROMPT_NAMES and "system" not in mapping and "system" in available:
        found["system"] = "system"
    if "answer" not in mapping and (answer := _answer_column(prompt, available)):
        found["answer"] = answer
    return found, []


def _answer_column(prompt: str, available: Collection[str]) -> str | None:
    if ANSWER_STRUCT in available:
        return f"{ANSWER_STRUCT}.{ANSWER_KEY}"
    if _PAIRS.get(prompt, "") in available:
        return _PAIRS[prompt]
    return prompt if prompt in CONVERSATIONS else None


def read_asked(
    cell: object,
    cells: Mapping[str, Any],
    mapping: Mapping[str, str],
    *,
    system: object,
    answers: bool,
) -> Asked:
    """The prompt of a row, from the cell of its column and the other columns of the layout.

    cell, system: the cells of the prompt and of its system turn. answers: whether the row needs a gold answer.
    Raises CellError.
    """
    column = mapping["prompt"]
    turns = _name_roles(cell) if isinstance(cell, list) else None
    last_turn: object = None
    if mapping.get("answer") == column and (answers or _is_answered(turns)):
        turns, last_turn = _take_last_turn(turns, cell)
    prompt: object = cell if turns is None else turns
    if column in _PAIRS:
        prompt = _join_parts(prompt, column, cells)
    if system:
        prompt = [{"role": "system", "content": system}, *_as_turns(prompt)]
    return Asked(prompt=prompt, last_turn=last_turn)


def _name_roles(turns: list[object]) -> list[object]:
    """Convert turns of `from` and `value` to turns of `role` and `content`; others are not changed."""
    return [_name_role(turn, f"Message {n} of {len(turns)}") for n, turn in enumerate(turns, 1)]


def _name_role(turn: object, name: str) -> object:
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys() or "role" in turn:
        return turn
    role = _ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        raise CellError(
            "prompt",
            f"{name} is from {quote(turn['from'])}. Turns from {', '.join(_ROLES)} are allowed. Rename it, or remove the row.",
        )
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {**rest, "role": role, "content": turn["value"]}


def _is_answered(turns: list[object] | None) -> bool:
    last = turns[-1] if turns else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def _take_last_turn(turns: list[object] | None, cell: object) -> tuple[list[object], object]:
    """The turns before the last one, and its text, which is the gold answer."""
    last = turns[-1] if turns else None
    if turns is None or not isinstance(last, dict) or last.get("role") != "assistant":
        raise CellError(
            "answer",
            f"The answer is to be the last turn of a conversation, and the row has {quote(cell)}. A conversation whose last "
            f"turn is the assistant's is allowed. Add that turn, or declare the column of the answer: columns: {{answer: "
            f"<column>}}.",
        )
    content = last.get("content")
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = content[0].get("text")
    return turns[:-1], content


def _join_parts(prompt: object, column: str, cells: Mapping[str, Any]) -> object:
    """Join a question with its `input` text, after the turns of `history`."""
    more = cells.get("input") if column == "instruction" else None
    if isinstance(more, str) and more and isinstance(prompt, str):
        prompt = f"{prompt}\n{more}" if prompt else more
    elif more:
        raise CellError(
            "prompt",
            f"The column 'input' is {quote(more)}. A text that follows the instruction, or null, is allowed. Write it as text.",
        )

    history = cells.get("history")
    if not history:
        return prompt
    if not isinstance(history, list) or not all(
        isinstance(turn, list) and len(turn) == 2 for turn in history
    ):
        raise CellError(
            "prompt",
            f"The history is {quote(history)}. A list of pairs of a question and its answer is allowed. Write it so, or "
            f"remove the column.",
        )
    earlier = [
        {"role": role, "content": text}
        for turn in history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return [*earlier, *_as_turns(prompt)]


def _as_turns(prompt: object) -> list[object]:
    return prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
