"""What the plan says of activations, beside what autograd has kept: counted by hand over a whole policy."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from gpg_vl.algorithms.gpg import gpg
from gpg_vl.algorithms.linear import Inputs
from gpg_vl.model import Model
from gpg_vl.models import tiny
from gpg_vl.models.head import Objective
from gpg_vl.models.layout import Packed, pack
from gpg_vl.models.requests import Score
from gpg_vl.quickstart import scenes
from gpg_vl.types import Example

ANSWER = list(range(40, 140))


def make_model(folder: Path, model_type: str, *, layers: int, blocks: int) -> Model:
    """All sizes different, so that none can stand for another."""
    tokenizer = tiny.tiny_tokenizer(["How many balls are there?"], 384, model_type=model_type)
    config = tiny.tiny_config(
        tokenizer, 384, model_type=model_type, num_hidden_layers=layers, intermediate_size=208
    )
    depth = "depth" if hasattr(config.vision_config, "depth") else "num_hidden_layers"
    setattr(config.vision_config, depth, blocks)
    processor = tiny.tiny_processor(tokenizer, model_type=model_type)
    tiny.save_checkpoint(tiny.tiny_model(config, seed=0), processor, folder)
    return Model.load(folder, device="cpu")


def kept_bytes(model: Model, dtype: torch.dtype) -> tuple[int, Packed]:
    """Of all tensors that a forward pass keeps for its backward pass, weights and their casts left out; and what it was given."""
    weights = {tuple(p.shape) for p in model.policy.parameters()}
    weights |= {shape[::-1] for shape in weights}
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) not in weights:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    picture = scenes.png(Image.effect_noise((224, 196), 90).convert("RGB"))
    example = Example(id="a", images=(picture,), prompt="How many balls are there?", answer="3")
    # one row without padding
    packed = pack([model.encoder().encode(example)], [[ANSWER]], shared_prefix=False)
    inputs = Inputs(weight_K=torch.ones(len(ANSWER)))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        output = model.policy(
            Score(packed=packed, objective=Objective(inputs=inputs, token_loss=gpg().token_loss))
        )
    assert output.loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values()), packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm"]
)
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_a_layer_keeps_what_its_family_says(
    tmp_path: Path, model_type: str, tower: str, dtype: torch.dtype
) -> None:
    """By the difference of four layers to two; what is kept besides is a number or two per token."""
    found = []
    for number in (2, 4):
        sizes = (
            {"layers": number, "blocks": 2} if tower == "text" else {"layers": 2, "blocks": number}
        )
        model = make_model(tmp_path / str(number), model_type, **sizes)
        found.append(kept_bytes(model, dtype))
    (less, packed), (more, _) = found
    counted = (more - less) / 2

    shape = model.policy.family.shape_of(model.policy.model.config)
    kept, rows = (
        (shape.kept, packed.tokens) if tower == "text" else (shape.vision_kept, packed.patches)
    )
    assert rows > 50
    # a CPU computes a norm with a mean in bfloat16, where a GPU makes a copy in float32
    near = 0.1 if tower == "vision" and dtype == torch.bfloat16 else 0.01
    assert counted == pytest.approx(rows * kept.bytes(dtype.itemsize), rel=near)
