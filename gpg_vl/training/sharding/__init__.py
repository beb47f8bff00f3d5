"""Ways to spread weights, gradients and optimizer over processes, by name."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpg_vl.errors import UserError
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


def refuse_critic(name: str) -> None:
    """Raises UserError if the sharding called `name` does not train and keep a critic."""
    if not getattr(shardings.get(name), "trains_critic", False):
        raise UserError(
            f"The algorithm has a critic, a layer beside the model, but train.sharding {name} trains and keeps the model alone. "
            f"Set train.sharding to none, or choose an algorithm without a critic, such as gpg."
        )
