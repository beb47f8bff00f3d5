"""docs/algorithms.md is carried out: its algorithm is written, configured and tested as the page says."""

import re
from pathlib import Path

import torch
import yaml
from pages import CONSOLE, carry_out, files, write_files
from steps import VARIED, make_batch, token_rows

from gpg_vl.algorithms import BUILTIN
from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.config import load_config, make_algorithm, parse_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "algorithms.md").read_text()


def test_the_page_runs_as_it_is_printed(tmp_path: Path) -> None:
    write_files(PAGE, tmp_path)
    carry_out(PAGE, tmp_path)


def test_the_algorithm_of_the_page_is_made_by_its_config(tmp_path: Path) -> None:
    """By hand: group 2 of VARIED has rewards 0.2, 0.7, 0 and lengths 6, 1, 2: median 0.2; the bound cuts nothing."""
    write_files(PAGE, tmp_path)
    overrides = [f"algorithm.name={tmp_path / 'my_median.py'}:median"]
    config = load_config(tmp_path / "my_run.yaml", overrides)
    credit = make_algorithm(config.algorithm).credit(make_batch(*VARIED))
    weights = [credit.inputs.weight_K[token_rows(VARIED[1]) == row][0].item() for row in (6, 7, 8)]
    expected = [0.0, 0.5 / 1 / 12, -0.2 / 2 / 12]
    assert torch.allclose(torch.tensor(weights), torch.tensor(expected), rtol=1e-6)
    trained = [[True, False, False], [False] * 3, [False, True, True], [False] * 3]
    assert credit.trained_P_G.tolist() == trained


def test_the_first_example_is_a_config() -> None:
    (section,) = (block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[:1])
    least = yaml.safe_load(files(PAGE)["my_run.yaml"])
    config = parse_config({**least, **yaml.safe_load(section)}, "docs/algorithms.md")
    assert (config.algorithm.name, config.algorithm.clip_high) == ("grpo", 0.28)


def test_all_of_the_page_is_looked_at() -> None:
    """Every file is used, every algorithm has its paragraph, and every declaration its line."""
    assert list(files(PAGE)) == ["my_median.py", "my_run.yaml", "my_median_test.py"]
    fences = 1 + len(files(PAGE)) + len(CONSOLE.findall(PAGE))
    assert PAGE.count("\n```") == 2 * fences
    for name in BUILTIN:
        assert f"\n**{name}**, " in PAGE
        assert f"`gpg_vl/algorithms/{name}.py`" in PAGE
    declared = set(Algorithm.__dataclass_fields__) - {"credit", "token_loss"}
    rows = "".join(line for line in PAGE.splitlines() if line.startswith("| `"))
    assert {field for field in declared if f"`{field}" in rows} == declared
