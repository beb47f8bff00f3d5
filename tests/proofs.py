"""What the tests prove of each model family, by the mark `proves`: from which docs/write_pages.py writes its table.

    @pytest.mark.proves("gradients")                   of the families that the test's parameters name
    @pytest.mark.proves("{sharding}")                  the value of a parameter
    @pytest.mark.proves("fsdp2", family="qwen2_vl")    of a family that they do not name

A parameter names a family by its `model_type` or by the fixture of its checkpoint in conftest.py; a test without such a
parameter is of the checkpoints that it takes. As a plugin of pytest this module writes what was collected to `PROOFS_FILE`.
"""

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gpg_vl.models.families import families

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests"
FILE = "PROOFS_FILE"
"""The environment variable with the path of the file to write."""
MARK = "mark.proves("


class Proof(NamedTuple):
    """One case of a test that is marked.

    Example: `Proof("gradients", "qwen2_vl", "tests/test_policy.py::test_every_way_of_computing...")`
    """

    claim: str
    family: str
    test: str


@cache
def collect() -> tuple[Proof, ...]:
    """The proofs in all test files that have marked tests, collected by pytest without running one. Raises RuntimeError."""
    files = [
        file
        for file in sorted(FOLDER.rglob("test_*.py"))
        if MARK in file.read_text(encoding="utf-8")
    ]
    with tempfile.TemporaryDirectory(prefix="gpg_vl-proofs-") as folder:
        found = Path(folder) / "proofs.json"
        # two calls: a plugin of the tests with vLLM may only be asked for in the folder that a call begins with
        proofs: list[Proof] = []
        for folder_files in _by_folder(files):
            words = ["-n", "0", "-o", "addopts=", "-q", "--collect-only", "-p", "proofs"]
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *words, *map(str, folder_files)],
                env={**os.environ, FILE: str(found), "PYTHONPATH": _path()},
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"The tests cannot be collected:\n{done.stdout}\n{done.stderr}")
            proofs += [Proof(*one) for one in json.loads(found.read_text(encoding="utf-8"))]
    return tuple(dict.fromkeys(proofs))


def _by_folder(files: Sequence[Path]) -> list[list[Path]]:
    return [
        [f for f in files if f.parent == folder] for folder in sorted({f.parent for f in files})
    ]


def _path() -> str:
    return os.pathsep.join([str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")])


# ---- as a plugin


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write the proofs of the collected tests."""
    if FILE not in os.environ:
        return
    found = dict.fromkeys(proof for item in session.items for proof in proofs_of(item))
    Path(os.environ[FILE]).write_text(json.dumps(list(found)), encoding="utf-8")


def proofs_of(item: Any) -> Iterator[Proof]:
    """The proofs of one case of a test; none of a case that is skipped."""
    if any(item.iter_markers("skip")):
        return
    params = item.callspec.params if hasattr(item, "callspec") else {}
    test = item.nodeid.split("[")[0]
    for mark in item.iter_markers("proves"):
        named = [mark.kwargs["family"]] if mark.kwargs else list(families_of(item, params))
        assert named, f"{test} is marked as a proof, and names no family: proves(..., family=...)"
        for claim in mark.args:
            yield from (Proof(claim.format(**params), family, test) for family in named)


def families_of(item: Any, params: dict[str, Any]) -> Iterator[str]:
    """The families that a case is of."""
    by_fixture, known = checkpoint_families(), families.names()
    words = [value for value in params.values() if isinstance(value, str)]
    of_params = [by_fixture.get(word, word) for word in words]
    named = [family for family in of_params if family in known]
    yield from named or [
        by_fixture[name] for name in item._fixtureinfo.argnames if name in by_fixture
    ]


@cache
def checkpoint_families() -> dict[str, str]:
    """By the name of a fixture in conftest.py: the family of the checkpoint that it makes."""
    tree = ast.parse((FOLDER / "conftest.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {one.name: family for one in functions if (family := _made_in(one)) is not None}


def _made_in(function: ast.FunctionDef) -> str | None:
    """The family that a fixture names: by its model type, or by the class of its model."""
    classes = {families.get(name).model_class: name for name in families.names()}
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_checkpoint":
            return next(
                (
                    a.value
                    for a in node.args
                    if isinstance(a, ast.Constant) and isinstance(a.value, str)
                ),
                None,
            )
        if isinstance(node, ast.Name) and node.id in classes:
            return classes[node.id]
    return None
