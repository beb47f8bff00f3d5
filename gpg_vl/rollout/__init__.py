"""Engines that answer prompts, by name. An engine is made by a function from an `EngineSetup`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpg_vl.registry import Registry

if TYPE_CHECKING:  # names can be asked for without torch
    from gpg_vl.models.families import Family
    from gpg_vl.rollout.engine import Engine, EngineOptions, EngineSetup

engines: "Registry[Callable[[EngineSetup], Engine]]" = Registry(
    "rollout engine",
    builtin={
        "native": "gpg_vl.rollout.native:NativeEngine",
        "vllm": "gpg_vl.rollout.vllm.engine:VllmEngine",
        "vllm_server": "gpg_vl.rollout.vllm.server:ServerEngine",
    },
    entry_point_group="gpg_vl.engines",
)

DEFAULT = "native"
"""The engine of whoever does not name one: it needs nothing but the policy."""


def refuse_engine(name: str, family: "Family", options: "EngineOptions", processes: int) -> None:
    """Raises UserError for a name that nobody has, and for an engine that says it cannot work here.

    An engine says so in a function `check(family, options, processes)` next to its own, which loads no weights.
    """
    check = getattr(engines.get(name), "check", None)
    if check is not None:
        check(family, options, processes)
