"""Ways to spread weights, gradients and optimizer over processes, by name."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpg_vl.registry import Registry

if TYPE_CHECKING:  # names can be asked for without torch
    from gpg_vl.training.sharding.protocol import Sharding, ShardingSetup

shardings: "Registry[Callable[[ShardingSetup], Sharding]]" = Registry(
    "sharding",
    builtin={
        "none": "gpg_vl.training.sharding.plain:Plain",
        "fsdp2": "gpg_vl.training.sharding.fsdp2:Fsdp2",
        "zero2": "gpg_vl.training.sharding.zero:zero2",
        "zero3": "gpg_vl.training.sharding.zero:zero3",
    },
    entry_point_group="gpg_vl.shardings",
)


def refuse_sharding(name: str, offload: str) -> None:
    """Raises UserError if there is no such sharding, or it cannot do with what was asked of it, as its `check` says."""
    check = getattr(shardings.get(name), "check", None)
    if check is not None:
        check(offload)
