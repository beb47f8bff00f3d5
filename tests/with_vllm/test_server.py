"""Answers from a server: the same numbers as in this process, weights that arrive whole, and deaths that cost nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench import FAULT, SAMPLING, Bench, assert_beside, make_bench
from runs import environment, gpg_vl, metrics, write_config, write_scenes
from served import Served

from gpg_vl.errors import RunError, UserError
from gpg_vl.model import Model
from gpg_vl.rollout.engine import EngineLostError, EngineOptions
from gpg_vl.rollout.vllm import transfer
from gpg_vl.rollout.vllm.client import Server
from gpg_vl.rollout.vllm.protocol import FOLDER, PREFIX
from gpg_vl.rollout.vllm.server import ServerEngine

pytest_plugins = ("vllm_fixtures",)

LIMIT = 2e-6
"""Mean gap of a healthy engine in float32."""


@pytest.fixture(scope="module")
def asked(served: Served, tiny_checkpoint: Path) -> Bench:
    """Two addresses of one server, so that requests are dealt out and every sync goes to both."""
    return make_bench(tiny_checkpoint, servers=(served.url, f"http://localhost:{served.port}"))


# ---- numbers


def test_an_evaluation_asks_the_server(
    served: Served, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Before any run has trained it: the greedy answers of the native engine, to the letter."""
    write_scenes(tmp_path / "test.parquet", 12, seed=12)
    said = {}
    for engine, more in (("native", ()), ("vllm_server", ("--servers", served.url))):
        ran = gpg_vl(
            "eval",
            "cvbench",
            *("--model", tiny_checkpoint, "--data", tmp_path / "test.parquet"),
            *("--output", tmp_path / engine, "--engine", engine, *more),
            *("--prompt", "plain", "--max-new-tokens", "8"),
        )
        assert ran.returncode == 0, ran.stderr
        lines = (tmp_path / engine / "predictions.jsonl").read_text().splitlines()
        said[engine] = [(row["doc_id"], row["response"]) for row in map(json.loads, lines)]
    assert len(said["native"]) == 12
    assert said["vllm_server"] == said["native"]


def test_log_probs_are_the_policys_before_and_after_training(asked: Bench) -> None:
    assert asked.gap().is_rounding(), asked.gap()
    for _ in range(3):
        asked.train()
        assert asked.gap().mean > FAULT, "a step changes more than rounding"
        asked.sync()
        assert asked.gap().is_rounding(), asked.gap()


