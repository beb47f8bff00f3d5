"""docs/rewards.md: its rewards are loaded, proved on gold answers and declare what the page says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpg_vl.rewards.gold_proof import check_gold
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.worker_output import CALL_LIMIT, POOL_LIMIT
from gpg_vl.rewards.worker_process import START_LIMIT
from gpg_vl.types import Example

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "rewards.md").read_text()


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(code)
    (tmp_path / "a.png").write_text("a picture")
    return tmp_path


def test_the_rewards_of_the_page_pass_their_proof(page: Path) -> None:
    names = ("exact", "in_json", "long_think", "differs", "not_empty")
    weights = {f"{page}/my_rewards.py:{name}": 1.0 for name in names}
    rows = [
        Example(id=str(i), prompt="How many?", answer=answer, images=("a.png",))
        for i, answer in enumerate(("4", 'say "four"'))
    ]
    with RewardPool(weights, workers=1, root=page) as pool:
        assert check_gold(weights, rows, pool=pool) == []
        needing = pool.need_answers()

    assert needing == {f"{page}/my_rewards.py:{name}" for name in ("exact", "in_json", "not_empty")}


def test_the_command_of_the_page_runs(page: Path) -> None:
    (command,) = re.findall(r"`gpg-vl (rewards test \S+ --data \S+)`", PAGE)
    (page / "train.jsonl").write_text(json.dumps({"prompt": "How many?", "answer": "4"}) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "gpg_vl", *command.split()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=page,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 get full marks" in done.stdout


def test_the_limits_of_the_page_are_those_of_the_code() -> None:
    assert f"{CALL_LIMIT:,} characters in one round of a step, {POOL_LIMIT:,} in a run" in PAGE
    assert ("it may take ten minutes" in PAGE) == (START_LIMIT == 600)
