"""Numbers that take less memory: what weights, gradients and moments are held in, and what that costs."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from runs import environment, gpg_vl, metrics, write_config
from safetensors.torch import load_file
from test_learner import adamw, make_groups, make_learner, weights
from test_phases import only, with_adapters
from test_policy import relative, score, weighted, weights_of
from torch import Tensor

from gpg_vl.algorithms.gpg import gpg
from gpg_vl.config import parse_config
from gpg_vl.errors import UserError
from gpg_vl.model import Model
from gpg_vl.models.adapters import merged_weights
from gpg_vl.models.families import Family, families
from gpg_vl.models.layout import pack
from gpg_vl.models.load import load_model
from gpg_vl.models.policy import Policy
from gpg_vl.models.reference import make_reference
from gpg_vl.models.requests import Score
from gpg_vl.models.save import save_model
from gpg_vl.models.weight_precision import hold_matrices, is_matrix
from gpg_vl.training.adamw import NarrowAdamW, round_stochastically
from gpg_vl.training.eight_bit import decode, encode, refuse_without_package, scale_shape
from gpg_vl.training.memory import Sizes, Widths, weight_memory, widths
from gpg_vl.training.plan import count_parameters
from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.protocol import ShardingSetup
from gpg_vl.types import Group

BF16 = torch.bfloat16
Prepare = Callable[[Any, Family], None]


def without(*parts: str) -> Prepare:
    def freeze(model: Any, family: Family) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(family.part_of(name) not in parts)

    return freeze


FROZEN: dict[str, Prepare] = {
    "vision": without("vision", "merger"),
    "language": without("language"),
    "all but the merger": only(".visual.merger."),
    "all but adapters": with_adapters,
}


@pytest.fixture(scope="module")
def groups(tiny_checkpoint: Path) -> list[Group]:
    return make_groups(tiny_checkpoint)


@pytest.fixture(scope="module")
def released(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint with numbers that bfloat16 has, as released ones are."""
    folder = tmp_path_factory.mktemp("released")
    for file in tiny_checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model = load_model(str(tiny_checkpoint))
    rounded = ((name, t.to(BF16).float()) for name, t in merged_weights(model))
    save_model(model, rounded, folder)
    return folder


def load(checkpoint: Path, prepare: Prepare, *, held: bool) -> Policy:
    """Under bfloat16; `held` says whether frozen matrices are as they ever are, or float32 for comparison."""
    if held:
        return Model.load(checkpoint, device="cpu", dtype="bfloat16", prepare=prepare).policy
    return Model.load(checkpoint, device="cpu", prepare=prepare).policy


