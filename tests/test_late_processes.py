"""What is said of a process that is late or gone."""

import pytest

from gpg_vl.training.late_processes import (
    Sighting,
    explain_gone,
    explain_late,
    explain_unknown,
    name_processes,
)


def seen(what: str, seconds: float, **states: bool) -> Sighting:
    return Sighting(beat=1, place="node7, process id 4711", what=what, seconds=seconds, **states)


def test_the_late_one_is_named_with_what_it_does() -> None:
    waiting = seen("the rollout of step 12", 1801, waits=True)
    sightings = {
        0: waiting,
        1: waiting,
        2: waiting,
        3: seen("the rollout of step 12", 1860),
        4: seen("the end", 0, ended=True),
    }
    assert explain_late(sightings, waited=1801, minutes=30).startswith(
        "Process 3 (node7, process id 4711) is late: it has been in the rollout of step 12 for 31 minutes; "
        "processes 0, 1 and 2 waited 30 minutes, at most 30 minutes are allowed (train.max_wait_minutes)."
    )


def test_processes_that_wait_for_one_another_are_told_from_a_late_one() -> None:
    sightings = {
        0: seen("the training of step 2", 61, waits=True),
        1: seen("the rollout of step 3", 61, waits=True),
    }
    said = explain_late(sightings, waited=61, minutes=1)
    assert "All processes have waited for one another for 61 seconds" in said
    assert "process 0 in the training of step 2; process 1 in the rollout of step 3" in said
    assert "late" not in said


def test_who_is_gone_is_named_with_what_it_did() -> None:
    said = explain_gone({3: seen("the loading of the model", 9), 1: seen("the start", 2)})
    assert said.startswith(
        "Process 1 (node7, process id 4711) has ended without a message; it was last seen in the start; "
        "Process 3 (node7, process id 4711) has ended without a message; it was last seen in the loading of the model."
    )


def test_a_broken_connection_is_told_with_the_librarys_first_line() -> None:
    assert explain_unknown("Connection closed by peer\nframe #0").endswith(
        "(Connection closed by peer)"
    )
    assert explain_unknown("").endswith("(no reason given)")


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ([2], "process 2"),
        ([0, 1], "processes 0 and 1"),
        ([0, 1, 2], "processes 0, 1 and 2"),
        (list(range(10)), "processes 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"),
    ],
)
def test_processes_are_named(ranks: list[int], said: str) -> None:
    assert name_processes(ranks) == said
