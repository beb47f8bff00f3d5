"""Exit codes are those that --help and the docs list, and why a program ends is said once."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from runs import environment, launcher

from gpg_vl import exit_codes
from gpg_vl.cli.program import make_parser as cli_parser
from gpg_vl.exit_codes import EXIT_CODES, say_once
from gpg_vl.training.interrupt import StopRequest

ROOT = Path(__file__).parents[1]


def test_help_and_docs_list_every_exit_code() -> None:
    told = cli_parser().format_help()
    assert re.findall(r"^  (\d+) ", told[told.index("exit codes:") :], re.MULTILINE) == [
        "0",
        "1",
        "2",
        "130",
        "141",
        "143",
    ]
    assert max(map(len, told.splitlines())) <= 80
    docs = (ROOT / "docs" / "training.md").read_text()
    table = docs[docs.index("## Exit codes") :]
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == [str(code) for code in EXIT_CODES]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_has_the_exit_code_of_its_signal(
    number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with StopRequest(announces=True) as stop:
        assert not stop.is_wanted()
        os.kill(os.getpid(), number)
        assert stop.is_wanted()
        assert stop.exit_code == code
        assert capfd.readouterr().out.count("stopping after this step, with a checkpoint") == 1

        # once more: at once, and the exit code is that of what came last
        with pytest.raises(KeyboardInterrupt) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.args == (143,)


def test_a_process_that_does_not_lead_its_machine_waits_before_it_speaks(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(exit_codes, "IS_LAUNCHED", True)
    monkeypatch.setattr(exit_codes.time, "sleep", waited.append)
    for rank, waits in (("0", []), ("1", [exit_codes.PATIENCE])):
        monkeypatch.setenv("LOCAL_RANK", rank)
        waited.clear()
        say_once("wrong")
        assert waited == waits
    assert capfd.readouterr().err == "wrong\n" * 2


def test_under_torchrun_a_mistake_is_said_once(tmp_path: Path) -> None:
    """Before the processes have met, where nobody else could say it for them."""
    words = [*launcher(2), "-m", "gpg_vl", "train", tmp_path / "gone.yaml"]
    result = subprocess.run(
        words, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 1, "torchrun's own"
    assert result.stderr.count("gpg-vl: ") == 1, result.stderr
    assert "gone.yaml" in result.stderr
