"""The defaults of prompts and pixels: as published, and written once."""

import ast
from dataclasses import asdict
from pathlib import Path

from gpg_vl.prompting import DEFAULT_LIMITS, DEFAULT_STYLE

PACKAGE = Path(__file__).parents[1] / "gpg_vl"
HOME = PACKAGE / "prompting.py"


def test_the_defaults_are_those_that_are_documented() -> None:
    """By hand: 4 tokens of 28 x 28 pixels at least, 512 at most."""
    assert DEFAULT_LIMITS.min_pixels == 4 * 784
    assert DEFAULT_LIMITS.max_pixels == 512 * 784
    assert DEFAULT_LIMITS.max_image_pixels == 50_000_000
    assert asdict(DEFAULT_STYLE) == {
        "template": "{prompt}",
        "system": None,
        "chat": "auto",
        "prefill": "",
    }


def test_no_other_module_writes_the_limits() -> None:
    """A second copy would let training and evaluation see pictures of different sizes one day."""
    numbers = set(asdict(DEFAULT_LIMITS).values())
    wrong = []
    for file in sorted({*PACKAGE.rglob("*.py")} - {HOME}):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Constant(value=int(value)) if value in numbers:
                    wrong.append(f"{file.name}:{node.lineno} writes {value}")
                case ast.BinOp(ast.Constant(value=56), ast.Mult(), ast.Constant(value=56)):
                    wrong.append(f"{file.name}:{node.lineno} writes 56 * 56")
    assert not wrong, "\n".join(wrong)
