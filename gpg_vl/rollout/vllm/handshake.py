"""Checks a trainer makes of its servers: whether they are running, and whether they have the expected model and weights."""

import time
from collections.abc import Sequence

import torch

from gpg_vl.console import say
from gpg_vl.errors import UserError
from gpg_vl.models.load import read_config
from gpg_vl.rollout.engine import EngineLostError, EngineOptions, EngineSetup
from gpg_vl.rollout.vllm.client import Server, ServerGoneError
from gpg_vl.rollout.vllm.protocol import (
    UNTRAINED,
    Description,
    describe_checkpoint,
    describe_shape,
)

POLL_SECONDS = 0.5
SILENT_SECONDS = 5.0
"""Waits shorter than this are not reported."""


def servers_of(options: EngineOptions) -> list[Server]:
    """The servers named in the options. Raises UserError if there are none."""
    if not options.servers:
        raise UserError(
            "rollout.engine is vllm_server, but rollout.servers names none. Start one with gpg-vl serve CHECKPOINT and "
            "give its address: rollout.servers: ['http://127.0.0.1:8000']."
        )
    return [Server(url.rstrip("/")) for url in options.servers]


def wait_for(server: Server, seconds: float) -> None:
    """Wait until the server is ready. Raises EngineLostError if it is not ready within `seconds`."""
    start, was_reported = time.monotonic(), False
    while True:
        try:
            server.get("/health", seconds=10)
        except ServerGoneError as gone:
            waited = time.monotonic() - start
            if waited >= seconds:
                raise EngineLostError(
                    f"No server answers at {server.url} ({gone}); it was waited for {seconds:.0f} seconds "
                    f"(rollout.server_wait). Start it with gpg-vl serve CHECKPOINT, or correct rollout.servers."
                ) from None
        else:
            return

        if waited > SILENT_SECONDS and not was_reported:
            was_reported = True
            say(
                f"waiting for the server {server.url}, {seconds:.0f} seconds at most (rollout.server_wait)",
                error=True,
            )
        time.sleep(POLL_SECONDS)


def describe(server: Server) -> Description:
    """The server's description, which all its workers report equally."""
    answers = server.call("gpg_describe")
    return Description(**answers[0])


def refuse_other_model(server: Server, description: Description, setup: EngineSetup) -> None:
    """Raises UserError if the trainer's weights do not fit the server's model, or if it uses another dtype or input
    form."""
    own = describe_shape(read_config(setup.path, setup.revision))
    differ = [
        f"{name} is {description.shape.get(name)} there and {value} here"
        for name, value in own.items()
        if description.shape.get(name) != value
    ]
    if differ:
        raise UserError(
            f"The server {server.url} has another model: {', '.join(differ)}. The weights of {setup.path} do not fit it. "
            f"Start it with gpg-vl serve {setup.path}, or name another in rollout.servers."
        )

    wanted = str(setup.autocast or torch.float32).removeprefix("torch.")
    if description.dtype != wanted:
        raise UserError(
            f"The server {server.url} computes in {description.dtype}, the trainer in {wanted}: their log-probs would differ. "
            f"Start it with --dtype {wanted}, or set model.dtype to {description.dtype}."
        )

    given = "features" if description.takes_features else "pixels"
    if given != setup.options.images:
        raise UserError(
            f"The server {server.url} was started for {given}, but rollout.images is {setup.options.images}. Start it with "
            f"--images {setup.options.images}, or set rollout.images to {given}."
        )


def refuse_other_weights(servers: Sequence[Server], setup: EngineSetup) -> None:
    """Raises UserError unless the servers have the checkpoint's own weights, because an evaluation does not send any."""
    own = describe_checkpoint(setup.path, setup.revision)
    for server in servers:
        held = weights_of(server)
        if held == UNTRAINED and describe(server).checkpoint == own:
            continue
        origin = "of another checkpoint" if held == UNTRAINED else f"of a training run ({held})"
        raise UserError(
            f"The server {server.url} has weights {origin}, not those of {setup.path}: its answers would be attributed to "
            f"the wrong model. Start it again with gpg-vl serve {setup.path}."
        )


def weights_of(server: Server) -> str:
    """The name of the weights that a server has."""
    name: str = server.get("/weight_info")["weight_version"]
    return name