def step(policy: Policy, groups: list[Group], tokens_per_pass: int = 90) -> tuple[Any, Tensor]:
    """One step of plain descent under autocast: its report, and how the trained weights have moved."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    learner = make_learner(policy, gpg(), tokens_per_pass=tokens_per_pass, autocast=BF16)
    report = learner.update(groups, step=0)
    moved = [p.detach().float() - b.float() for p, b in zip(trained, before, strict=True)]
    return report, torch.cat([m.flatten() for m in moved])


# ---- what is frozen


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_weight_is_bfloat16_and_the_numbers_are_those_of_autocast(
    released: Path, groups: list[Group], name: str
) -> None:
    """Bit for bit, in loss, norm, entropy and gradient."""
    held, plain = (load(released, FROZEN[name], held=h) for h in (True, False))
    for parameter in held.parameters():
        is_rounded = is_matrix(parameter) and not parameter.requires_grad
        assert parameter.dtype == (BF16 if is_rounded else torch.float32)

    (ours, moved), (theirs, expected) = step(held, groups), step(plain, groups)
    assert (ours.loss, ours.grad_norm, ours.entropy) == (
        theirs.loss,
        theirs.grad_norm,
        theirs.entropy,
    )
    assert torch.equal(moved, expected)
    assert expected.norm() > 0


def test_rounding_a_checkpoint_of_float32_costs_no_more_than_bfloat16_itself(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """Only its embeddings are rounded in another place than autocast would; measured against float32 throughout."""
    prepare = FROZEN["all but adapters"]
    exact = load(tiny_checkpoint, prepare, held=False)
    learner = make_learner(exact, gpg())
    before = weights(exact)
    learner.update(groups, step=0)
    expected = weights(exact) - before

    errors = {}
    for held in (True, False):
        _, moved = step(load(tiny_checkpoint, prepare, held=held), groups)
        errors[held] = relative(moved, expected[expected != 0])
    assert errors[True] == pytest.approx(errors[False], rel=0.2)
    assert errors[False] < 0.03


def test_the_reference_computes_what_the_policy_computes(
    released: Path, groups: list[Group]
) -> None:
    """It has not moved yet, so nothing may lie between them; its positions above all are those of float32."""
    policy = load(released, without(), held=True)
    reference = make_reference(policy, BF16)
    packed = pack(
        [g.prompt for g in groups], [[c.token_ids for c in g.completions] for g in groups]
    )
    with torch.autocast("cpu", BF16):
        ours = reference(Score(packed=packed)).logp_K
        theirs = score(policy, packed).logp_K
    assert torch.equal(ours, theirs)


def test_what_is_frozen_is_saved_as_it_is_held(released: Path, tmp_path: Path) -> None:
    policy = load(released, without("vision", "merger"), held=True)
    save_model(policy.model, merged_weights(policy.model), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.embed_tokens.weight"].dtype == torch.float32
    assert stored["visual.blocks.0.attn.qkv.weight"].dtype == BF16
    assert stored["visual.blocks.0.norm1.weight"].dtype == torch.float32
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "float32", (
        "whoever reads all in one dtype must not round what is trained"
    )
    before, after = (load_model(str(f)).state_dict() for f in (released, tmp_path))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_small_change_of_adapters_is_not_lost_beside_the_weight(
    released: Path, tmp_path: Path
) -> None:
    """Added to a bfloat16 weight and rounded, it would move a hundredth of the numbers."""
    policy = load(released, with_adapters, held=True)
    layer = policy.model.model.language_model.layers[0].mlp.up_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.mul_(1e-4)
        change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2.0
    assert change.abs().max() < 2**-9 * layer.base_layer.weight.abs().max()

    save_model(policy.model, merged_weights(policy.model), tmp_path)
    merged = load_model(str(tmp_path)).requires_grad_(False).model.language_model
    base = layer.base_layer.weight.float()
    assert relative(merged.layers[0].mlp.up_proj.weight - base, change) < 1e-2


# ---- what is trained, in bfloat16


def in_bfloat16(policy: Policy) -> Policy:
    """As a run with `model.weights: bfloat16` on one process holds it."""
    setup = ShardingSetup(device=torch.device("cpu"), processes=1, is_main=True, weights=BF16)
    shardings.get("none")(setup).wrap(policy, adamw)
    return policy


def gradients_of(policy: Policy, groups: list[Group]) -> list[list[Tensor]]:
    """The gradient of each of these groups, by weight."""
    found = []
    for group in groups:
        packed = pack([group.prompt], [[c.token_ids for c in group.completions]])
        policy.zero_grad(set_to_none=True)
        with torch.autocast("cpu", BF16):
            loss = policy(Score(packed=packed, objective=weighted(weights_of(packed)))).loss
        loss.backward()
        found.append([p.grad.clone() for p in policy.parameters() if p.grad is not None])
    return found


def test_rounding_takes_one_of_the_two_neighbours_and_is_right_on_average() -> None:
    """1 + 2**-9 is a quarter of the way from 1 to the next number of bfloat16, 1 + 2**-7."""
    generator = torch.Generator().manual_seed(0)
    for sign in (1.0, -1.0):
        rounded = round_stochastically(torch.full((40000,), sign * (1 + 2**-9)), generator)
        assert set(rounded.tolist()) == {sign, sign * (1 + 2**-7)}
        up = (rounded != sign).double().mean()
        assert up == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 40000) ** 0.5)

    exact = torch.randn(1000, generator=generator).to(BF16)
    assert torch.equal(round_stochastically(exact.float(), generator), exact)


@pytest.fixture(scope="module")
def real_gradients(tiny_checkpoint: Path, groups: list[Group]) -> list[list[Tensor]]:
    policy = load(tiny_checkpoint, without(), held=False)
    return gradients_of(policy, groups[:7])


def test_a_hundred_small_steps_move_bfloat16_weights_as_far_as_float32(
    released: Path, real_gradients: list[list[Tensor]]
) -> None:
    """At a rate of 1e-6: the share of float32's movement that the weights make, and what is left of it by rounding to the
    nearest number, which undoes almost every step."""
    policies = {
        name: load(released, without(), held=True) for name in ("wide", "random", "nearest")
    }
    for name in ("random", "nearest"):
        hold_matrices(policies[name].parameters(), BF16)
    optimizers = {
        "wide": torch.optim.AdamW(policies["wide"].parameters(), lr=1e-6, weight_decay=0.0),
        "random": NarrowAdamW(
            [{"params": list(policies["random"].parameters()), "lr": 1e-6}], betas=(0.9, 0.999)
        ),
        "nearest": torch.optim.AdamW(policies["nearest"].parameters(), lr=1e-6, weight_decay=0.0),
    }
    before = [p.detach().clone() for p in policies["wide"].parameters()]
    typical = torch.cat([p.flatten() for p in before if is_matrix(p)]).abs().median()
    assert 0.005 < typical < 0.05

    for step in range(100):
        for name, optimizer in optimizers.items():
            gradient = real_gradients[step % len(real_gradients)]
            for parameter, g in zip(policies[name].parameters(), gradient, strict=True):
                parameter.grad_dtype = None
                parameter.grad = g.to(BF16) if name == "nearest" and is_matrix(g) else g
            optimizer.step()

    def moved(name: str) -> Tensor:
        pairs = zip(policies[name].parameters(), before, strict=True)
        return torch.cat([(p.detach() - b).flatten() for p, b in pairs if is_matrix(b)]).double()

    # towards zero and away from it apart: a bias of the rounding would cancel out over both
    wide, start = moved("wide"), torch.cat([b.flatten() for b in before if is_matrix(b)])
    for some in (wide * start > 0, wide * start < 0):
        way = wide * some
        share = {name: float(moved(name) @ way / (way @ way)) for name in policies}
        assert share["random"] == pytest.approx(1.0, abs=0.02)
        assert share["nearest"] < 0.1


def test_moments_in_bfloat16_would_never_fade() -> None:
    """Which is why they are not: a thousandth is less than half of what lies between two of its numbers."""
    moment = torch.full((4,), 0.3, dtype=BF16)
    assert torch.equal(moment * 0.999, moment)

    weight = torch.nn.Parameter(torch.zeros(2, 4, dtype=BF16))
    optimizer = NarrowAdamW([{"params": [weight], "lr": 1e-3}], betas=(0.9, 0.999))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    second = optimizer.state[weight]["exp_avg_sq"]
    assert torch.allclose(second, torch.full((2, 4), 0.001 * 0.999), rtol=1e-5)


def test_gradients_of_many_micro_batches_add_up_in_float32(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    """Sixteen of them. In the dtype of the weights the sum would be off by more than a thousandth."""
    policy = in_bfloat16(load(tiny_checkpoint, without(), held=True))
    parts = gradients_of(policy, groups[:7]) * 3
    parts = parts[:16]
    expected = torch.cat(
        [sum(g.double() for g in of_one).flatten() for of_one in zip(*parts, strict=True)]
    )

    def summed(dtype: torch.dtype) -> Tensor:
        total = [torch.zeros_like(g, dtype=dtype) for g in parts[0]]
        for part in parts:
            total = [t + g.to(dtype) for t, g in zip(total, part, strict=True)]
        return torch.cat([t.double().flatten() for t in total])

    policy.zero_grad(set_to_none=True)
    for group in [*groups[:7], *groups[:7], *groups[:2]]:
        packed = pack([group.prompt], [[c.token_ids for c in group.completions]])
        with torch.autocast("cpu", BF16):
            loss = policy(Score(packed=packed, objective=weighted(weights_of(packed)))).loss
        loss.backward()
    ours = torch.cat([p.grad.double().flatten() for p in policy.parameters() if p.grad is not None])

    assert all(p.grad.dtype == torch.float32 for p in policy.parameters() if p.grad is not None)
    assert relative(ours, expected) < 1e-6
    assert relative(summed(BF16), expected) > 1e-3


# ---- moments of a byte


def trained_by(
    make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    checkpoint: Path,
    gradients: list[list[Tensor]],
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """How far each weight has moved after ten steps of these gradients in turn."""
    parameters = list(load(checkpoint, without(), held=False).parameters())
    before = [p.detach().clone() for p in parameters]
    optimizer = make(parameters)
    for step in range(10):
        for parameter, gradient in zip(parameters, gradients[step % len(gradients)], strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    moved = [p.detach() - b for p, b in zip(parameters, before, strict=True)]
    return moved, optimizer


def narrow(bytes_of_moments: int) -> Callable[[list[torch.nn.Parameter]], NarrowAdamW]:
    return lambda parameters: NarrowAdamW(
        [{"params": parameters, "lr": 1e-3, "weight_decay": 0.1}],
        betas=(0.9, 0.999),
        bytes_of_moments=bytes_of_moments,
    )


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def test_steps_are_those_of_torch_and_bytes_cost_a_few_hundredths(
    tiny_checkpoint: Path, real_gradients: list[list[Tensor]]
) -> None:
    torchs = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)  # noqa: E731
    expected = flat(trained_by(torchs, tiny_checkpoint, real_gradients)[0])
    wide, bytes_ = (flat(trained_by(narrow(n), tiny_checkpoint, real_gradients)[0]) for n in (4, 1))
    assert relative(wide, expected) < 1e-5
    assert 1e-4 < relative(bytes_, expected) < 0.1


def test_codes_are_those_of_torchaos_own_optimizer() -> None:
    """Where rows are whole blocks. Its weights differ by the rounding of the rate."""
    from torchao.optim import AdamW8bit

    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.full((16, 512), 0.02)) for _ in range(2))
    narrow_ = narrow(1)([ours])
    reference = AdamW8bit([theirs], lr=1e-3, weight_decay=0.1)
    with torch.compiler.set_stance("force_eager"):
        for _ in range(5):
            gradient = torch.randn(16, 512, generator=generator)
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            narrow_.step()
            reference.step()
    for name in ("exp_avg", "exp_avg_sq"):
        state = narrow_.state[ours]
        assert torch.equal(state[name], reference.state[theirs][name].codes)
        assert torch.equal(state[f"{name}_scale"].flatten(), reference.state[theirs][name].scale)
    assert torch.allclose(ours, theirs, rtol=1e-4)


def test_a_row_is_coded_whatever_its_length() -> None:
    """The error of a block is at most half the widest gap between its codes, 0.7 hundredths of its largest number."""
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((3, 256), (2, 300), (5, 64), (0, 300), (1, 1)):
        numbers = torch.randn(rows, columns, generator=generator)
        codes, scales = encode(numbers, signed=True)
        assert codes.shape == numbers.shape
        assert tuple(scales.shape) == scale_shape(numbers.shape)
        if rows:
            error = (decode(codes, scales, signed=True) - numbers).abs().max()
            assert error <= 0.0071 * numbers.abs().max()


# ---- what the plan says of it


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("frozen", [(), ("vision", "merger")])
def test_the_plan_counts_what_is_held(
    tiny_checkpoint: Path, weights: str, optimizer: str, frozen: tuple[str, ...]
) -> None:
    """Byte by byte, after a step: small matrices and rows that end within a block included."""
    config = parse_config(
        tree(
            model={"path": str(tiny_checkpoint), "dtype": "bfloat16", "weights": weights}
            | {"freeze": list(frozen)},
            train={"optimizer": optimizer},
        ),
        "test",
    )
    family = families.get("qwen2_vl")
    sizes = replace(count_parameters(config, family), widths=widths(config))
    policy = load(tiny_checkpoint, without(*frozen), held=True)
    dtype = BF16 if weights == "bfloat16" else None
    setup = ShardingSetup(device=torch.device("cpu"), processes=1, is_main=True, weights=dtype)
    sharding = shardings.get("none")(setup)
    held: list[torch.optim.Optimizer] = []

    def make(policy: Policy) -> torch.optim.Optimizer:
        held.append(adamw(policy, bytes_of_moments=4 if optimizer == "adamw" else 1))
        return held[0]

    sharding.wrap(policy, make)
    sharding.clip_and_step(1.0, loss_is_finite=True)

    states = [t for s in held[0].state.values() for k, t in s.items() if k != "step"]
    told = weight_memory(sizes)
    assert told["weights"] == sum(p.nbytes for p in policy.parameters())
    assert told["gradients"] == sum(
        p.grad.nbytes for p in policy.parameters() if p.grad is not None
    )
    assert told["optimizer"] == sum(t.nbytes for t in states)


def test_the_plan_of_weights_that_are_spread() -> None:
    """By hand, of four processes: a frozen tower of 200 numbers that each holds, and 800 that are trained."""
    narrow_ = Widths(frozen=2.0, trained=2.0, codes=True, waiting=4.0)
    sizes = Sizes(
        parameters=1000,
        trained=800,
        vision=200,
        trained_vision=0,
        layers=(300, 300),
        coded=800,
        blocks=4,
        widths=narrow_,
    )
    told = shardings.get("fsdp2").memory(sizes, 4)
    assert told == {
        "weights": 4 * 800 / 4 + 2 * 200,
        "gradients": 4 * 800 / 4 + 4 * 800,
        "optimizer": 2 * (800 + 4 * 4) / 4,
        "gathered layers": 2 * (200 + 2 * 300) + 2 * (200 + 300),
    }


# ---- what is refused


def tree(**sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    needed: dict[str, dict[str, Any]] = {
        "model": {"path": "x"},
        "data": {"train": "x"},
        "rewards": {"weights": {"choice": 1.0}},
        "output": {"folder": "x"},
    }
    return needed | {name: needed.get(name, {}) | keys for name, keys in sections.items()}


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (
            {"model": {"weights": "bfloat16"}},
            r"weights is bfloat16, but dtype is float32.*need dtype bfloat16\. Set dtype to bfloat16",
        ),
        (
            {"train": {"optimizer": "adamw_8bit", "sharding": "zero2"}},
            r"adamw_8bit.*zero2 DeepSpeed keeps.*none and fsdp2\. Set train\.optimizer to adamw",
        ),
        (
            {"train": {"defer_reduction": True}},
            r"train\.sharding is none.*only with fsdp2\. Set train\.defer_reduction to false",
        ),
        (
            {
                "train": {"defer_reduction": True, "sharding": "fsdp2"},
                "model": {"freeze": ["language"]},
            },
            r"language model frozen.*Set train\.defer_reduction to false",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(sections: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_config(tree(**sections), "x.yaml")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"adamw_8bit.*torchao.*pip install 'gpg_vl\[torchao\]'"):
        refuse_without_package()


# ---- whole runs


def run(folder: Path, checkpoint: Path, model: dict[str, Any], train: dict[str, Any]) -> Path:
    folder.mkdir()
    config = write_config(
        folder,
        checkpoint,
        model={"dtype": "bfloat16", **model},
        train={"steps": 3, "prompts_per_step": 4, **train},
    )
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr
    assert "torchao" not in result.stderr or train.get("optimizer") is None
    return folder


@pytest.fixture(scope="module")
def narrow_run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps with everything in as few bytes as there may be."""
    return run(
        tmp_path_factory.mktemp("runs") / "narrow",
        tiny_checkpoint,
        {"weights": "bfloat16"},
        {"optimizer": "adamw_8bit"},
    )


