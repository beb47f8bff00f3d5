"""`gpg-vl serve`: its arguments. The implementation is in `serve`, which is imported late because --help must be fast."""

import argparse
from typing import Any

from gpg_vl.errors import UserError

HELP = """\
Start a vLLM server that samples answers for training runs and evaluations. A run sends it new weights after every step.

  gpg-vl serve Qwen/Qwen2-VL-2B-Instruct                          one engine at http://127.0.0.1:8000
  gpg-vl serve runs/mine/base --port 8001 --data-parallel 4       four engines on four GPUs behind one address
  gpg-vl train my.yaml rollout.engine=vllm_server rollout.servers="['http://127.0.0.1:8000']"
  python -m gpg_vl.eval cvbench ... --engine vllm_server --servers http://127.0.0.1:8000

It serves one run at a time. Anyone who can reach its port can replace the weights, so by default it accepts connections only
from this machine (--host)."""


def add_command(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add `serve` to the subcommands of `gpg-vl`. It sets `run`, a function of the parsed arguments."""
    serve = commands.add_parser(
        "serve",
        help="start a vLLM server for training runs and evaluations",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    # what is served, and where
    add = serve.add_argument
    add("checkpoint", help="a folder written by save_pretrained, or a hub name")
    add("--revision", metavar="NAME", help="branch, tag or commit of a hub checkpoint")
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    add("--port", type=int, default=8000, help="default %(default)s")

    # settings that must match the run
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="as model.dtype of the run (default %(default)s)",
    )
    add(
        "--images",
        choices=("pixels", "features"),
        default="pixels",
        help="as rollout.images of the run (default %(default)s)",
    )

    # devices and memory
    add(
        "--data-parallel",
        type=int,
        default=1,
        metavar="N",
        help="number of engines behind the address, each with all weights (default %(default)s)",
    )
    add(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="number of devices that share the weights of one engine (default %(default)s)",
    )
    add(
        "--slots",
        type=int,
        default=128,
        metavar="N",
        help="number of answers that an engine decodes together (default %(default)s)",
    )
    add(
        "--memory",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="share of each GPU's memory, weights included (default %(default)s)",
    )

    serve.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    for name in ("data_parallel", "tensor_parallel", "slots"):
        if getattr(arguments, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} is {getattr(arguments, name)}; it must be at least 1.")
    if not 0 < arguments.memory < 1:
        raise UserError(f"--memory is {arguments.memory}; it is a share, above 0 and below 1.")

    from gpg_vl.rollout.engine import EngineOptions
    from gpg_vl.rollout.vllm.serve import serve

    serve(
        arguments.checkpoint,
        EngineOptions(
            slots=arguments.slots,
            images=arguments.images,
            vllm_memory=arguments.memory,
            vllm_tensor_parallel=arguments.tensor_parallel,
        ),
        host=arguments.host,
        port=arguments.port,
        data_parallel=arguments.data_parallel,
        dtype=arguments.dtype,
        revision=arguments.revision,
    )
