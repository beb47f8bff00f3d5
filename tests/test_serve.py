"""`gpg-vl serve` up to the moment it becomes vLLM, and how a trainer talks to a server; neither needs vLLM."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import write_config

from gpg_vl.cli import main
from gpg_vl.config import load_config
from gpg_vl.errors import UserError
from gpg_vl.rollout.engine import EngineLostError, EngineOptions
from gpg_vl.rollout.vllm import serve as module
from gpg_vl.rollout.vllm import transfer
from gpg_vl.rollout.vllm.client import Server, ServerGoneError, ServerRefusedError
from gpg_vl.rollout.vllm.handshake import wait_for
from gpg_vl.rollout.vllm.options import engine_arguments
from gpg_vl.rollout.vllm.protocol import FOLDER, PREFIX, Description, host_name
from gpg_vl.rollout.vllm.serve import describe_start, refuse_taken_port, to_flags
from gpg_vl.rollout.vllm.transfer import SharedMemory, choose_transfer, process_name
from gpg_vl.training.prepare import prepare

# ---- the command


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_port_that_is_taken_is_refused(taken: int) -> None:
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{taken}.*another --port"):
        refuse_taken_port("127.0.0.1", taken)


def test_a_free_port_is_taken_as_it_is(taken: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    refuse_taken_port("127.0.0.1", free)


@pytest.mark.parametrize(
    "flags,said",
    [
        (["--data-parallel", "0"], "--data-parallel is 0"),
        (["--tensor-parallel", "-1"], "--tensor-parallel is -1"),
        (["--slots", "0"], "--slots is 0"),
        (["--memory", "1.5"], "--memory is 1.5"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "somewhere", *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_checkpoint_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path / "nothing")]) == 2
    assert "has no config.json" in capsys.readouterr().err


def test_the_command_becomes_the_server(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process is replaced: signals reach vLLM, and its exit code is the command's."""
    became: dict[str, Any] = {}

    def become(program: str, command: list[str], environment: dict[str, str]) -> None:
        became.update(command=command, environment=environment)
        raise SystemExit(0)

    monkeypatch.setattr(module, "refuse_vllm", lambda family: None)
    monkeypatch.setattr(module.os, "execve", become)
    with pytest.raises(SystemExit):
        main(["serve", str(tiny_checkpoint), "--port", "18999", "--images", "features"])

    command = became["command"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--model") + 1] == str(tiny_checkpoint)
    assert command[command.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert "--no-mm-device-do-normalize" in command
    assert "--enable-mm-embeds" in command
    assert became["environment"]["VLLM_SERVER_DEV_MODE"] == "1"
    assert "children" in became["environment"]["PYTHONPATH"]

    said = capsys.readouterr().out
    assert "rollout.servers=['http://127.0.0.1:18999'] rollout.images=features" in said
    assert "WARNING" not in said


def test_an_open_address_is_warned_of() -> None:
    said = describe_start("x", "0.0.0.0", 8000, 1, EngineOptions())
    assert "WARNING: 0.0.0.0 can be reached from outside" in said


def test_flags_are_vllms_own() -> None:
    assert to_flags({"a_b": True, "c": False, "d": {"image": 1}, "e": 3, "f": "x"}) == [
        "--a-b",
        "--no-c",
        "--d",
        json.dumps({"image": 1}),
        "--e",
        "3",
        "--f",
        "x",
    ]


def test_inside_and_as_a_server_vllm_is_started_alike(tiny_checkpoint: Path) -> None:
    """One function says what it must do; the flags are made of it."""
    options, path = EngineOptions(), str(tiny_checkpoint)
    arguments = engine_arguments(options, path=path, revision=None, dtype=torch.bfloat16)
    flags = to_flags(arguments)
    for name in arguments:
        flag = name.replace("_", "-")
        assert f"--{flag}" in flags or f"--no-{flag}" in flags
    assert flags[flags.index("--dtype") + 1] == "bfloat16"


# ---- the config


def test_a_config_without_servers_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = write_config(tmp_path, tiny_checkpoint, rollout={"engine": "vllm_server"})
    with pytest.raises(UserError, match=r"rollout\.servers names none.*gpg-vl serve"):
        prepare(load_config(file), processes=1, console=None)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "file:///etc/passwd", "http://", "http://a b"])
