"""What all processes must have alike, and what is done once for all of a node."""

from pathlib import Path

import pytest
from runs import gpg_vl, launched, warm_launcher, write_config, write_scenes

from gpg_vl.errors import UserError
from gpg_vl.training.rank_consistency import different_settings, refuse_other_data

LIMIT = 180.0
"""Seconds after which a run that should have been refused is taken for one that hangs."""


def test_equal_settings_differ_in_nothing() -> None:
    assert different_settings([{"train": {"seed": 1}}] * 3) == []


def test_each_difference_is_named_once_with_the_first_process_that_has_it() -> None:
    settings = [
        {"train": {"seed": 0, "steps": 4}},
        {"train": {"seed": 0, "steps": 4}},
        {"train": {"seed": 1, "steps": 4}},
        {"train": {"seed": 1, "steps": 5}},
    ]
    assert different_settings(settings) == [
        "train.seed is 0 on process 0 and 1 on process 2",
        "train.steps is 4 on process 0 and 5 on process 3",
    ]


def test_nodes_with_other_data_are_refused() -> None:
    refuse_other_data(["a", "a"], "data.jsonl")
    with pytest.raises(UserError, match=r"data.jsonl is not the same on all nodes: node 2 reads"):
        refuse_other_data(["a", "a", "b", "c"], "data.jsonl")


# ---- the same with processes: each test starts them once


def run(script: str, folder: Path, *words: str, processes: int = 2) -> tuple[int, str]:
    """A script in every process, which may act by its RANK before the program begins."""
    file = folder / "start.py"
    file.write_text(
        f"import os, sys\nRANK = int(os.environ['RANK'])\n{script}\n"
        f"from gpg_vl.cli import main\nsys.exit(main())\n"
    )
    with launched(folder, [*warm_launcher(processes), str(file), *words]) as [launch]:
        code = launch.wait(LIMIT)
        assert not launch.left_behind(30)
    return code, launch.log.read_text()


def messages(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("gpg-vl: ")]


def test_processes_with_other_settings_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint)
    code, log = run(
        "sys.argv.append(f'train.seed={RANK}')", tmp_path, "train", str(config), "--dry-run"
    )
    assert code != 0
    [message] = messages(log)
    assert "different settings: train.seed is 0 on process 0 and 1 on process 1" in message


OWN_NODE = """
os.environ["LOCAL_RANK"] = "0"  # each process takes itself for the first of a node
"""


def test_nodes_with_other_rows_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The same path leads to other files, as on two machines."""
    config = write_config(tmp_path, tiny_checkpoint, data={"train": "train.parquet"})
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        write_scenes(tmp_path / str(rank) / "train.parquet", 12, seed=11 + rank)
    script = f"{OWN_NODE}\nos.chdir({str(tmp_path)!r} + f'/{{RANK}}')"
    code, log = run(script, tmp_path, "train", str(config), "--dry-run")
    assert code != 0
    [message] = messages(log)
    assert "train.parquet is not the same on all nodes: node 1 reads other rows" in message


def test_a_folder_of_each_node_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint, output={"folder": "run"})
    script = (
        f"os.makedirs({str(tmp_path)!r} + f'/{{RANK}}'); os.chdir({str(tmp_path)!r} + f'/{{RANK}}')"
    )
    code, log = run(script, tmp_path, "train", str(config))
    assert code != 0
    [message] = messages(log)
    assert "The run folder run, which process 0 has made on " in message
    assert "is not seen by process 1 (on " in message
    assert "a file system that all nodes share" in message
    assert not list((tmp_path / "0" / "run").glob(".seen-*"))


COUNT = '''
import os
from pathlib import Path


def luck(completion, example):
    """That of the other runs, which notes who has asked for a gold answer."""
    if completion.text.startswith("<think>"):
        with (Path(__file__).parent / f"gold-{os.environ['RANK']}").open("a") as file:
            file.write(f"{example.id}\\n")
        return 1.0
    return sum(map(ord, completion.text)) % 5 / 4
'''
NOTE = """
from gpg_vl.models.encode import Encoder
count = Encoder.count
def noted(self, example, *examined):
    open(f"{FOLDER}/counted-{RANK}", "a").write(f"{example.id}\\n")
    return count(self, example, *examined)
Encoder.count = noted
"""


def test_data_and_gold_answers_are_checked_once_per_node(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Three processes of one node: the first looks at all of the twelve rows, the others at none."""
    config = write_config(tmp_path, tiny_checkpoint, train={"prompts_per_step": 3})
    (tmp_path / "luck.py").write_text(COUNT)
    script = f"FOLDER = {str(tmp_path)!r}\n{NOTE}"
    code, log = run(script, tmp_path, "train", str(config), "--dry-run", processes=3)
    assert code == 0, log
    for what in ("gold", "counted"):
        assert [file.name for file in tmp_path.glob(f"{what}-*")] == [f"{what}-0"]
        assert len((tmp_path / f"{what}-0").read_text().split()) == 12


def test_what_is_wrong_with_the_data_of_one_node_is_said_once(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The second node has a row too long; both end, with the words of the second."""
    config = write_config(tmp_path, tiny_checkpoint)
    script = f"""{OWN_NODE}
if RANK == 1:
    from gpg_vl.errors import UserError
    from gpg_vl.training import prepare
    def broken(*_, **__):
        raise UserError("Row 7 is broken here.")
    prepare.check_once = broken
"""
    code, log = run(script, tmp_path, "train", str(config), "--dry-run")
    assert code != 0
    assert messages(log) == ["gpg-vl: Row 7 is broken here."]


def test_one_process_needs_no_agreement(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = gpg_vl("train", write_config(tmp_path, tiny_checkpoint, train={"steps": 1}))
    assert result.returncode == 0, result.stderr
    assert not list((tmp_path / "run").glob(".seen-*"))
