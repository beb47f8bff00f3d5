"""What a run shows on a terminal of 60, 80 or 120 columns, rounds and dropped groups included."""

import io
import re

import pytest
from rich.console import Console

from gpg_vl.errors import RunError
from gpg_vl.rewards.scoring import RewardFailure
from gpg_vl.training.display import WARN_EVERY, Display, Part, fit
from gpg_vl.training.dropped_groups import refuse_too_many
from gpg_vl.training.signals import Seen, advise

METRICS = {
    "reward": 0.5123,
    "accuracy": 0.5,
    "valid_share": 0.45,
    "alpha": 2.21,
    "length_all": 3.4,
    "groups_seen": 160,
    "reward_failures": 0,
}
SECONDS = {"step": 0.521}
SEEN = Seen(groups=64, valid=30, all_right=4, all_wrong=30)


def a_display(width: int, *, terminal: bool = True, seconds: float = 30.0) -> Display:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False)
    return Display(console, steps=300, done=0, enabled=True, plain_seconds=seconds)


def printed(display: Display) -> str:
    """All that went to the terminal, without colours and moves of the cursor."""
    text = display._console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")


def shown(display: Display) -> list[str]:
    """The lines on the terminal now."""
    other = io.StringIO()
    console = Console(file=other, width=display._console.width, force_terminal=True)
    console.print(display._render())
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", other.getvalue()).splitlines()


