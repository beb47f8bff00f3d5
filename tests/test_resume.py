"""A run goes on from a checkpoint that is whole and its own, or says why not."""

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from runs import REWARD, gpg_vl, metrics
from test_train import equal, last_checkpoint, weights

from gpg_vl.config import load_config
from gpg_vl.errors import UserError
from gpg_vl.quickstart import scenes
from gpg_vl.training.identity import Identity, make_identity
from gpg_vl.training.prepare import Prepared, prepare
from gpg_vl.training.resume import cut_metrics, find_start


def write_run(folder: Path, checkpoint: Path, **sections: dict[str, Any]) -> Path:
    """A config of four steps whose paths are relative to its folder, with pictures in files."""
    (folder / "img").mkdir(parents=True)
    rows = []
    for number, row in enumerate(scenes.rows(11, 6)):
        (folder / "img" / f"{number}.png").write_bytes(row["image"]["bytes"])
        rows.append(
            {
                "id": str(number),
                "images": [f"img/{number}.png"],
                "prompt": row["prompt"],
                "answer": row["answer"],
                "choices": list(row["choices"]),
                "source": "drawn",
            }
        )
    write_rows(folder, rows)
    (folder / "luck.py").write_text(REWARD)
    tree: dict[str, dict[str, Any]] = {
        "model": {"path": str(checkpoint)},
        "data": {"train": "rows.jsonl"},
        "rollout": {"group_size": 3, "max_new_tokens": 4},
        "rewards": {"weights": {"luck.py:luck": 1.0}},
        "train": {"prompts_per_step": 2, "steps": 4, "learning_rate": 1e-3, "tokens_per_pass": 200},
        "output": {"folder": "run", "checkpoint_every": 1, "samples_every": 2},
    }
    for name, keys in sections.items():
        tree[name] = {**tree.get(name, {}), **keys}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "config.yaml"


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def repaint(file: Path) -> None:
    """Another picture of the same size under the same name."""
    with Image.open(file) as picture:
        size = picture.size
    Image.new("RGB", size, "orange").save(file)


def flip_bit(file: Path, place: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * place)] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def stopped(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps that was ended after the second."""
    folder = tmp_path_factory.mktemp("stopped")
    write_run(folder, tiny_checkpoint)
    result = gpg_vl("train", "config.yaml", "train.steps=2", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def known(stopped: Path) -> tuple[Prepared, Identity]:
    """The run as it was started: for tests that change neither its data nor its settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stopped)
        ready = prepared()
        return ready, identify(ready)


