"""The chat template of a checkpoint is a program from outside: it is tried in a process with limits before it is trusted.

A template may loop for ever or allocate all memory; nothing in it can be interrupted once it runs in this process. A short
conversation of each shape that training uses is rendered by `template_worker`, which has a few seconds of computing and a
gigabyte. What cannot be tried to its end is refused. A template that refuses a conversation (a system turn, for example) is
no fault here: it says so of the example that has one.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from gpg_vl.errors import UserError
from gpg_vl.models import template_worker

TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
"""What a template may raise about a conversation: its own refusals, and those of the expressions in it."""
PATIENCE = 120.0
"""Seconds for a process that computes at most `template_worker.SECONDS`: a crowded machine may start it late."""
ANSWER = "an answer of some words"
"""What the assistant says in the trial."""


def try_template(
    template: str, variables: Mapping[str, str], *, has_vision: bool, where: str
) -> str | None:
    """Render short conversations under limits. Returns what the template writes behind an answer; None if it writes none.

    variables: the special tokens by their names, as transformers hands them to templates.
    where: the checkpoint, for messages.
    Raises UserError if the template does not come to an end, allocates too much or writes without bound.
    """
    answer = _run(template, tuple(sorted(variables.items())), has_vision)
    if "failed" in answer:
        raise UserError(
            f"The chat template of {where} cannot be used: {answer['failed']}. It was tried on a conversation of a few "
            f"words. Replace chat_template.jinja (or chat_template in tokenizer_config.json or chat_template.json) by that "
            f"of the original checkpoint."
        )

    answered = answer["rendered"][-1].get("text", "")
    _, found, behind = answered.partition(ANSWER)
    return behind if found else None


@lru_cache(maxsize=32)
def _run(template: str, variables: tuple[tuple[str, str], ...], has_vision: bool) -> dict[str, Any]:
    """What the worker says. A template is tried once in a process, whoever loads its checkpoint."""
    given = {
        "template": template,
        "conversations": _conversations(has_vision),
        "variables": dict(variables),
    }
    # -P: the folder of the script holds modules of ours that are called like those of the library
    command = [sys.executable, "-P", str(Path(template_worker.__file__))]
    try:
        ended = subprocess.run(
            command, input=json.dumps(given).encode(), capture_output=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"it was not done after {PATIENCE:g} s"}

    if ended.returncode < 0:
        limit = f"it computes for more than {template_worker.SECONDS} s, or ends its process"
        return {"failed": f"{limit} (signal {-ended.returncode})"}
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def _conversations(has_vision: bool) -> list[dict[str, Any]]:
    """The shapes that prompts have: with a picture, a system turn, several turns; last one that is answered."""
    content: Any = "Which is red?"
    if has_vision:
        content = [{"type": "image"}, {"type": "text", "text": content}]
    system = {"role": "system", "content": "Think first."}
    user = {"role": "user", "content": content}
    answer = {"role": "assistant", "content": ANSWER}

    prompts = [[user], [system, user], [user, answer, user], [system, user, answer, user]]
    rest = {"tools": None, "documents": None}
    asked = [{"messages": turns, "add_generation_prompt": True, **rest} for turns in prompts]
    return [*asked, {"messages": [user, answer], "add_generation_prompt": False, **rest}]
