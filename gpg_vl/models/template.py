"""Tests the chat template of a checkpoint in a process with limits before it is used, because it is a program from outside.

A template may loop forever or allocate all memory, and cannot be interrupted in this process. `template_worker` renders a short
conversation of each form that training uses, limited to a few seconds of CPU time and a gigabyte. A template that does not
finish is refused. A template may refuse a kind of conversation, such as one with a system turn; that is an error only for
examples that have one.
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
"""Errors that a template may raise for a conversation: its own refusals, and errors in its expressions."""
PATIENCE = 120.0
"""Time limit for the process. It is longer than its CPU limit `template_worker.SECONDS`, because a busy machine may start
it late."""
ANSWER = "an answer of some words"
"""The assistant's answer in the test."""


def try_template(
    template: str, variables: Mapping[str, str], *, has_vision: bool, where: str
) -> str | None:
    """Render short conversations under limits. Returns the text that the template writes after an answer; None if there is
    none.

    variables: the special tokens by name, as transformers passes them to templates.
    where: the checkpoint, for messages.
    Raises UserError if the template does not finish, allocates too much memory or writes too much text.
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
    """The worker's result. Each template is tested only once per process."""
    given = {
        "template": template,
        "conversations": _conversations(has_vision),
        "variables": dict(variables),
    }
    # -P: do not import from the script's folder, where modules have the same names as library modules
    command = [sys.executable, "-P", str(Path(template_worker.__file__))]
    try:
        ended = subprocess.run(
            command, input=json.dumps(given).encode(), capture_output=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"it did not finish within {PATIENCE:g} s"}

    if ended.returncode < 0:
        limit = f"it computes for more than {template_worker.SECONDS} s, or ends its process"
        return {"failed": f"{limit} (signal {-ended.returncode})"}
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def _conversations(has_vision: bool) -> list[dict[str, Any]]:
    """The forms of prompts: with an image, a system turn, several turns; the last one has an answer."""
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
