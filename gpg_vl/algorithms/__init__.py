"""Algorithms by name. Each is one file with a factory of keyword arguments that returns an `Algorithm`.

This module imports no torch, so that a config can name algorithms without it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpg_vl.registry import Registry

if TYPE_CHECKING:
    from gpg_vl.algorithms.algorithm import Algorithm

BUILTIN = {
    "gpg": "gpg_vl.algorithms.gpg:gpg",
    "grpo": "gpg_vl.algorithms.grpo:grpo",
    "dr_grpo": "gpg_vl.algorithms.dr_grpo:dr_grpo",
    "dapo": "gpg_vl.algorithms.dapo:dapo",
    "rloo": "gpg_vl.algorithms.rloo:rloo",
    "reinforce": "gpg_vl.algorithms.reinforce:reinforce",
    "reinforce_pp": "gpg_vl.algorithms.reinforce_pp:reinforce_pp",
    "ppo": "gpg_vl.algorithms.ppo:ppo",
    "opo": "gpg_vl.algorithms.opo:opo",
    "remax": "gpg_vl.algorithms.remax:remax",
    "gspo": "gpg_vl.algorithms.gspo:gspo",
    "cispo": "gpg_vl.algorithms.cispo:cispo",
    "sft": "gpg_vl.algorithms.sft:sft",
}

algorithms: Registry[Callable[..., "Algorithm"]] = Registry(
    "algorithm", builtin=BUILTIN, entry_point_group="gpg_vl.algorithms"
)
