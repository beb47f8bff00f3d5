"""`gpg-vl data rate`: rates that are kept with the data, found by a run, and refused when they are of something else."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import REWARD, gpg_vl, launched, metrics, warm_launcher, write_config

from gpg_vl.config import Config, load_config
from gpg_vl.data.order import Shuffled
from gpg_vl.data.pass_rates import Difficulty, RowRate
from gpg_vl.errors import UserError
from gpg_vl.training.data_check import load_data
from gpg_vl.training.drawn_rows import DrawnRows, choose_drawn
from gpg_vl.training.identity import Identity, refuse_other_identity
from gpg_vl.training.prompt_source import PromptSource
from gpg_vl.training.rating_report import (
    advise_on_rates,
    describe_groups,
    describe_pace,
    describe_rates,
)
from gpg_vl.training.rating_store import (
    Rating,
    describe_difference,
    find_rating,
    open_rating,
    read_rating,
    row_digest,
)
from gpg_vl.training.row_digests import RowDigests, digest_row, digest_rows
from gpg_vl.types import Example

ROWS = 12


def rows_of(number: int) -> RowDigests:
    """Digests of rows that differ."""
    return RowDigests(
        texts=b"".join(bytes([n]) * 16 for n in range(number)), pictures=bytes(16 * number)
    )


def write_rates(config: Config, rows: RowDigests, right: dict[int, int], samples: int = 4) -> Path:
    """A rating in which so many of the answers to each row are right."""
    rating = open_rating(config, rows, samples)
    with rating.file.open("a") as stream:
        for number, n in right.items():
            rewards = (1.0,) * n + (0.0,) * (samples - n)
            rate = RowRate(
                number=number,
                id=f"{number}",
                digest=row_digest(rows, number),
                right=n,
                rewards=rewards,
                parts={"luck": n / samples},
            )
            stream.write(json.dumps(rate.to_json()) + "\n")
    return rating.file


@pytest.fixture
def config(tiny_checkpoint: Path, tmp_path: Path) -> Config:
    """Of a run that draws rows with signal alone."""
    data = {"pass_rate": [0.05, 0.95]}
    return load_config(write_config(tmp_path, tiny_checkpoint, data=data))


def changed(config: Config, section: str, **keys: Any) -> Config:
    part = getattr(config, section).model_copy(update=keys)
    return config.model_copy(update={section: part})


# ---- which rows are drawn


def test_rows_within_the_bounds_are_drawn(config: Config) -> None:
    rows = rows_of(4)
    write_rates(config, rows, {3: 2, 0: 4, 2: 1, 1: 0})
    drawn = choose_drawn(config, rows, needed=2)
    assert drawn.numbers == (2, 3)
    assert drawn.note == (
        "2 of 4 rows have a pass rate from 0.05 to 0.95, by 4 answers each (1 are below, 1 above)"
    )

    both = changed(config, "data", pass_rate=(0.0, 0.5))
    assert choose_drawn(both, rows, needed=2).numbers == (1, 2, 3)
    assert choose_drawn(changed(config, "data", pass_rate=None), rows, needed=2) == DrawnRows()


def test_fewer_rows_than_a_step_needs_are_refused(config: Config) -> None:
    rows = rows_of(3)
    write_rates(config, rows, {0: 4, 1: 1, 2: 0})
    with pytest.raises(UserError, match=r"1 of 3 rows have a pass rate .* but 2 are needed"):
        choose_drawn(config, rows, needed=2)


def test_the_order_is_that_of_a_set_of_the_chosen_rows() -> None:
    examples = [Example(id=str(n), prompt="?", answer="1") for n in range(9)]
    chosen = (1, 4, 5, 8)
    order = Shuffled(rows=chosen, seed=7)
    source: Any = PromptSource(examples=examples, encoder=None, seed=7, order=order)  # type: ignore[arg-type]
    of_four: Any = PromptSource(examples=examples[:4], encoder=None, seed=7)  # type: ignore[arg-type]
    drawn = [source.row_at(draw) for draw in range(12)]
    assert drawn == [chosen[of_four.row_at(draw)] for draw in range(12)]
    for epoch in range(3):
        assert sorted(drawn[4 * epoch : 4 * epoch + 4]) == list(chosen)


# ---- which rating counts


def test_without_a_rating_the_command_is_named(config: Config) -> None:
    with pytest.raises(
        UserError, match=r"have no pass rates\. Rate them with gpg-vl data rate CON"
    ):
        find_rating(config, rows_of(2))


def test_a_rating_that_was_not_finished_says_how_far_it_is(config: Config) -> None:
    rows = rows_of(3)
    write_rates(config, rows, {0: 1, 2: 1})
    with pytest.raises(UserError, match=r"only 2 of the 3 rows .* gpg-vl data rate CONFIG -k 4"):
        find_rating(config, rows)


def test_of_several_the_one_with_most_answers_counts(config: Config) -> None:
    rows = rows_of(2)
    for samples in (4, 16, 8):
        write_rates(config, rows, {0: 1, 1: 2}, samples)
    write_rates(config, rows, {0: 1}, 32)
    assert find_rating(config, rows).samples == 16, "the one of 32 is not complete"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: changed(c, "rollout", temperature=0.7), "rollout.temperature was 1.0, is 0.7"),
        (lambda c: changed(c, "rollout", max_new_tokens=9), "rollout.max_new_tokens was 4, is 9"),
        (lambda c: changed(c, "prompt", system="Be brief."), "prompt.system was None, is 'Be br"),
        (lambda c: changed(c, "data", max_pixels=99_999), "data.max_pixels was 401408, is 99999"),
        (lambda c: changed(c, "model", dtype="bfloat16"), "model.dtype was 'float32', is 'bfl"),
        (
            lambda c: changed(c, "rewards", weights={**c.rewards.weights, "format": 0.2}),
            "rewards.weights was ",
        ),
    ],
)
def test_a_rating_of_other_settings_is_refused_with_what_changed(
    config: Config, change: Callable[[Config], Config], said: str
) -> None:
    rows = rows_of(2)
    write_rates(config, rows, {0: 1, 1: 2})
    with pytest.raises(UserError) as error:
        find_rating(change(config), rows)
    assert f"were made with other settings: {said}" in str(error.value)
    assert "Rate the rows again with gpg-vl data rate CONFIG" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: changed(c, "train", seed=5, steps=99, learning_rate=1.0),
        lambda c: changed(c, "rollout", group_size=16, slots=3, engine="vllm"),
        lambda c: changed(c, "data", skip_solved=2, pass_rate=(0.1, 0.9)),
        lambda c: changed(c, "output", folder="elsewhere"),
    ],
)
def test_what_a_rate_does_not_depend_on_may_change(
    config: Config, change: Callable[[Config], Config]
) -> None:
    rows = rows_of(2)
    file = write_rates(config, rows, {0: 1, 1: 2})
    assert find_rating(change(config), rows).file == file


def test_other_rows_are_named(config: Config) -> None:
    rows = rows_of(3)
    write_rates(config, rows, {0: 1, 1: 2, 2: 3})
    texts = bytearray(rows.texts)
    texts[20] ^= 1
    with pytest.raises(UserError, match="row 1 has another id, prompt, answer"):
        find_rating(config, replace(rows, texts=bytes(texts)))
    with pytest.raises(UserError, match="it had 3 rows and has 2"):
        find_rating(config, rows_of(2))


def test_other_weights_and_another_reward_are_named(
    config: Config, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    rows = rows_of(2)
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    config = changed(config, "model", path=str(tmp_path / "model"))
    write_rates(config, rows, {0: 1, 1: 2})
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (tmp_path / "luck.py").write_text(REWARD + "# other\n")
    with pytest.raises(UserError) as error:
        find_rating(config, rows)
    assert "model.safetensors of the model has changed" in str(error.value)
    assert f"the reward file {tmp_path / 'luck.py'} has changed" in str(error.value)


def test_the_nearest_of_several_is_compared_with(config: Config) -> None:
    rows = rows_of(2)
    far = changed(changed(config, "rollout", temperature=0.5), "prompt", system="Be brief.")
    write_rates(far, rows, {0: 1, 1: 2})
    write_rates(changed(config, "rollout", temperature=0.9), rows, {0: 1, 1: 2})
    with pytest.raises(
        UserError, match=r"made with other settings: rollout.temperature was 0.9, is 1.0\."
    ):
        find_rating(config, rows)


def test_the_same_rates_have_the_same_digest_and_others_have_not(config: Config) -> None:
    rows = rows_of(2)
    first = read_rating(write_rates(config, rows, {0: 1, 1: 2}))
    assert first is not None
    turned = Rating(**{**as_fields(first), "rates": dict(reversed(first.rates.items()))})
    assert turned.digest == first.digest
    other = {**first.rates, 1: replace(first.rates[1], right=3)}
    assert Rating(**{**as_fields(first), "rates": other}).digest != first.digest
    assert describe_difference(first, first.basis, rows) == []


def as_fields(rating: Rating) -> dict[str, Any]:
    return {name: getattr(rating, name) for name in ("file", "basis", "samples", "rows", "rates")}


# ---- its file


def test_a_line_that_was_not_finished_is_rated_again_and_a_broken_one_is_named(
    config: Config,
) -> None:
    rows = rows_of(3)
    file = write_rates(config, rows, {0: 1, 1: 2})
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    found = open_rating(config, rows, 4)
    assert set(found.rates) == {0}

    file.write_bytes(whole.replace(b'"right": 1', b'"right": 7'))
    with pytest.raises(UserError, match=r"line 2: the line is not the record of a rated row"):
        open_rating(config, rows, 4)

    for first in (b"", b"{}\n", b"[1]\n", whole.replace(b'"format": 1', b'"format": 0')):
        file.write_bytes(first)
        assert read_rating(file) is None


# ---- what is said

EASY_TO_LEARN = Difficulty(200, never=60, always=13, mean=0.316, signal=0.635, bins=(0,) * 10)


def test_the_rates_in_words() -> None:
    assert describe_rates(EASY_TO_LEARN, 8) == (
        "200 rows, 8 answers each: 31.6% of the answers are right; 60 rows (30.0%) are never solved, 13 (6.5%) always."
    )
    assert "Of groups of 8 answers 63.5% are expected" in describe_groups(EASY_TO_LEARN, 8, 8)
    assert "at least 63.5% are expected" in describe_groups(EASY_TO_LEARN, 8, 16)
    assert "Rate with -k 16 or more" in describe_groups(EASY_TO_LEARN, 8, 16)
    assert describe_pace(100, 50, 300, 60.0) == "rated 150 of 300 rows  3:00 left"


@pytest.mark.parametrize(
    ("never", "always", "signal", "said"),
    [
        (60, 13, 0.635, None),
        (195, 0, 0.02, "train on gold answers first (algorithm.name: sft)"),
        (0, 195, 0.02, "Take harder rows"),
        (100, 95, 0.02, "raise rollout.temperature"),
    ],
)
def test_a_task_without_signal_is_said_with_what_to_do(
    never: int, always: int, signal: float, said: str | None
) -> None:
    found = EASY_TO_LEARN._replace(never=never, always=always, signal=signal)
    advice = advise_on_rates(found)
    assert said in advice if said else advice == ""


# ---- from the command line

SLOW = REWARD.replace("    return sum", "    import time\n    time.sleep(0.05)\n    return sum")


def test_a_rating_is_killed_and_finished_by_two_processes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The rates are those of one that ran through in other batches and under another seed of the run."""
    rollout = {"group_size": 3, "max_new_tokens": 4, "prompts_per_batch": 2}
    config = write_config(tmp_path, tiny_checkpoint, rollout=rollout)
    (tmp_path / "luck.py").write_text(SLOW)
    kill_after_rows(config, 3)
    [file] = tmp_path.glob(".gpg_vl/rates-*.jsonl")
    before = file.read_bytes().splitlines()
    assert 3 <= len(before) - 1 < ROWS

    done = gpg_vl("data", "rate", config, "-k", "4", processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"12 rows, {len(before) - 1} of them rated" in done.stdout
    assert f"rated {ROWS} of {ROWS} rows  0:00 left" in done.stdout
    assert file.read_bytes().splitlines()[: len(before)] == before
    rates = records(file)
    assert sorted(rates) == list(range(ROWS))

    file.rename(tmp_path / "first.jsonl")
    whole = gpg_vl(
        "data", "rate", config, "-k", "4", "rollout.prompts_per_batch=32", "train.seed=9"
    )
    assert whole.returncode == 0, whole.stderr
    assert records(file) == rates
    assert "12 rows, 4 answers each" in whole.stdout
    assert "Of groups of 3 answers" in whole.stdout

    examples = load_data(load_config(config))
    for number, rate in rates.items():
        text, picture = digest_row(examples[number], None)
        assert (rate["id"], rate["digest"]) == (examples[number].id, (text + picture).hex())
        assert rate["rewards"] == [round(value, 9) for value in rate["rewards"]]
        assert set(rate["rewards"]) <= {0.0, 0.25, 0.5, 0.75, 1.0}, "what luck gives"
        assert rate["pass_rate"] == rate["rewards"].count(1.0) / 4
        assert rate["parts"] == {f"{tmp_path / 'luck.py'}:luck": sum(rate["rewards"]) / 4}
    assert len({tuple(rate["rewards"]) for rate in rates.values()}) > 1, "the reward varies"


def kill_after_rows(config: Path, rows: int) -> None:
    """Start a rating and kill it once its file has so many rows."""
    words = [*warm_launcher(1), "-m", "gpg_vl", "data", "rate", str(config), "-k", "4"]
    with launched(config.parent, words) as [launch]:
        while launch.is_running() and count_rows(config.parent) < rows:
            time.sleep(0.005)
        assert launch.is_running(), launch.log.read_text()


def count_rows(folder: Path) -> int:
    files = list(folder.glob(".gpg_vl/rates-*.jsonl"))
    return files[0].read_bytes().count(b"\n") - 1 if files else 0


def records(file: Path) -> dict[int, dict[str, Any]]:
    """What is said of each row."""
    lines = map(json.loads, file.read_text().splitlines()[1:])
    return {line["number"]: line for line in lines}


def test_a_run_draws_by_pass_rates_and_resumes_bit_for_bit(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Five of twelve rows carry a signal; a run of four steps of two draws each of them before one comes again."""
    data = {"pass_rate": [0.05, 0.95]}
    file = write_config(tmp_path, tiny_checkpoint, data=data, output={"samples_every": 1})
    refused = gpg_vl("train", file)
    assert refused.returncode == 2
    assert (
        "have no pass rates. Rate them with gpg-vl data rate CONFIG"
        in refused.stdout + refused.stderr
    )

    config = load_config(file)
    rows = digest_rows(load_data(config), None)
    chosen = (1, 2, 5, 8, 11)
    write_rates(config, rows, {number: 2 * (number in chosen) for number in range(ROWS)})
    whole = gpg_vl("train", file)
    assert whole.returncode == 0, whole.stderr
    assert "5 of 12 rows have a pass rate from 0.05 to 0.95" in whole.stdout
    assert "1.60 epochs of 5 examples" in whole.stdout
    ids = [int(row["id"]) for row in read_samples(tmp_path / "run")]
    assert len(ids) == 8
    assert sorted(ids[:5]) == list(chosen)
    assert set(ids[5:]) < set(chosen)

    other = f"output.folder={tmp_path / 'other'}"
    assert gpg_vl("train", file, other, "train.steps=2").returncode == 0
    assert gpg_vl("train", file, other, "--resume").returncode == 0
    assert metrics(tmp_path / "other") == metrics(tmp_path / "run")


def read_samples(run: Path) -> list[dict[str, Any]]:
    files = sorted(run.glob("samples/*/samples.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_a_run_does_not_resume_by_other_rates(config: Config) -> None:
    rows = rows_of(2)
    settings, folder = config.model_dump(mode="json"), Path("run/checkpoints/step-000002")
    now = Identity(settings=settings, rows=rows, steps=4, base={}, code={}, rating="9f86")
    refuse_other_identity(now.to_json(), now, folder)
    for before in ("60303", None):
        other = {**now.to_json(), "rating": before}
        with pytest.raises(UserError, match=r"data\.pass_rate\) have changed"):
            refuse_other_identity(other, now, folder)

    # a checkpoint of before there were rates
    old = {name: value for name, value in now.to_json().items() if name != "rating"}
    refuse_other_identity(old, replace(now, rating=None), folder)
