"""docs/training.md: its Python runs as it stands, on a checkpoint that is there."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "training.md"


def test_the_python_of_the_page_runs(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert '"runs/quickstart/base"' in code
    names: dict[str, object] = {}
    exec(code.replace("runs/quickstart/base", str(tiny_checkpoint)), names)

    answers = names["answers"]
    assert isinstance(answers, tuple)
    assert len(answers) == 4
    assert "<|vision_start|>" in capsys.readouterr().out
