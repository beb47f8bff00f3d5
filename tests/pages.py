"""Pages of the documentation, carried out: files are written, commands run in order, and what they print is compared.

A file is a fenced block under a line that holds its name alone. In a `console` block a line after `$ ` is a command, and
those below it are what it prints: blanks count as one, a line `...` stands for any lines, `...` in a line for any text.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from runs import environment

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"^`([\w.]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    """A command and the lines that it is said to print."""

    command: str
    expected: list[str]


def files(page: str) -> dict[str, str]:
    return dict(FILE.findall(page))


def steps(page: str) -> list[Step]:
    found: list[Step] = []
    for line in "".join(CONSOLE.findall(page)).splitlines():
        if line.startswith("$ "):
            found.append(Step(line.removeprefix("$ "), []))
        else:
            found[-1].expected.append(line)
    return found


def prints(expected: list[str], output: str) -> bool:
    """True if the output is what is expected, or less than that is expected of it where there is `...`."""
    parts = [
        r"(?:[^\n]*\n)*?" if line == "..." else pattern(" ".join(line.split())) + "\n"
        for line in expected
    ]
    text = "".join(f"{' '.join(line.split())}\n" for line in output.splitlines() if line.strip())
    return re.fullmatch("".join(parts), text) is not None


def pattern(line: str) -> str:
    return r"[^\n]*".join(re.escape(part) for part in line.split("..."))


def write_files(page: str, folder: Path) -> None:
    """The page's files, and the programs that it calls."""
    for name, text in files(page).items():
        (folder / name).write_text(text)
    (folder / "bin").mkdir()
    # An installed program does not import from the folder it is started in; -P is that.
    for name, start in {"python": "", "gpg-vl": "-P -m gpg_vl"}.items():
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {start} "$@"\n')
        program.chmod(0o755)


def carry_out(page: str, folder: Path) -> None:
    """Run the page's commands in its order. Fails at the first that fails or prints something else."""
    paths = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for step in steps(page):
        done = subprocess.run(
            step.command,
            shell=True,
            cwd=folder,
            env=environment() | paths,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{step.command}\n{done.stdout}\n{done.stderr}"
        assert prints(step.expected, done.stdout), f"$ {step.command}\n{done.stdout}"