def test_answers_are_those_of_the_weights_that_are_trained(
    narrow_run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The gap between engine and trainer is that of a run with float32 weights, before the first step and after others.

    A step's gap is a few tokens that bfloat16 rounds the other way, or none, so the means over the steps are compared.
    """
    wide = run(tmp_path / "wide", tiny_checkpoint, {}, {})
    ours, theirs = metrics(narrow_run / "run"), metrics(wide / "run")
    assert len(ours) == 3
    our_gaps, their_gaps = ([row["logp_gap_mean"] for row in rows] for rows in (ours, theirs))
    assert min(our_gaps) > 0
    assert fmean(our_gaps) < 3 * fmean(their_gaps)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=0.1)


def test_a_run_goes_on_bit_for_bit(narrow_run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What random numbers a run has drawn before makes no difference to how its weights are rounded."""
    stopped = run(
        tmp_path / "stopped",
        tiny_checkpoint,
        {"weights": "bfloat16"},
        {"optimizer": "adamw_8bit", "steps": 1},
    )
    result = gpg_vl("train", stopped / "config.yaml", "train.steps=3", "--resume")
    assert result.returncode == 0, result.stderr

    def drop_paths(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if not k.startswith("reward/")} for row in rows]

    ours, theirs = (drop_paths(metrics(folder / "run")) for folder in (stopped, narrow_run))
    assert ours == theirs
    a, b = (
        load_file(folder / "run/checkpoints/step-000003/model/model.safetensors")
        for folder in (stopped, narrow_run)
    )
    assert a["model.embed_tokens.weight"].dtype == BF16
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_other_packages_say_nothing_between_our_lines() -> None:
    """transformers and peft import torchao where it is there, which tells of kernels that do not load."""
    code = (
        "import gpg_vl.models.load; from gpg_vl.models.torchvision_shim import ensure_torchvision; "
        "ensure_torchvision(); import peft, sys; print('torchao' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "True"
    assert result.stderr == ""