def test_an_address_that_is_none_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, url: str
) -> None:
    rollout = {"engine": "vllm_server", "servers": [url]}
    with pytest.raises(UserError, match="servers"):
        load_config(write_config(tmp_path, tiny_checkpoint, rollout=rollout))


# ---- talking


class _Answers(BaseHTTPRequestHandler):
    """What each path answers, for the tests of the client alone."""

    def do_GET(self) -> None:
        code = {"/busy": 503, "/broken": 500}.get(self.path, 200)
        body = json.dumps({"said": self.path}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: Any) -> None:
        """Quiet."""


@pytest.fixture
def answering() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_is_gone_and_one_that_refuses_are_told_apart(answering: str) -> None:
    server = Server(answering)
    assert server.get("/fine") == {"said": "/fine"}
    with pytest.raises(ServerRefusedError, match=r"answers 500 to /broken: .*said"):
        server.get("/broken")
    with pytest.raises(ServerGoneError):
        server.get("/busy")
    with pytest.raises(ServerGoneError):
        Server("http://127.0.0.1:9").get("/")


def test_a_proxy_of_the_environment_is_not_asked(
    answering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Server(answering).get("/fine") == {"said": "/fine"}


def test_waiting_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineLostError, match=r"waited for 1 seconds \(rollout\.server_wait\)"):
        wait_for(Server("http://127.0.0.1:9"), 1.0)


# ---- weights on their way


def described(**changes: Any) -> Description:
    facts: dict[str, Any] = {
        "host": host_name(),
        "dtype": "float32",
        "transport": "gpg_shared_memory",
        "takes_features": False,
        "shape": {},
        "checkpoint": "x",
        "updating": False,
    }
    return Description(**{**facts, **changes})


def test_a_server_of_another_node_without_nccl_is_refused() -> None:
    server = Server("http://elsewhere:1")
    with pytest.raises(UserError, match=r"another node.*shared memory of its own node"):
        choose_transfer(described(host="elsewhere"), server, torch.float32)
    assert isinstance(choose_transfer(described(), server, torch.float32), SharedMemory)


def test_files_hold_all_weights_in_the_engines_dtype_and_go_away() -> None:
    from safetensors.torch import load_file

    tied = torch.randn(4, 3)
    weights = {"a": tied, "b": tied, "c": torch.randn(2).t()}
    shared = SharedMemory(torch.bfloat16)
    shared.prepare(lambda: iter(weights.items()))
    read: dict[str, torch.Tensor] = {}
    for file in shared.files:
        read.update(load_file(file))
    assert read.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(read[name], tensor.bfloat16())

    first = list(shared.files)
    shared.prepare(lambda: iter(weights.items()))
    assert not any(file.exists() for file in first)
    assert all(file.exists() for file in shared.files)
    second = list(shared.files)
    shared.close()
    assert not any(file.exists() for file in second)


def test_what_a_killed_trainer_left_is_removed() -> None:
    space = process_name().partition("-")[0]
    dead = 2**22 + 1  # above the largest process id
    left = [FOLDER / f"{PREFIX}{space}-{dead}-{end}" for end in ("1.safetensors", "run.lock")]
    others = FOLDER / f"{PREFIX}1-{dead}-1.safetensors"
    for file in (*left, others):
        file.write_bytes(b"")
    try:
        SharedMemory(torch.float32)
        assert not any(file.exists() for file in left)
        assert others.exists(), "a container's processes are not seen from here"
    finally:
        others.unlink()


def test_too_little_shared_memory_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer, "save_file", full)
    shared = SharedMemory(torch.float32)
    with pytest.raises(UserError, match=r"do not fit into /dev/shm: .*No space left.*--shm-size"):
        shared.prepare(lambda: iter({"a": torch.zeros(1)}.items()))
    assert not shared.files
