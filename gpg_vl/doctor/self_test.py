"""The self-test: whether training on this machine computes the same log-probs as sampling."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gpg_vl.doctor.findings import Finding
from gpg_vl.doctor.packages import install

LARGEST_GAP = 1e-4
"""Maximum allowed difference between the log-probs of sampling and of training."""


def run_self_test() -> Iterator[Finding]:
    """Write, load and sample a tiny model.

    The log-probs recorded in sampling must equal those of training.
    """
    started = time.perf_counter()
    gap, tokens, device = measure_gap()
    seconds = time.perf_counter() - started
    detail = (
        f"log-probs of {tokens} tokens sampled on {device} differ by {gap:.1e} from training's "
        f"({seconds:.0f} s)"
    )
    found = Finding(
        name="self-test", status="ok", detail=detail, needed_for="training on what was sampled"
    )
    if gap <= LARGEST_GAP:
        yield found
        return

    remedy = (
        "torch and transformers do not compute alike with and without a cache: take the versions that were tested, in the "
        f"project's folder: {install('-r constraints.txt')}"
    )
    detail = f"{detail}; {LARGEST_GAP:g} is allowed"
    yield replace(found, status="problem", detail=detail, remedy=remedy)


def measure_gap() -> tuple[float, int, str]:
    """(largest difference, tokens compared, device) of one group of two on a drawn scene."""
    import torch

    from gpg_vl.model import Model
    from gpg_vl.models import tiny
    from gpg_vl.models.layout import pack
    from gpg_vl.models.load import quiet
    from gpg_vl.models.requests import Score
    from gpg_vl.quickstart import scenes
    from gpg_vl.rollout.engine import RolloutRequest
    from gpg_vl.rollout.sampling import Sampling
    from gpg_vl.types import Example

    row = next(iter(scenes.rows(0, 1)))
    example = Example(
        id="self-test", images=(row["image"]["bytes"],), prompt=row["prompt"], answer=row["answer"]
    )

    # use a checkpoint on disk, to test reading and writing too
    with tempfile.TemporaryDirectory(prefix="gpg_vl_doctor_") as folder, quiet():
        tokenizer = tiny.tiny_tokenizer([row["prompt"]], 384)
        config = tiny.tiny_config(tokenizer, 384, num_hidden_layers=2)
        tiny.save_checkpoint(
            tiny.tiny_model(config, seed=0), tiny.tiny_processor(tokenizer), Path(folder)
        )
        model = Model.load(folder)

    prompt = model.encoder().encode(example)
    sampling = Sampling(group_size=2, temperature=1.0, max_new_tokens=12, seed=0)
    (group,) = model.engine().generate([RolloutRequest(prompt=prompt, draw=0)], sampling)

    device = model.policy.device
    packed = pack([prompt], [[c.token_ids for c in group]]).to(device)
    with torch.no_grad():
        trained_K = model.policy(Score(packed=packed)).logp_K.cpu()
    sampled_K = torch.tensor([logp for c in group for logp in c.logprobs])
    return float((trained_K - sampled_K).abs().max()), len(sampled_K), str(device)
