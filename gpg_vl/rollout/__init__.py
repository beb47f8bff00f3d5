"""The rollout engines by name. Each name belongs to a function that makes an engine from an `EngineSetup`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpg_vl.registry import Registry

if TYPE_CHECKING:  # the names must be available without importing torch
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
"""The default engine, which needs nothing but the policy."""


def refuse_engine(name: str, family: "Family", options: "EngineOptions", processes: int) -> None:
    """Raises UserError for an unknown engine, and for an engine that cannot work here.

    Each engine checks this in its own `check(family, options, processes)`, which loads no weights.
    """
    check = getattr(engines.get(name), "check", None)
    if check is not None:
        check(family, options, processes)
