"""Engines that answer prompts, by name. An engine is made by a function from an `EngineSetup`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpg_vl.registry import Registry

if TYPE_CHECKING:  # names can be asked for without torch
    from gpg_vl.rollout.engine import Engine, EngineSetup

engines: "Registry[Callable[[EngineSetup], Engine]]" = Registry(
    "rollout engine",
    builtin={"native": "gpg_vl.rollout.native:NativeEngine"},
    entry_point_group="gpg_vl.engines",
)

DEFAULT = "native"
"""The engine of whoever does not name one: it needs nothing but the policy."""
