"""What the policy promises of its calls, held against a real wrapper: torch's fully_shard, a group of weights per layer.

Two gloo processes compute the same micro-batches. Wrapped or not, joined or in chunks, with checkpointing or without, the
gradient is the same: everything that touches a weight is a call of the module, and each backward is an ordinary one.
"""

import json
from pathlib import Path

from runs import run_python

WORKER = """
import faulthandler, json, sys
faulthandler.dump_traceback_later(200, exit=True)
sys.path[:0] = [{tests!r}]
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from conftest import scene_example
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.model import Model
from gpg_vl.models.head import Objective
from gpg_vl.models.phases import forward_backward
from gpg_vl.training.micro_batch import Layout, count_groups, make_micro_batches, make_step_batch
from gpg_vl.types import Completion, Group

REWARDS = [(1.0, 0.0, 0.3), (0.2, 0.7, 0.0)]
TOKENS = [[(5, 9, 300, 7), (11,), (12, 13)], [(40, 41, 42, 43, 44), (50, 51), (60, 61, 62)]]


def gradient(checkpoint, *, shard, tokens_per_pass, checkpointing):
    model = Model.load(checkpoint, device="cpu")
    policy, family = model.policy.train(), model.policy.family
    if checkpointing:
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={{"use_reentrant": False}})
    if shard:
        mesh = init_device_mesh("cpu", (2,))
        for module in [*family.layers(policy.model), *family.vision_blocks(policy.model), policy]:
            fully_shard(module, mesh=mesh)

    encoder = model.encoder()
    groups = []
    for number, (rewards, tokens) in enumerate(zip(REWARDS, TOKENS)):
        example = scene_example(number)
        completions = tuple(
            Completion(token_ids=t, logprobs=(-1.0,) * len(t), text="", finish_reason="stop") for t in tokens
        )
        groups.append(Group(example=example, prompt=encoder.encode(example), completions=completions, rewards=rewards))

    total = sum(len(t) for group in TOKENS for t in group)
    old_K = torch.linspace(-7.0, -4.5, total)  # ratios on both sides of 1, some of them clipped
    algorithm = grpo(kl_beta=0.1)
    batch = make_step_batch(
        groups, counts=count_groups(groups), reward_std=None, max_new_tokens=8,
        old_logp_K=old_K, reference_logp_K=old_K.flip(0),
    )
    layout = Layout(tokens_per_pass=tokens_per_pass, shared_prefix=True)
    chunks = []
    for micro_batch in make_micro_batches(groups, algorithm.credit(batch), layout):
        chunks.append(len(micro_batch.packed.chunks))
        objective = Objective(micro_batch.inputs, algorithm.token_loss)
        forward_backward(
            policy, micro_batch.packed, objective, backward=lambda loss, last: loss.backward(), autocast=nullcontext
        )
    whole = [p.grad.full_tensor() if shard else p.grad for p in policy.parameters()]
    return torch.cat([g.flatten() for g in whole]), chunks


torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
found = []
for tokens_per_pass, checkpointing in ((10**6, False), (1, False), (100, True)):
    keys = dict(tokens_per_pass=tokens_per_pass, checkpointing=checkpointing)
    plain, chunks = gradient(sys.argv[1], shard=False, **keys)
    sharded, _ = gradient(sys.argv[1], shard=True, **keys)
    error = float((sharded - plain).norm() / plain.norm())
    found.append({{"chunks": chunks, "error": error, "norm": float(plain.norm())}})
if torch.distributed.get_rank() == 0:
    Path(sys.argv[2]).write_text(json.dumps(found))
torch.distributed.destroy_process_group()
"""


def test_sharded_layers_give_the_gradient_of_whole_ones(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    script, out = tmp_path / "worker.py", tmp_path / "found.json"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent)))
    result = run_python(script, tiny_checkpoint, out, processes=2)
    assert result.returncode == 0, result.stderr

    joined, one_by_one, some = json.loads(out.read_text())
    assert joined["chunks"] == [1]
    assert one_by_one["chunks"] == [3, 3]
    assert max(some["chunks"]) > 1
    for case in (joined, one_by_one, some):
        assert case["norm"] > 1e-2, "the comparison of two zero gradients would prove nothing"
        assert case["error"] < 1e-6, case
