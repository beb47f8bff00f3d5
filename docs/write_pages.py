"""The generated parts of the pages: the keys of the config, the files of each folder, what is proved of each model family.

    python docs/write_pages.py            # write them between their markers
    python docs/write_pages.py --check    # exit code 1 if one of them is not up to date

In docs/config.md the markers are <!-- config:SECTION --> and <!-- /config:SECTION -->, in docs/architecture.md
<!-- files:FOLDER --> and <!-- /files:FOLDER -->, in docs/families.md <!-- families:proofs --> and <!-- families:tests -->. What
stands outside of markers is written by hand.
"""

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from gpg_vl.config import Config
from gpg_vl.config.algorithm_sections import BUILTIN_SECTIONS, AlgorithmConfig, SampledConfig
from gpg_vl.config.declaration import Section
from gpg_vl.config.documentation import allowed_values, documented_keys
from gpg_vl.models.families import families

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- (config|files|families):(\S+) -->\n.*?<!-- /\1:\2 -->", re.DOTALL)


# ---- config


def sections() -> dict[str, tuple[str, type[Section]]]:
    """Prefix of the keys and declaration of each section; an algorithm's is called `algorithm.NAME`, and what all that
    sample have `algorithm.sampled`."""
    found: dict[str, tuple[str, type[Section]]] = {}
    for name, field in Config.model_fields.items():
        if name != "algorithm":
            assert isinstance(field.annotation, type), name
            assert issubclass(field.annotation, Section), name
            found[name] = (name, field.annotation)
            continue
        found[name] = (name, AlgorithmConfig)
        found[f"{name}.sampled"] = (name, SampledConfig)
        found |= {f"{name}.{own}": (name, kind) for own, kind in BUILTIN_SECTIONS.items()}
    return found


def config_table(name: str) -> str:
    """What a section is for, and a table of its keys with default, meaning and choices."""
    prefix, section = sections()[name]
    rows = []
    for key, default, text in documented_keys(section, f"{prefix}."):
        if key == "algorithm.name" and section is not AlgorithmConfig:
            continue  # said once, in the section of all algorithms
        choices = allowed_values(key)
        more = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
        rows.append((f"`{key}`", f"`{default}`", prose(text) + more))
    about = prose(" ".join((section.__doc__ or "").split()))
    return f"{about}\n\n" + markdown_table(("key", "default", "meaning"), rows)


# ---- files


def files_table(folder: str) -> str:
    """A row for each Python file in a folder and its subfolders, with the first sentence of its docstring.

    folder: `gpg_vl/data`; with `/.` behind it the files of the folder alone. A package's `__init__.py` is shown as its
    folder; a file without a docstring is left out.
    """
    path = ROOT / folder.removesuffix("/.")
    found = path.glob("*.py") if folder.endswith("/.") else path.rglob("*.py")
    rows = [(f"`{shown(file)}`", prose(text)) for file in sorted(found) if (text := about(file))]
    return markdown_table(("file", "what it is for"), rows)


def shown(file: Path) -> str:
    name = file.relative_to(ROOT).as_posix()
    return name.removesuffix("__init__.py")


def about(file: Path) -> str:
    """The first sentence of a module's docstring, "" if there is none."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s+(?=[A-Z`])", paragraph)[0]


# ---- families

CLAIMS = {
    "log-probs": True,
    "gradients": True,
    "isolation": True,
    "positions": True,
    "token counts": False,
    "several images": False,
    "text-only": True,
    "LoRA": True,
    "frozen tower": False,
    "fsdp2": True,
    "zero2": True,
    "zero3": True,
    "vLLM": True,
}
"""What tests prove of a family, in the order of the table; False: only of one that sees images."""


def families_part(part: str) -> str:
    """`proofs`: a row for each family with what the tests prove of it. `tests`: a row for each claim with its tests."""
    proofs = load_proofs().collect()
    unknown = sorted({one.claim for one in proofs} - CLAIMS.keys())
    if unknown:
        raise ValueError(
            f"The mark proves(...) claims {', '.join(unknown)}; docs/write_pages.py knows {', '.join(CLAIMS)}. Add it to CLAIMS."
        )
    if part == "tests":
        rows = []
        for claim in CLAIMS:
            tests = dict.fromkeys(one.test for one in proofs if one.claim == claim)
            rows.append((claim, "<br>".join(f"`{test}`" for test in tests)))
        return markdown_table(("claim", "tests"), rows)

    proved = {(one.family, one.claim) for one in proofs}
    return markdown_table(
        ("model type", *CLAIMS),
        [
            (f"`{name}`", *(_proved((name, claim) in proved, name, claim) for claim in CLAIMS))
            for name in families.names()
        ],
    )


def _proved(is_proved: bool, family: str, claim: str) -> str:
    if is_proved:
        return "yes"
    return "no" if CLAIMS[claim] or families.get(family).has_vision else "-"


def load_proofs() -> ModuleType:
    """tests/proofs.py, which collects the marked tests."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.append(str(ROOT / "tests"))
    return import_module("proofs")


# ---- Markdown


def prose(text: str) -> str:
    """A text as Markdown that shows it as it is: outside of `code` no tag is a tag, and no star a mark."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;").replace("*", r"\*")
        for part in parts
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


WRITERS: dict[str, Callable[[str], str]] = {
    "config": config_table,
    "files": files_table,
    "families": families_part,
}


def filled(text: str) -> str:
    """The text with what belongs between its markers."""

    def block(found: re.Match[str]) -> str:
        kind, name = found.groups()
        marker = f"{kind}:{name}"
        return f"<!-- {marker} -->\n{WRITERS[kind](name)}\n<!-- /{marker} -->"

    return BLOCK.sub(block, text)


def pages() -> Iterator[Path]:
    yield from (ROOT / "docs" / name for name in ("config.md", "architecture.md", "families.md"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args(argv)

    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text and arguments.check:
            stale.append(page.relative_to(ROOT).as_posix())
        elif new != text:
            page.write_text(new, encoding="utf-8")
    if stale:
        print(
            f"{', '.join(stale)}: not up to date. Run: python docs/write_pages.py", file=sys.stderr
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
