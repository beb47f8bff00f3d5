"""The process that tests a chat template: it sets limits, then imports jinja2, and no slow library.

`gpg_vl.models.template` runs it as a script; it imports nothing from this package. Standard input: a JSON object with
`template`, `conversations` and `variables`; standard output: `{"rendered": [{"text": ...} or {"error": ...}, ...]}`, or
`{"failed": ...}` for a template that exceeds a limit. If it takes too long, the system ends the process.
"""

import json
import resource
import sys
from datetime import datetime
from typing import Any

MEMORY = 2**30
"""Limit of the address space in bytes, of which Python and jinja2 need a tenth."""
SECONDS = 3
"""CPU time limit; a normal template takes milliseconds."""
LONGEST = 1_000_000
"""Maximum characters of a rendered conversation of a few words."""


def main() -> None:
    given = json.load(sys.stdin)
    limit_resources()
    answer: dict[str, Any]
    try:
        answer = {"rendered": render_all(**given)}
    except MemoryError:
        answer = {"failed": f"it asks for more than {MEMORY // 2**20} MiB"}
    except OverflowError as error:
        answer = {"failed": str(error)}
    json.dump(answer, sys.stdout)


def limit_resources() -> None:
    """Set the limits of this process, which ends after the test."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def render_all(
    template: str, conversations: list[dict[str, Any]], variables: dict[str, Any]
) -> list[dict[str, str]]:
    """The text of each conversation, or why the template refuses it. Raises OverflowError for one that is too long."""
    return [_render(template, {**variables, **conversation}) for conversation in conversations]


def _render(template: str, names: dict[str, Any]) -> dict[str, str]:
    # jinja2 evaluates constants during compilation, so compiling is part of the test
    try:
        text = make_environment().from_string(template).render(**names)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  a template may raise anything, and what it raised is reported
        return {"error": f"{type(error).__name__}: {error}"[:500]}

    if len(text) > LONGEST:
        raise OverflowError(f"it makes {len(text)} characters of a few words")
    return {"text": text}


def make_environment() -> Any:
    """The jinja2 environment that transformers uses for chat templates."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _generation() -> Any:
    """The extension of `{% generation %}`, a block that marks answers and writes what is in it."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return Generation


def _raise(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


if __name__ == "__main__":
    main()
