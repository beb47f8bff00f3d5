"""The pages: generated parts are up to date, links lead somewhere, and what README promises has a test."""

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement

from gpg_vl.algorithms import BUILTIN
from gpg_vl.config import load_config
from gpg_vl.config.documentation import documented_keys
from gpg_vl.models.families import families
from gpg_vl.rollout import engines
from gpg_vl.training.sharding import shardings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "eval" / "README.md"])


def load_writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_pages", ROOT / "docs" / "write_pages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["write_pages"] = module
    spec.loader.exec_module(module)
    return module


writer = load_writer()


# ---- what is generated


def test_the_generated_parts_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert writer.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "page, now, before",
    [
        ("config.md", "`train.learning_rate` | `1e-06`", "`train.learning_rate` | `2e-06`"),
        ("architecture.md", "| `gpg_vl/clock.py` |", "| `gpg_vl/watch.py` |"),
    ],
)
def test_a_stale_part_is_found_and_written(page: str, now: str, before: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert now in text
    assert writer.filled(text.replace(now, before)) == text


def test_a_proof_that_no_test_gives_is_not_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that is registered has a row by itself; a claim is "yes" for those whose test names them."""
    proofs = writer.load_proofs()
    made = [proofs.Proof("vLLM", "qwen2_vl", "tests/a.py::test_b")]
    monkeypatch.setattr(proofs, "collect", lambda: made)
    head, _, *rows = writer.families_part("proofs").splitlines()
    cells = {
        row.split("|")[1].strip(" `"): [c.strip() for c in row.split("|")[2:-1]] for row in rows
    }
    assert list(cells) == families.names()
    assert cells["qwen2_vl"] == ["no"] * 12 + ["yes"]
    assert cells["qwen2"].count("-") == head.split("|").count(" token counts ") + 2
    assert "| vLLM | `tests/a.py::test_b` |" in writer.families_part("tests")

    made.append(proofs.Proof("luck", "qwen2_vl", "tests/a.py::test_b"))
    with pytest.raises(ValueError, match=r"claims luck.*Add it to CLAIMS"):
        writer.families_part("proofs")


def test_a_fixture_is_of_the_family_that_it_makes() -> None:
    made = writer.load_proofs().checkpoint_families()
    assert made["tiny_checkpoint"] == "qwen2_vl"
    assert made["tiled_qwen3_checkpoint"] == "internvl", "whatever its text tower"
    assert made["text_checkpoint"] == "qwen2", "by the class of its model"


def test_the_reference_has_every_key_with_its_default() -> None:
    page = (ROOT / "docs" / "config.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| (.+) \|$", page, re.MULTILINE)
    expected = {(key, default.replace("|", "\\|")) for key, default, _ in documented_keys()}
    assert {(key, default) for key, default, _ in rows} == expected
    assert all(meaning.strip() for _, _, meaning in rows)


def test_texts_are_shown_as_they_are() -> None:
    assert writer.prose("a <b> * `<c> *` d") == r"a &lt;b> \* `<c> *` d"
    assert writer.markdown_table(("a", "b"), [("x|y", "z")]).splitlines()[-1] == r"| x\|y | z |"


# ---- links


def targets(text: str) -> list[str]:
    """Where the links and pictures of a Markdown text lead, without those of the web and of code."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [target for target in found if not target.startswith(("http:", "https:", "#"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    """Headings within pages are checked by `make docs`."""
    missing = [
        target
        for target in targets(page.read_text())
        if not (page.parent / target.partition("#")[0]).exists()
    ]
    assert not missing, f"{page} has links to what is not there: {missing}"


def test_links_are_found_in_prose_alone() -> None:
    text = "[a](b.md) ![c](d.png) [e](https://f.org) `[g](h.md)`\n```\n[i](j.md)\n```\n[k](l.md#m)"
    assert targets(text) == ["b.md", "d.png", "l.md#m"]


def test_every_page_is_in_the_contents() -> None:
    index = ROOT / "docs" / "index.md"
    listed = re.findall(r"^- \[[^\]]+\]\(([\w./-]+\.md)\)", index.read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {(index.parent / name).resolve() for name in listed} == set(PAGES) - {index} | set(
        (ROOT / "benchmarks" / "results").glob("*.md")
    )


# ---- README


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_config_of_the_readme_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"^ {4}(model: \{.*\n(?: {4}.+\n)+)", README, re.MULTILINE)
    (tmp_path / "my.yaml").write_text(text.replace("\n    ", "\n"))
    config = load_config(tmp_path / "my.yaml")
    assert config.output.folder == "runs/my_run"
    assert yaml.safe_load((tmp_path / "my.yaml").read_text())["data"] == {"train": "train.jsonl"}


def table_of(heading: str) -> dict[str, dict[str, str]]:
    """The rows of a table of README by the names in their first cell, each as cells by column."""
    (block,) = re.findall(rf"^(\| {heading} \|.*\n(?:\|.*\n)+)", README, re.MULTILINE)
    header, _, *rows = (
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in block.splitlines()
    )
    return {
        name.strip(" `"): dict(zip(header[1:], row[1:], strict=True))
        for row in rows
        for name in row[0].split(",")
    }


SUPPORTED = {
    "model family and engine": (families.names(), engines.names()),
    "model family and sharding": (families.names(), [*shardings.names(), "LoRA"]),
    "algorithm and engine": ([*BUILTIN, "your own"], engines.names()),
}
"""Heading of a table, and what its rows and columns have to be."""


@pytest.mark.parametrize("heading", SUPPORTED)
def test_what_is_supported_is_said_of_everything_there_is(heading: str) -> None:
    rows, columns = SUPPORTED[heading]
    table = table_of(heading)
    assert set(table) == set(rows)
    assert all(set(cells) == set(columns) for cells in table.values())


def test_what_is_supported_has_a_test() -> None:
    """A cell names a test of the list by its number, or says "not yet"; every test of the list is named and is there."""
    tests = dict(re.findall(r"^(\d+)\. `(tests/[\w/]+\.py::test_\w+)`$", README, re.MULTILINE))
    cells = [
        cell for heading in SUPPORTED for row in table_of(heading).values() for cell in row.values()
    ]
    named = [found[1] for cell in cells if (found := re.fullmatch(r"yes \((\d+)\)", cell))]
    assert [cell for cell in cells if not re.fullmatch(r"yes \(\d+\)|not yet", cell)] == []
    assert set(named) == set(tests)

    for name in tests.values():
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in functions, f"README names {name}, which is not there"


# ---- the site


def test_the_site_is_built_from_what_the_extra_names() -> None:
    """`make docs` makes an environment without this package, whose torch it does not need; so it repeats three names."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = [Requirement(line) for line in extra["docs"]]
    (installed,) = re.findall(r"constraints-docs\.txt ([a-z -]+)$", MAKEFILE, re.MULTILINE)
    assert set(installed.split()) == {requirement.name for requirement in declared}

    pinned = dict(
        line.lower().split("==") for line in (ROOT / "constraints-docs.txt").read_text().split()
    )
    assert all(pinned[requirement.name] in requirement.specifier for requirement in declared)