@pytest.mark.parametrize(
    ("width", "numbers"),
    [
        (60, "reward 0.512  accuracy 0.500  valid 0.45  0.52 s/step"),
        (80, "reward 0.512  accuracy 0.500  valid 0.45  alpha 2.21  length 3.4  0.52 s/step"),
        (120, "reward 0.512  accuracy 0.500  valid 0.45  alpha 2.21  length 3.4  0.52 s/step"),
    ],
)
def test_a_terminal_of_any_width_shows_step_bar_time_left_and_numbers(
    width: int, numbers: str
) -> None:
    with a_display(width) as display:
        display.step(12, METRICS, SECONDS)
        display.phase("rollout", 128, 256)
        bar, line, now = shown(display)
    assert re.search(r"step +12/300 \S+ +(--:--|\d+:\d\d) left$", bar.strip()), bar
    assert re.search(r"[━╸╺]{16}", bar)
    assert line.strip() == numbers
    assert now.strip() == "rollout 128 of 256"
    assert all(len(one) <= width for one in (bar, line, now))
    assert numbers in printed(display), "the last line stays"


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_score_of_an_evaluation_is_torn_from_its_name(width: int, terminal: bool) -> None:
    names = ("official", "micro", "2D", "3D", "Count", "Relation", "Depth", "Distance", "answered")
    display = a_display(width, terminal=terminal)
    display.step(3, dict.fromkeys(names, 1.0), {})
    lines = printed(display).splitlines()
    assert [n for n in names if f"{n} 100.0" in "\n".join(lines)] == list(names)
    assert lines[0].startswith("step     3  evaluation  official 100.0  micro 100.0")
    assert len(lines) == 1 if not terminal else all(len(line) <= width for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_rounds_are_shown_as_they_happen(width: int) -> None:
    with a_display(width) as display:
        display.round(7, 20, valid=3, needed=13, seen=SEEN)
        assert "round 7/20, 3 of 13 groups with signal" in shown(display)[-1]
        display.step(1, METRICS, SECONDS)
        assert not any("round" in line for line in shown(display))


def test_without_a_terminal_rounds_of_a_long_step_are_printed() -> None:
    quick, slow = (a_display(80, terminal=False, seconds=s) for s in (30.0, 0.0))
    for display in (quick, slow):
        with display:
            display.round(2, 20, valid=3, needed=13, seen=SEEN)
    assert printed(quick) == ""
    assert printed(slow) == "round 2/20, 3 of 13 groups with signal\n"


def test_the_least_important_numbers_go_first() -> None:
    parts = (Part(1, "one"), Part(3, "three"), Part(2, "two"))
    assert [fit(parts, width) for width in (15, 14, 8, 7, 3, 2)] == [
        "one  three  two",
        "one  two",
        "one  two",
        "one",
        "one",
        "",
    ]


# ---- groups that were dropped


@pytest.mark.parametrize("width", [60, 80, 120])
def test_dropped_groups_stand_first_on_the_line_and_above_a_tenth_are_warned_of(width: int) -> None:
    with a_display(width) as display:
        display.step(1, METRICS | {"reward_failures": 1, "groups_seen": 9}, SECONDS)
        assert "dropped 1 of 10  reward 0.512" in shown(display)[1]
        assert "warning" not in printed(display)

        broken = {"reward_failures": 2, "groups_seen": 16, "reward_failure": "odd [/red]"}
        for step in (2, 3, 2 + WARN_EVERY):
            display.step(step, METRICS | broken, SECONDS)
    said = " ".join(printed(display).split())
    assert said.count("warning: step") == 2, "not in every step"
    assert "warning: step 2: 2 of 18 groups were dropped because a reward failed" in said
    assert "The first failure: odd [/red]" in said


@pytest.mark.parametrize(
    ("dropped", "of", "stops"),
    [(155, 160, True), (81, 160, True), (80, 160, False), (3, 3, False), (4, 4, True)],
)
def test_above_half_of_a_step_the_run_stops(dropped: int, of: int, stops: bool) -> None:
    failure = RewardFailure(
        kind="exception", reward="my.py:f", example_id="7", member=0, message="KeyError at my.py:7"
    )
    if not stops:
        refuse_too_many([failure] * dropped, of, 3)
        return
    with pytest.raises(RunError) as error:
        refuse_too_many([failure] * dropped, of, 3)
    assert f"Step 3: {dropped} of {of} groups were dropped" in str(error.value)
    assert "allows up to half" in str(error.value)
    assert "--resume" in str(error.value)
    assert "KeyError at my.py:7" in str(error.value)


# ---- groups without signal


def test_a_step_without_signal_is_warned_of_before_its_rounds_are_over() -> None:
    """After two rounds, and once: 3 of 64 is below a tenth, 7 is not, and 1 of 15 says little."""
    display = Display(
        Console(file=io.StringIO(), width=80), steps=300, done=0, enabled=True, rounds=20
    )
    few = Seen(groups=64, valid=3, all_right=1, all_wrong=60)
    for number, seen in (
        (2, few),
        (3, few._replace(valid=7)),
        (4, few._replace(groups=15, valid=1)),
    ):
        display.round(number, 20, valid=3, needed=13, seen=seen)
    assert "warning" not in printed(display)

    for number in (3, 4):
        display.round(number, 20, valid=3, needed=13, seen=few)
    said = " ".join(printed(display).split())
    assert said.count("warning: step 1: 3 of 64 groups so far carry a signal") == 1
    assert "(60 were all wrong, 1 all right). A step samples up to 20 rounds of answers" in said
    assert "train on gold answers first (algorithm.name: sft)" in said
    assert "gpg-vl data rate CONFIG counts the rows that carry a signal" in said


@pytest.mark.parametrize(("rounds", "warned"), [(1, True), (0, False)])
def test_a_step_of_one_round_is_warned_of_at_its_end(rounds: int, warned: bool) -> None:
    """By its shares: 1 of 32. An algorithm that samples nothing has no signal by design."""
    display = Display(
        Console(file=io.StringIO(), width=80), steps=300, done=0, enabled=True, rounds=rounds
    )
    shares = {"valid_share": 1 / 32, "all_right_share": 30 / 32, "all_wrong_share": 1 / 32}
    display.step(5, METRICS | shares | {"groups_seen": 32}, SECONDS)
    said = " ".join(printed(display).split())
    assert ("step 5: 1 of 32 groups so far carry a signal (1 were all wrong, 30" in said) is warned
    assert ("skip rows that it has solved (data.skip_solved)" in said) is warned


def test_equal_rewards_that_are_neither_right_nor_wrong_are_told_apart() -> None:
    assert "one reward, neither 0 nor 1" in advise(
        Seen(groups=32, valid=0, all_right=2, all_wrong=3)
    )
    assert "too hard" in advise(Seen(groups=32, valid=0, all_right=2, all_wrong=30))


def test_rows_that_are_drawn_again_are_told() -> None:
    display = a_display(80, terminal=False)
    display.step(7, METRICS | {"solved_rows": 0, "solved_rows_again": 270}, SECONDS)
    said = " ".join(printed(display).split())
    assert "step 7: 270 rows were solved (data.skip_solved), and fewer than" in said
