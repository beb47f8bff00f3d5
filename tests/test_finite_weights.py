"""Weights and answers that are no numbers end a run, and are never kept."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from runs import gpg_vl, write_config
from safetensors.torch import load_file, save_file

from gpg_vl.errors import RunError, UserError
from gpg_vl.model import Model
from gpg_vl.rollout.engine import RolloutRequest, refuse_non_finite_answers
from gpg_vl.training.checkpoint import Checkpoints
from gpg_vl.training.finite_weights import NonFiniteWeightsError, check_finite, refuse_non_finite
from gpg_vl.training.identity import Identity
from gpg_vl.training.optimizer import make_adamw
from gpg_vl.training.prompt_source import PromptSource
from gpg_vl.training.row_digests import RowDigests
from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.protocol import ShardingSetup
from gpg_vl.training.state import RunState
from gpg_vl.types import Completion


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_number_among_many_is_found(dtype: torch.dtype, bad: float) -> None:
    good = torch.linspace(-3, 3, 1000).to(dtype)
    broken = good.clone()
    broken[777] = bad
    refuse_non_finite([("a", good), ("ids", torch.arange(3)), ("none", torch.zeros(0))], step=3)
    with pytest.raises(NonFiniteWeightsError, match=r"after step 3 are not finite: b holds NaN"):
        refuse_non_finite([("a", good), ("b", broken)], step=3)
    with pytest.raises(
        UserError, match=r"initial weights are not finite: b has.*model\.path again"
    ):
        refuse_non_finite([("a", good), ("b", broken)], step=0)


def test_the_largest_number_is_a_number() -> None:
    """A sum of them would be none."""
    refuse_non_finite([("a", torch.full((9,), torch.finfo(torch.float32).max))], step=0)


def test_weights_are_looked_at_as_they_come() -> None:
    weights = check_finite([("a", torch.ones(1)), ("b", torch.tensor(torch.nan))], step=1)
    assert next(weights)[0] == "a"
    with pytest.raises(NonFiniteWeightsError):
        next(weights)


def test_no_checkpoint_of_weights_that_are_no_numbers_is_written(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = Model.load(tiny_checkpoint, device="cpu")
    sharding = shardings.get("none")(
        ShardingSetup(device=torch.device("cpu"), processes=1, is_main=True)
    )
    sharding.wrap(model.policy, partial(make_adamw, betas=(0.9, 0.99), weight_decay=0.0))
    rows = RowDigests(texts=b"", pictures=b"")
    checkpoints = Checkpoints(
        tmp_path / "checkpoints",
        metrics=tmp_path / "metrics.jsonl",
        keep=1,
        identity=Identity(settings={}, rows=rows, steps=1, base={}, code={}),
        model=model,
        sharding=sharding,
        source=PromptSource(examples=(), encoder=model.encoder(), seed=0),
        accelerator=Accelerator(cpu=True),
    )
    checkpoints.save(RunState(step=1))
    with torch.no_grad():
        next(iter(model.policy.parameters())).view(-1)[5] = torch.inf
    with pytest.raises(NonFiniteWeightsError, match="these weights were not saved"):
        checkpoints.save(RunState(step=2))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_an_answer_that_was_drawn_from_no_distribution_is_refused() -> None:
    def answer(logprobs: tuple[float, ...]) -> Completion:
        return Completion(
            token_ids=(1,) * len(logprobs), logprobs=logprobs, text="", finish_reason="stop"
        )

    prompt: Any = SimpleNamespace(example_id="row 7")
    request = RolloutRequest(prompt=prompt, draw=0)
    refuse_non_finite_answers([request], [(answer((-0.5, 0.0)), answer(()))])
    with pytest.raises(RunError, match=r"example 'row 7' are not finite"):
        refuse_non_finite_answers([request], [(answer((-0.5,)), answer((-0.5, float("nan"))))])


def break_weights(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if "mlp" in name)
    tensors[name].view(-1)[3] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_base_with_a_nan_is_refused_on_the_command_line(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = break_weights(tiny_checkpoint, tmp_path / "base")
    result = gpg_vl("train", write_config(tmp_path, base))
    assert result.returncode == 2, result.stdout + result.stderr
    assert "The initial weights are not finite" in result.stderr
    assert "Nothing was learnt" not in result.stdout
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_native_engine_of_a_broken_model_is_told_of(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from conftest import scene_example

    from gpg_vl.rollout.sampling import Sampling

    model = Model.load(break_weights(tiny_checkpoint, tmp_path / "base"), device="cpu")
    request = RolloutRequest(prompt=model.encoder().encode(scene_example(0)), draw=0)
    sampling = Sampling(group_size=2, temperature=1.0, max_new_tokens=2, seed=0)
    answers = model.engine().generate([request], sampling)
    with pytest.raises(RunError, match="are not finite"):
        refuse_non_finite_answers([request], answers)
