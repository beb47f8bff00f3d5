"""`gpg-vl try`: the answers that `Model.generate` draws, and what a reward makes of them."""

from pathlib import Path

import pytest
from conftest import scene_example

from gpg_vl.cli import main
from gpg_vl.model import Model

REWARD = '''
def parity(completion, example):
    """Half a point for an odd number of characters, and half for a gold answer that starts with B."""
    return len(completion.text) % 2 / 2 + example.answer.startswith("B") / 2
'''


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, str]:
    example = scene_example(1)
    (tmp_path / "scene.png").write_bytes(bytes(example.images[0]))
    return tmp_path / "scene.png", str(example.prompt)


def test_answers_are_printed_and_scored(
    tiny_checkpoint: Path, scene: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    picture, question = scene
    reward = picture.with_name("parity.py")
    reward.write_text(REWARD)
    words = ["try", str(tiny_checkpoint), str(picture), question, "-n", "3", "--max-new-tokens"]
    answers = Model.load(tiny_checkpoint).generate(picture, question, n=3, max_new_tokens=3)

    assert main([*words, "3"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{number}  " in shown for number in (1, 2, 3))
    assert "[cut off by --max-new-tokens]" in shown

    assert main([*words, "3", "--reward", f"{reward}:parity", "--gold", "B"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.strip()[:1] in ("1", "2", "3")]
    expected = [0.5 + len(answer.text) % 2 / 2 for answer in answers]
    assert [float(row[1]) for row in rows if row[0] in ("1", "2", "3")] == expected
    assert f"mean {sum(expected) / 3:.3f} over 3 answers" in lines[-1]


def test_the_folder_of_a_run_is_its_newest_complete_checkpoint(
    tiny_checkpoint: Path, scene: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 9 has no weights and step 11 is not done; nothing else is said, and no bar of a library is shown."""
    run = scene[0].parent / "run"
    for step in (9, 10, 11):
        model = run / "checkpoints" / f"step-{step:06d}" / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
        if step < 11:
            (model.parent / "state.json").write_text("{}")
    newest = run / "checkpoints" / "step-000010" / "model"
    (newest / "config.json").unlink()
    newest.rmdir()
    newest.symlink_to(tiny_checkpoint)

    said = []
    for model in (tiny_checkpoint, run):
        words = ["try", str(model), str(scene[0]), scene[1], "-n", "2", "--max-new-tokens", "3"]
        assert main(words) == 0
        said.append(capsys.readouterr())
    assert said[0] == said[1]
    assert said[1].err == ""

    (newest.parent / "state.json").unlink()
    (run / "checkpoints" / "step-000009" / "state.json").unlink()
    assert main(["try", str(run), str(scene[0]), scene[1]]) == 2
    assert "has no complete checkpoint yet" in capsys.readouterr().err


def test_a_gold_answer_without_a_reward_is_refused(
    scene: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a model is looked for."""
    assert main(["try", "nowhere", str(scene[0]), scene[1], "--gold", "B"]) == 2
    assert "--gold and --choices are used by a reward" in capsys.readouterr().err
    assert main(["try", "nowhere", str(scene[0]), scene[1], "-n", "0"]) == 2
    assert "-n is 0. Ask for at least 1 answer" in capsys.readouterr().err
