"""The peak memory of phases: the most that was held inside, freed or not, and nothing of what came before."""

import pytest
import torch

from gpg_vl import peak_memory
from gpg_vl.clock import Clock

MIB = 1 << 20


def fill(mebibytes: int) -> None:
    """Hold so much resident memory for a moment. Above its threshold the allocator gives it back to the kernel."""
    torch.ones(mebibytes * MIB, dtype=torch.uint8)


def fill_and_fail(mebibytes: int) -> None:
    fill(mebibytes)
    raise ArithmeticError


def test_a_phase_has_the_most_that_was_held_in_it_though_it_was_freed() -> None:
    with peak_memory.record_peaks() as record:
        clock = Clock()
        with clock.phase("small"):
            fill(1)
        with clock.phase("large"):
            fill(300)
        with clock.phase("after"):
            fill(1)
        found = record.read()
    assert found["large"].process - found["small"].process == pytest.approx(299 * MIB, abs=40 * MIB)
    assert found["after"].process - found["small"].process < 40 * MIB
    assert found[peak_memory.WHOLE].process >= found["large"].process


def test_an_outer_phase_holds_what_its_parts_hold_and_a_failed_one_counts() -> None:
    with peak_memory.record_peaks() as record:
        with (
            pytest.raises(ArithmeticError),
            peak_memory.record_phase("outer"),
            peak_memory.record_phase("inner"),
        ):
            fill_and_fail(200)
        with peak_memory.record_phase("inner"):
            fill(1)
        found = record.read()
    assert found["outer"].process == found["inner"].process


def test_nothing_is_reset_where_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory, "_reset", lambda: pytest.fail("reset"))
    with Clock().phase("train"):
        pass
