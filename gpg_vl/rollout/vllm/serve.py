"""`gpg-vl serve`: start a vLLM server that accepts our encoder's prompts and weights from a trainer."""

import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import torch

from gpg_vl.console import say
from gpg_vl.errors import UserError
from gpg_vl.models.load import load_processing
from gpg_vl.rollout.engine import EngineOptions
from gpg_vl.rollout.vllm.compatibility import child_environment, refuse_vllm
from gpg_vl.rollout.vllm.options import engine_arguments
from gpg_vl.rollout.vllm.protocol import NCCL, SHARED_MEMORY

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MEMORY = 0.9
"""Default share of a GPU's memory that a server uses. It is high because no training runs on the same GPU."""


def serve(
    path: str,
    options: EngineOptions,
    *,
    host: str,
    port: int,
    data_parallel: int,
    dtype: Literal["float32", "bfloat16"],
    revision: str | None,
) -> NoReturn:
    """Replace this process with the server. Raises UserError before that if something is wrong."""
    family = load_processing(path, revision).family
    refuse_vllm(family)
    refuse_taken_port(host, port)

    forward = None if dtype == "float32" else torch.bfloat16
    arguments = engine_arguments(options, path=path, revision=revision, dtype=forward)
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.launchers.api_server.entry",
        *to_flags({**arguments, **server_arguments(host, port, data_parallel)}),
    ]
    say(describe_start(path, host, port, data_parallel, options))
    os.execve(sys.executable, command, {**os.environ, **server_environment()})


def server_arguments(host: str, port: int, data_parallel: int) -> dict[str, Any]:
    """Arguments that a server needs in addition to those of an engine."""
    transport = NCCL if torch.cuda.is_available() else SHARED_MEMORY
    return {
        "host": host,
        "port": port,
        "data_parallel_size": data_parallel,
        "enable_scale_out": True,
        "worker_extension_cls": "gpg_vl.rollout.vllm.worker.Served",
        "weight_transfer_config": {"backend": transport},
        "disable_uvicorn_access_log": True,
    }


def server_environment() -> dict[str, str]:
    """The server's environment. vLLM accepts requests for weight updates and pauses only in its development mode."""
    return {**child_environment(), "VLLM_SERVER_DEV_MODE": "1"}


def to_flags(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of vLLM's engine as its command line writes them."""
    flags = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        match value:
            case True:
                flags.append(flag)
            case False:
                flags.append("--no-" + flag.removeprefix("--"))
            case dict():
                flags += [flag, json.dumps(value)]
            case _:
                flags += [flag, str(value)]
    return flags


def refuse_taken_port(host: str, port: int) -> None:
    """Raises UserError if the address cannot be listened on."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"The server cannot listen on {host}:{port}: {error.strerror or error}. Give another --port, or stop the "
                f"program that uses it (perhaps a server of an earlier run)."
            ) from None


def describe_start(
    path: str, host: str, port: int, data_parallel: int, options: EngineOptions
) -> str:
    """The text that is printed at the start: what is served, and how a config refers to it."""
    copies = data_parallel * options.vllm_tensor_parallel
    lines = [
        f"serving {path} with {data_parallel} engine(s) on {copies} device(s); loading takes a minute or more",
        "in the config of a run, or as options of gpg_vl.eval:",
        f"  rollout.engine=vllm_server rollout.servers=['http://{host}:{port}']"
        + (f" rollout.images={options.images}" if options.images != "pixels" else ""),
    ]
    if host not in LOOPBACK:
        lines.append(
            f"WARNING: {host} can be reached from outside. Anyone who can reach it can replace the weights and call the "
            f"server's workers. Use it only on a private network."
        )
    return "\n".join(lines)
