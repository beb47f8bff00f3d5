"""Adds the estimated seconds of a step on this device to the plan."""

from dataclasses import replace

import torch

from gpg_vl.training.build import optimizer_maker, weights_dtype
from gpg_vl.training.outline import make_outline
from gpg_vl.training.plan import Plan, vision_mode
from gpg_vl.training.prepare import Prepared
from gpg_vl.training.probe import measure_speed
from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.protocol import ShardingSetup
from gpg_vl.training.speed import estimate_seconds


def with_seconds(prepared: Prepared, device: torch.device) -> Plan:
    """The plan of a run with the seconds of a step on this device. Timing takes about two seconds, less for a small model.

    Only one process is timed; waiting times between processes are not included.
    """
    config, plan = prepared.config, prepared.plan
    outline = make_outline(
        config,
        prepared.processing,
        kernel=plan.kernel,
        vision=vision_mode(config, prepared.processing.family),
        device=device,
    )
    sharding = shardings.get("none")(
        ShardingSetup(
            device=device,
            processes=1,
            is_main=True,
            # offloaded weights are moved part by part, which cannot be timed here
            offload="optimizer" if config.train.offload == "optimizer" else "none",
            weights=weights_dtype(config),
        )
    )
    sharding.wrap(outline.policy, optimizer_maker(config))
    seconds = estimate_seconds(plan.work, measure_speed(outline, plan.work, sharding))

    # an engine in this process gets the free memory
    del outline, sharding
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return replace(plan, seconds=seconds)