@pytest.fixture
def copy(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One to damage, and the folder that the test is in."""
    folder = tmp_path / "copy"
    shutil.copytree(stopped, folder)
    monkeypatch.chdir(folder)
    return folder


def resume(folder: Path, *overrides: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    return gpg_vl("train", "config.yaml", *overrides, "--resume", cwd=folder, processes=processes)


def prepared(*overrides: str) -> Prepared:
    config = load_config("config.yaml", overrides)
    return prepare(config, processes=1, console=None)


def identify(ready: Prepared) -> Identity:
    return make_identity(ready.config, ready.algorithm, ready.rows, ready.plan.steps)


def look(
    *overrides: str,
    known: tuple[Prepared, Identity] | None = None,
    said: io.StringIO | None = None,
) -> Any:
    """What `--resume` does before it loads weights, in this process and the folder of the test."""
    if known is None:
        ready = prepared(*overrides)
        known = ready, identify(ready)
    ready, identity = known
    console = Console(file=said or io.StringIO(), width=1000)
    folder = Path(ready.config.output.folder)
    return find_start(folder, identity, ready.examples, Accelerator(cpu=True), console)


# ---- goes on


def test_what_was_stopped_goes_on_bit_for_bit(
    stopped: Path, copy: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    result = resume(copy)
    assert result.returncode == 0, result.stderr
    whole = tmp_path / "whole"
    write_run(whole, tiny_checkpoint)
    assert gpg_vl("train", "config.yaml", cwd=whole).returncode == 0
    assert metrics(copy / "run") == metrics(whole / "run")
    ours, theirs = last_checkpoint(copy / "run"), last_checkpoint(whole / "run")
    assert equal(weights(ours), weights(theirs))
    assert json.loads((ours / "manifest.json").read_text())["files"].keys() >= {
        "state.json",
        "rank-0.pt",
        "optimizer.pt",
        "data.digests",
        "model/model.safetensors",
        "model/config.json",
    }


def test_what_may_change_may(copy: Path) -> None:
    start = look(
        "train.steps=9",
        "train.tokens_per_pass=100",
        "model.gradient_checkpointing=true",
        "output.checkpoint_every=0",
        "output.keep_checkpoints=1",
        "rollout.slots=3",
        "rollout.servers=[http://127.0.0.1:1]",
        "rollout.vllm_memory=0.2",
        "rewards.workers=2",
    )
    assert start.checkpoint == Path("run/checkpoints/step-000002")


def test_a_changed_reward_is_said_and_goes_on(copy: Path) -> None:
    """One that broke can be fixed."""
    (copy / "luck.py").write_text(REWARD + "\n# fixed\n")
    said = io.StringIO()
    assert look(said=said).checkpoint
    assert "the code of the reward luck.py has changed since the run was started" in said.getvalue()


def test_a_run_folder_may_be_moved_and_shown_in_a_desktop(copy: Path) -> None:
    (copy / "run").rename(copy / "elsewhere")
    (copy / "elsewhere/checkpoints/step-000002/.DS_Store").write_text("x")
    start = look("output.folder=elsewhere")
    assert start.checkpoint == Path("elsewhere/checkpoints/step-000002")


def test_more_than_a_million_steps_stand_in_order(tmp_path: Path) -> None:
    from gpg_vl.training.checkpoint import latest

    for name in ("step-999999", "step-1000000", "step-000003", "step-backup", "step-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    assert latest(tmp_path) == tmp_path / "step-1000000"


# ---- other data


def other_pictures(folder: Path) -> None:
    repaint(folder / "img" / "0.png")
    repaint(folder / "img" / "4.png")


def other_cell(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rows = read_rows(folder)
        rows[3][name] = value
        write_rows(folder, rows)

    return change


def other_order(folder: Path) -> None:
    write_rows(folder, read_rows(folder)[::-1])


def fewer(folder: Path) -> None:
    write_rows(folder, read_rows(folder)[:-1])


def swapped_pictures(folder: Path) -> None:
    rows = read_rows(folder)
    rows[1]["images"], rows[2]["images"] = rows[2]["images"], rows[1]["images"]
    write_rows(folder, rows)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_pictures, "rows 0, 4 show another picture now"),
        (swapped_pictures, "rows 1, 2 show another picture now"),
        (
            other_cell("choices", ["x", "y", "z", "u"]),
            "row 3 has another id, prompt, answer, choices",
        ),
        (other_cell("source", "elsewhere"), "row 3 has another id, prompt"),
        (other_cell("id", "three"), "row 3 has another id, prompt"),
        (other_cell("task", "Depth"), "row 3 has another id, prompt"),
        (other_order, "its rows are in another order"),
        (fewer, "it had 6 rows and has 5"),
    ],
)
def test_other_data_is_refused_by_its_rows(
    copy: Path, change: Callable[[Path], None], told: str
) -> None:
    change(copy)
    with pytest.raises(UserError, match=rf"(?s)The data is not what the run.*{told}"):
        look()


def test_a_picture_may_lie_elsewhere(copy: Path) -> None:
    (copy / "img" / "0.png").rename(copy / "img" / "first.png")
    rows = read_rows(copy)
    rows[0]["images"] = ["img/first.png"]
    write_rows(copy, rows)
    assert look().checkpoint


def test_other_pictures_are_refused_on_the_command_line(copy: Path) -> None:
    other_pictures(copy)
    before = (copy / "run" / "metrics.jsonl").read_bytes()
    result = resume(copy)
    assert result.returncode == 2
    assert "rows 0, 4 show another picture now" in result.stderr
    assert "Traceback" not in result.stderr
    assert (copy / "run" / "metrics.jsonl").read_bytes() == before


# ---- other settings, code, base


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.learning_rate=0.5", r"train\.learning_rate was 0\.001, is 0\.5"),
        ("rollout.temperature=0.7", r"rollout\.temperature was 1\.0, is 0\.7"),
        ("train.seed=1", r"train\.seed was 0, is 1"),
        ("data.max_pixels=200704", r"data\.max_pixels was"),
        ("train.steps=1", r"has done 2 steps already, but is configured for 1"),
    ],
)
@pytest.mark.parametrize("has_file", [True, False])
def test_other_settings_are_refused_by_name(
    copy: Path, override: str, told: str, has_file: bool
) -> None:
    """Also when config.yaml is gone: the checkpoint has them too."""
    if not has_file:
        (copy / "run" / "config.yaml").unlink()
    with pytest.raises(UserError, match=told):
        look(override)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_steps_may_not_change_under_a_schedule(
    copy: Path, tiny_checkpoint: Path, schedule: str
) -> None:
    ready = prepared(f"train.schedule={schedule}", "train.steps=4")
    before = identify(ready).to_json()
    from gpg_vl.training.identity import refuse_other_identity

    longer = replace(identify(ready), steps=8)
    with pytest.raises(UserError, match=rf"has 4 steps.*8.*train\.schedule={schedule}.*steps=4"):
        refuse_other_identity(before, longer, Path("run/checkpoints/step-000002"))

    # what epochs come to is what counts, not which key says it
    same = identify(prepared(f"train.schedule={schedule}", "train.steps=null", "train.epochs=1.3"))
    assert same.steps == 4
    refuse_other_identity(before, same, Path("x"))


def test_another_tokenizer_or_template_in_the_base_is_refused(
    copy: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    before = identify(prepared(f"model.path={base}"))
    (base / "README.md").write_text("hello")
    assert identify(prepared(f"model.path={base}")).base == before.base
    (base / "tokenizer_config.json").write_text((base / "tokenizer_config.json").read_text() + "\n")
    from gpg_vl.training.identity import refuse_other_identity

    now = identify(prepared(f"model.path={base}"))
    with pytest.raises(UserError, match=r"has changed: tokenizer_config\.json in"):
        refuse_other_identity(before.to_json(), now, Path("x"))


def test_weights_of_the_base_count_where_they_are_read_again(
    copy: Path, tiny_checkpoint: Path
) -> None:
    """Frozen ones, those below adapters, and a reference; a run that trains all of them has its own."""
    assert "model.safetensors" not in identify(prepared()).base
    for override in ("model.lora_rank=2", "model.freeze=[vision]", "algorithm.name=grpo"):
        more = ["algorithm.kl_beta=0.1"] if "grpo" in override else []
        assert "model.safetensors" in identify(prepared(override, *more)).base


# ---- damage


CHECKPOINT = Path("run/checkpoints/step-000002")


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "rank-0.pt",
        "state.json",
        "data.digests",
        "manifest.json",
        "model/model.safetensors",
        "model/config.json",
        "model/tokenizer.json",
    ],
)
@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "gone", "garbage"])
def test_a_damaged_file_is_named(
    copy: Path, known: tuple[Prepared, Identity], name: str, damage: str
) -> None:
    file = copy / CHECKPOINT / name
    match damage:
        case "bit":
            flip_bit(file)
        case "cut":
            os.truncate(file, file.stat().st_size // 2)
        case "empty":
            os.truncate(file, 0)
        case "garbage":
            file.write_bytes(b"\x80\x02]q\x00(K\x01e" * 99)
        case _:
            file.unlink()
    if (name, damage) == ("state.json", "gone"):
        start = look(known=known)  # a checkpoint without it was never complete
        assert start.checkpoint == Path("run/checkpoints/step-000001")
        return
    with pytest.raises(UserError, match=rf"(?s)step-000002 is damaged.*{name}.*delete this folder"):
        look(known=known)


@pytest.mark.parametrize("name", ["optimizer.pt", "state.json", "model"])
def test_files_of_another_step_are_noticed(
    copy: Path, known: tuple[Prepared, Identity], name: str
) -> None:
    ours, theirs = copy / CHECKPOINT / name, copy / CHECKPOINT.with_name("step-000001") / name
    if ours.is_dir():
        shutil.rmtree(ours)
        shutil.copytree(theirs, ours)
    else:
        shutil.copy(theirs, ours)
    with pytest.raises(UserError, match=r"step-000002 is damaged"):
        look(known=known)


def test_a_whole_checkpoint_under_the_name_of_another_step_is_noticed(
    copy: Path, known: tuple[Prepared, Identity]
) -> None:
    (copy / CHECKPOINT).rename(copy / CHECKPOINT.with_name("step-000007"))
    with pytest.raises(UserError, match=r"step-000007 is damaged.*state\.json is of step 2"):
        look(known=known)


def test_a_manifest_nested_without_end_is_damage(tmp_path: Path) -> None:
    from gpg_vl.training.manifest import read_manifest

    (tmp_path / "manifest.json").write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match=r"is damaged.*manifest\.json cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"format": 1},
        {"format": 1, "files": [], "metrics": {}, "run": {}},
        {
            "format": 1,
            "files": {"a": {"bytes": 1}},
            "metrics": {"bytes": 0, "sha256": ""},
            "run": {},
        },
        {"format": 1, "files": {}, "metrics": {"bytes": "0", "sha256": ""}, "run": {}},
        {"format": 1, "files": {}, "metrics": {"bytes": 0, "sha256": ""}, "run": 7},
    ],
)
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, content: dict[str, object]) -> None:
    """Its digest may be right: any program can compute it."""
    from gpg_vl.training import manifest

    whole = content | {"sha256": manifest._digest(content)}
    (tmp_path / "manifest.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"is damaged.*manifest\.json"):
        manifest.read_manifest(tmp_path)


def test_a_file_that_does_not_belong_is_named(copy: Path, known: tuple[Prepared, Identity]) -> None:
    shutil.copy(copy / CHECKPOINT / "rank-0.pt", copy / CHECKPOINT / "rank-1.pt")
    with pytest.raises(UserError, match=r"rank-1\.pt does not belong to it"):
        look(known=known)


def test_a_later_format_is_named(copy: Path, known: tuple[Prepared, Identity]) -> None:
    from gpg_vl.training import manifest

    file = copy / CHECKPOINT / "manifest.json"
    content = json.loads(file.read_text()) | {"format": 2}
    del content["sha256"]
    file.write_text(json.dumps(content | {"sha256": manifest._digest(content)}))
    with pytest.raises(UserError, match=r"another version of gpg_vl.*format 2.*reads 1"):
        look(known=known)


def test_damage_is_one_message_on_the_command_line(copy: Path) -> None:
    flip_bit(copy / CHECKPOINT / "optimizer.pt")
    result = resume(copy)
    assert result.returncode == 2
    assert "optimizer.pt has changed since it was written" in result.stderr
    assert "Traceback" not in result.stderr
    shutil.rmtree(copy / CHECKPOINT)
    assert resume(copy).returncode == 0
    assert [row["step"] for row in metrics(copy / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "content", [b"train: [1, 2", b"\xff\xfe\x00", b"just words", b"", b"- a\n- b\n", b"a: !!x y"]
)
def test_a_damaged_config_is_a_message(copy: Path, content: bytes) -> None:
    from gpg_vl.training.folder import open_folder

    (copy / "run" / "config.yaml").write_bytes(content)
    config = load_config("config.yaml", ())
    with pytest.raises(UserError, match=r"config\.yaml is damaged.*delete it: each checkpoint"):
        open_folder(config, resume=True)


# ---- metrics


def lines(copy: Path) -> list[bytes]:
    return (copy / "run" / "metrics.jsonl").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda rows: [b'{"step": 1, "ki\n', rows[1]], "line 1 is not a row of it"),
        (lambda rows: [rows[1]], "rows are missing or have changed"),
        (lambda rows: [rows[0].replace(b'"step": 1', b'"step": 3'), rows[1]], "rows are missing"),
        (lambda rows: [b"\xff\xfe" + rows[0], rows[1]], "line 1 is not a row of it"),
        (lambda rows: [rows[0], rows[1][:20]], "line 2 is not a row of it"),
    ],
)
def test_metrics_that_are_not_as_they_were_are_refused(
    copy: Path,
    known: tuple[Prepared, Identity],
    damage: Callable[[list[bytes]], list[bytes]],
    told: str,
) -> None:
    file = copy / "run" / "metrics.jsonl"
    file.write_bytes(b"".join(damage(lines(copy))))
    with pytest.raises(
        UserError, match=rf"metrics\.jsonl is not what.*step 2: {told}.*from a copy"
    ):
        look(known=known)


def test_rows_after_the_checkpoint_are_dropped(
    copy: Path, known: tuple[Prepared, Identity]
) -> None:
    """Whole ones, and what a kill has left of the last."""
    file, whole = copy / "run" / "metrics.jsonl", b"".join(lines(copy))
    file.write_bytes(whole + b'{"step": 3}\n{"step": 4, "lo')
    assert cut_metrics(file, look(known=known)) == 2
    assert file.read_bytes() == whole


def test_without_metrics_a_run_goes_on_and_says_so(
    copy: Path, known: tuple[Prepared, Identity]
) -> None:
    (copy / "run" / "metrics.jsonl").unlink()
    said = io.StringIO()
    assert look(known=known, said=said).checkpoint
    assert "metrics.jsonl does not exist any more: a new one begins with step 3" in said.getvalue()


# ---- checkpoints of an earlier version


def make_early(copy: Path) -> None:
    """Without a manifest, and with what told the data from other data then."""
    from gpg_vl.training.resume import digest_data

    for checkpoint in (copy / "run" / "checkpoints").iterdir():
        (checkpoint / "manifest.json").unlink()
        (checkpoint / "data.digests").unlink()
        state = json.loads((checkpoint / "state.json").read_text())
        del state["evaluation_due"]
        state["data"] = digest_data(prepared().examples)
        (checkpoint / "state.json").write_text(json.dumps(state))


def test_a_checkpoint_without_a_manifest_goes_on_if_it_never_had_one(
    copy: Path, known: tuple[Prepared, Identity]
) -> None:
    make_early(copy)
    said = io.StringIO()
    assert look(known=known, said=said).checkpoint == CHECKPOINT
    assert "by an earlier version, without a manifest.json" in said.getvalue()

    (copy / "run" / "metrics.jsonl").write_bytes(b"{torn\n" + lines(copy)[1])
    with pytest.raises(UserError, match=r"line 1 is not a row of it"):
        look(known=known)
    other_cell("answer", "none of these")(copy)
    rows = read_rows(copy)
    rows[3]["choices"] = None
    write_rows(copy, rows)
    with pytest.raises(UserError, match="The data is not what"):
        look()


RANKS: list[Any] = [
    [],
    {"torch": 1, "python": 2, "numpy": 3, "carry": []},
    {"torch": torch.zeros(3), "python": [], "numpy": [], "carry": "none"},
    {"torch": torch.zeros(3), "python": [], "numpy": [], "carry": [{"draw": 1}]},
]


@pytest.mark.parametrize("number", range(len(RANKS)))
def test_states_that_are_none_are_told(tmp_path: Path, number: int) -> None:
    """Without a manifest nothing else would notice."""
    from gpg_vl.training.rank_state import read_rank_state, restore_random_states
    from gpg_vl.training.tensor_file import DamagedFileError

    torch.save(RANKS[number], tmp_path / "rank-0.pt")
    with pytest.raises(DamagedFileError):
        restore_random_states(read_rank_state(tmp_path / "rank-0.pt"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"null",
        b'{"step": 2}',
        b'{"step": "2"}',
        b"\xff\xff",
        b'{"step": -1}',
        b"{",
        b"[" * 100_000,
    ],
)
def test_counters_that_are_none_are_told(
    copy: Path, known: tuple[Prepared, Identity], content: bytes
) -> None:
    (copy / CHECKPOINT / "state.json").write_bytes(content)
    with pytest.raises(UserError, match=r"step-000002 is damaged.*state\.json cannot be read"):
        look(known=known)