def test_a_greedy_answer_comes_beside_the_group(
    asked: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both requests of a prompt go to one server, and the prompts to both servers."""
    asked.sync()
    ask, where = ServerEngine._ask, defaultdict[int, set[str]](set)

    def listen(self: ServerEngine, server: Server, body: Any) -> dict[str, Any]:
        where[body.request].add(server.url)
        return ask(self, server, body)

    monkeypatch.setattr(ServerEngine, "_ask", listen)
    told: list[int] = []
    both = asked.answer(replace(SAMPLING, with_greedy=True), done=told.append)
    assert sum(told) == (SAMPLING.group_size + 1) * len(asked.prompts)
    assert {len(urls) for urls in where.values()} == {1}
    assert len(set.union(*where.values())) == 2
    assert_beside(asked, both)


def test_answers_are_those_of_the_engine_in_this_process(
    asked: Bench, tiny_checkpoint: Path
) -> None:
    asked.sync()
    inside = make_bench(tiny_checkpoint)
    inside.engine.sync(asked.weights, 1)
    theirs = [[c.token_ids for c in group] for group in asked.answer()]
    ours = [[c.token_ids for c in group] for group in inside.answer()]
    assert theirs == ours


def test_a_sync_reports_what_the_server_took(asked: Bench) -> None:
    sent = dict(asked.weights())
    asked.version += 1
    report = asked.engine.sync(asked.weights, asked.version)
    assert report.tensors == len(sent)
    assert report.bytes == sum(t.numel() * t.element_size() for t in sent.values())


def test_weights_of_several_files_arrive_whole(
    asked: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "FILE_BYTES", 200_000)
    asked.shake("")
    asked.sync()
    files = asked.engine._files
    assert len(files) > 5
    assert all(file.parent == FOLDER and file.stat().st_mode & 0o077 == 0 for file in files)
    assert asked.gap().is_rounding()
    asked.sync()
    assert not any(file.exists() for file in files), "old weights are removed"


def test_weights_that_are_not_all_there_are_refused(asked: Bench) -> None:
    name = "model.visual.merger.mlp.0.weight"
    with pytest.raises(EngineLostError, match=r"sends nothing for.*merger\.mlp\.0"):
        asked.engine.sync(lambda: ((n, t) for n, t in asked.weights() if n != name), 90)
    asked.sync()
    assert asked.gap().is_rounding()


# ---- who may ask


def test_another_model_another_dtype_and_features_are_refused(
    served: Served, newer_checkpoint: Path, tiny_checkpoint: Path
) -> None:
    with pytest.raises(
        UserError, match=r"another model: .*family is qwen2_vl there and qwen2_5_vl here"
    ):
        make_bench(newer_checkpoint, servers=(served.url,))
    lower = Model.load(tiny_checkpoint, device="cpu", dtype="bfloat16")
    with pytest.raises(UserError, match=r"computes in float32, the trainer in bfloat16.*--dtype"):
        lower.engine("vllm_server", options=EngineOptions(servers=(served.url,)))
    with pytest.raises(UserError, match=r"started for pixels, but rollout\.images is features"):
        make_bench(tiny_checkpoint, servers=(served.url,), images="features")


def test_nobody_at_the_address_is_told_after_the_wait(tiny_checkpoint: Path) -> None:
    options = EngineOptions(servers=("http://127.0.0.1:9",), server_wait=1.0)
    model = Model.load(tiny_checkpoint, device="cpu")
    with pytest.raises(UserError, match=r"No server answers at .*:9.*1 seconds.*gpg-vl serve"):
        model.engine("vllm_server", options=options)


def test_two_runs_on_one_server_are_noticed(
    asked: Bench, served: Served, tiny_checkpoint: Path
) -> None:
    asked.sync()
    other = make_bench(tiny_checkpoint, servers=(served.url,))
    other.sync()
    assert other.gap().is_rounding()
    with pytest.raises(RunError, match=r"weights .* of another run.*one run at a time"):
        asked.answer()
    asked.sync()
    assert asked.gap().is_rounding()


def test_an_evaluation_of_weights_that_a_run_has_replaced_is_refused(
    asked: Bench, served: Served, tiny_checkpoint: Path
) -> None:
    asked.sync()
    evaluated = make_bench(tiny_checkpoint, servers=(served.url,))
    with pytest.raises(UserError, match=r"weights of a training run .*Start it again"):
        evaluated.answer()


def test_only_files_of_weights_are_read(served: Served, tmp_path: Path) -> None:
    """Whoever reaches the port must not have any file opened."""
    server = Server(served.url)
    secret = tmp_path / "model.safetensors"
    secret.write_bytes(b"")
    server.post("/pause", mode="abort")
    server.post("/start_weight_update")
    with pytest.raises(RunError, match="500"):
        server.post("/update_weights", {"update_info": {"path": str(secret)}})
    server.post("/resume")


# ---- deaths


def test_an_update_that_its_trainer_did_not_finish_is_cleared_away(
    asked: Bench, served: Served
) -> None:
    """As a trainer leaves a server that was killed after its first file."""
    server = Server(served.url)
    server.post("/pause", mode="abort")
    server.post("/start_weight_update")
    asked.shake("")
    asked.sync()
    assert asked.gap().is_rounding()


def test_a_server_that_dies_while_it_answers_is_asked_again(asked: Bench, served: Served) -> None:
    asked.shake("")
    asked.sync()
    many = replace(SAMPLING, group_size=16, max_new_tokens=64)
    expected = asked.answer(many)

    def die() -> None:
        time.sleep(0.05)
        served.kill()
        served.start()

    lost_before = asked.engine.counters()["servers_lost"]
    threading.Thread(target=die).start()
    got = asked.answer(many)
    assert asked.engine.counters()["servers_lost"] > lost_before, "it was killed too late"
    assert [[c.token_ids for c in group] for group in got] == [
        [c.token_ids for c in group] for group in expected
    ]
    assert asked.gap().is_rounding(), "the weights are there again"


def test_a_server_that_dies_within_a_sync_gets_all_of_it(
    asked: Bench, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "FILE_BYTES", 200_000)
    send = transfer.deliver
    deaths = []

    def die_after_two_files(files: Any, server: Server) -> None:
        if deaths:
            send(files, server)
            return
        send(list(files)[:2], server)
        deaths.append(1)
        served.kill()
        served.start()
        send(list(files)[2:], server)

    monkeypatch.setattr(transfer, "deliver", die_after_two_files)
    asked.shake("")
    asked.sync()
    assert deaths
    assert asked.gap().is_rounding()


def test_a_server_that_does_not_come_back_ends_the_engine(
    asked: Bench, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.sync()
    impatient = replace(asked.engine._setup.options, server_wait=1.0)
    monkeypatch.setattr(asked.engine, "_setup", replace(asked.engine._setup, options=impatient))
    served.kill()
    try:
        with pytest.raises(EngineLostError, match="No server answers"):
            asked.answer()
        with pytest.raises(EngineLostError, match="No server answers"):
            asked.sync()
    finally:
        served.start()
        served.wait()


# ---- runs


def write_run(folder: Path, checkpoint: Path, served: Served, **sections: Any) -> Path:
    folder.mkdir()
    return write_config(
        folder,
        checkpoint,
        rollout={
            "group_size": 3,
            "max_new_tokens": 4,
            "engine": "vllm_server",
            "servers": [served.url],
        },
        output={"folder": str(folder / "run"), "checkpoint_every": 1, "samples_every": 1},
        **sections,
    )


def told(folder: Path) -> list[dict[str, Any]]:
    """Rows of the log without what is the engine's rounding or counts what was waited for."""
    noise = ("logp_gap", "rollout_servers_lost", "reward/")  # rewards are named by their file
    return [
        {name: value for name, value in row.items() if not name.startswith(noise)}
        for row in metrics(folder / "run")
    ]


def stored(folder: Path) -> list[tuple[Any, ...]]:
    """Every answer that the run has kept, with its reward."""
    files = sorted((folder / "run" / "samples").rglob("*.jsonl"))
    answers = []
    for file in files:
        for group in map(json.loads, file.read_text().splitlines()):
            for number, said in enumerate(group["completions"]):
                answers.append(
                    (file.parent.name, group["id"], number, said["text"], said["reward"])
                )
    assert answers
    return answers


@pytest.fixture(scope="module")
def undisturbed(
    served: Served, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    ran = gpg_vl("train", write_run(folder, tiny_checkpoint, served))
    assert ran.returncode == 0, ran.stderr
    return folder


def test_a_run_trains_on_what_the_server_samples(undisturbed: Path) -> None:
    rows = [row for row in metrics(undisturbed / "run") if "loss" in row]
    assert len(rows) == 4
    gaps = [row["logp_gap_mean"] for row in rows if not row["step_skipped"]]
    assert gaps
    assert max(gaps) < LIMIT
    owners = {file.name.split("-")[3] for file in FOLDER.glob(f"{PREFIX}*")}
    assert owners <= {str(os.getpid())}, "a run takes its files with it"


def disturb(config: Path, when: Callable[[int], bool], what: Callable[[int], None]) -> None:
    """Start a run, and do `what` to it as soon as `when` is true of its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gpg_vl", "train", str(config)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not when(process.pid):
        assert process.poll() is None, "the run ended before it was disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    what(process.pid)
    process.wait(timeout=600)


def has_rows(folder: Path, number: int) -> Callable[[int], bool]:
    file = folder / "run" / "metrics.jsonl"
    return lambda pid: file.exists() and len(file.read_text().splitlines()) >= number


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def resume(config: Path) -> None:
    ran = gpg_vl("train", config, "--resume", timeout=600)
    assert ran.returncode == 0, ran.stderr


def test_a_trainer_that_is_killed_goes_on_where_it_was(
    undisturbed: Path, served: Served, tiny_checkpoint: Path
) -> None:
    folder = undisturbed.parent / "trainer"
    config = write_run(folder, tiny_checkpoint, served)
    disturb(config, has_rows(folder, 2), kill)
    resume(config)
    assert told(folder) == told(undisturbed)
    assert stored(folder) == stored(undisturbed)


def test_a_trainer_that_is_killed_within_a_sync_goes_on_where_it_was(
    undisturbed: Path, served: Served, tiny_checkpoint: Path
) -> None:
    folder = undisturbed.parent / "sync"
    config = write_run(folder, tiny_checkpoint, served)
    # the third file is that of step 2: those before it are the checkpoint's own weights and step 1
    disturb(config, lambda pid: bool(list(FOLDER.glob(f"{PREFIX}*-{pid}-3.safetensors"))), kill)
    resume(config)
    assert told(folder) == told(undisturbed)
    assert stored(folder) == stored(undisturbed)


def test_a_server_that_is_killed_in_a_run_costs_nothing(
    undisturbed: Path, served: Served, tiny_checkpoint: Path
) -> None:
    folder = undisturbed.parent / "server"
    config = write_run(folder, tiny_checkpoint, served)

    def die(pid: int) -> None:
        served.kill()
        served.start()

    disturb(config, has_rows(folder, 2), die)
    rows = metrics(folder / "run")
    assert sum(row.get("rollout_servers_lost", 0) for row in rows) >= 1
    assert told(folder) == told(undisturbed)
    assert stored(folder) == stored(undisturbed)


def test_two_processes_share_a_server(
    undisturbed: Path, served: Served, tiny_checkpoint: Path
) -> None:
    folder = undisturbed.parent / "two"
    ran = gpg_vl("train", write_run(folder, tiny_checkpoint, served), processes=2, timeout=600)
    assert ran.returncode == 0, ran.stderr
    gaps = [row["logp_gap_mean"] for row in metrics(folder / "run") if row.get("logp_gap_mean")]
    assert gaps
    assert max(gaps) < LIMIT


@pytest.mark.parametrize("sharding", ["fsdp2", "zero3"])
def test_weights_that_are_spread_reach_a_server(
    served: Served, tiny_checkpoint: Path, tmp_path: Path, sharding: str
) -> None:
    """Gathered tensor by tensor by both processes, and handed over by the first: two steps, the second on what the first left."""
    train = {"sharding": sharding, "steps": 2}
    config = write_run(tmp_path / "spread", tiny_checkpoint, served, train=train)
    ran = gpg_vl("train", config, processes=2, timeout=600)
    assert ran.returncode == 0, ran.stderr
    rows = metrics(tmp_path / "spread" / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["grad_norm"] > 0, "nothing new was handed over"
    assert all(row["logp_gap_mean"] < LIMIT for row in rows if not row["step_skipped"])
