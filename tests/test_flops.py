"""The cost model against operations that torch counts while the tiny model runs."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import write_config
from test_policy import encoder, new_policy
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.algorithms.gpg import gpg
from gpg_vl.algorithms.grpo import grpo
from gpg_vl.algorithms.linear import Inputs
from gpg_vl.algorithms.remax import remax
from gpg_vl.algorithms.rloo import rloo
from gpg_vl.algorithms.sft import sft
from gpg_vl.config import Config, load_config
from gpg_vl.models.families import families, family_of
from gpg_vl.models.head import Objective
from gpg_vl.models.layout import pack
from gpg_vl.models.load import load_model, read_config
from gpg_vl.models.requests import Score
from gpg_vl.models.shape import Shape
from gpg_vl.quickstart import scenes
from gpg_vl.training.flops import Cost, group_cost, image_forward
from gpg_vl.training.memory import decoding_memory, rollout_memory
from gpg_vl.training.plan import Plan, make_plan
from gpg_vl.types import Example, Prompt

SIZE, LENGTH = 4, 9


def big_prompt(checkpoint: Path, side: int = 280) -> Prompt:
    picture = scenes.png(Image.effect_noise((side, side), 90).convert("RGB"))
    return encoder(checkpoint).encode(
        Example(id="big", images=(picture,), prompt="How many balls are there?", answer="3")
    )


def predicted(
    checkpoint: Path, prompt: Prompt, *, shared: bool, recompute: bool, vision: str
) -> Cost:
    config = read_config(str(checkpoint))
    return group_cost(
        family_of(config.model_type, str(checkpoint)).shape_of(config),
        prompt=prompt.length,
        image_tokens=int(prompt.image_mask_T.sum()),
        completion=LENGTH,
        group_size=SIZE,
        shared=shared,
        recompute=recompute,
        vision=vision,
    )


@pytest.mark.parametrize(
    "family",
    [
        "tiny_checkpoint",
        "newer_checkpoint",
        "deep_checkpoint",
        "tiled_checkpoint",
        "marked_checkpoint",
    ],
)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "recompute,vision", [(False, "trained"), (False, "frozen"), (True, "trained")]
)
def test_predicted_training_operations_are_those_that_are_counted(
    request: pytest.FixtureRequest, family: str, shared: bool, recompute: bool, vision: str
) -> None:
    """Within a tenth. With recomputation within a fifth: the last product of a layer is not needed again and is left out."""
    checkpoint: Path = request.getfixturevalue(family)
    # the model halves what a kernel without masks computes of a long prompt's attention
    prompt = big_prompt(checkpoint, side=168 if family == "tiled_checkpoint" else 280)
    policy = new_policy(checkpoint, checkpointing=recompute)
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(vision == "trained" or policy.family.part_of(name) == "language")
    packed = pack([prompt], [[tuple(range(5, 5 + LENGTH))] * SIZE], shared_prefix=shared)
    # the counter knows no fused attention of a CPU
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective = Objective(Inputs(torch.ones(SIZE * LENGTH)), gpg().token_loss)
        policy(Score(packed=packed, objective=objective)).loss.backward()
    cost = predicted(checkpoint, prompt, shared=shared, recompute=recompute, vision=vision)
    assert counter.get_total_flops() == pytest.approx(cost.train, rel=0.2 if recompute else 0.1)
    assert cost.tokens == policy.work.tower_tokens
    assert cost.patches == 2 * policy.work.vision_patches


def test_memory_in_the_plan_is_that_of_one_process(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """By hand: 6 groups of 3 answers; alone, 18 answers are decoded together, as one of two processes 9."""
    config = load_config(
        write_config(
            tmp_path, tiny_checkpoint, train={"prompts_per_step": 6, "tokens_per_pass": 10**6}
        )
    )
    alone, one_of_two = (
        make_plan(
            config,
            algorithm=gpg(),
            family=families.get("qwen2_vl"),
            prompt_tokens=[50, 40, 30],
            image_tokens=[16, 16, 16],
            processes=processes,
            steps=4,
            first_prompt="",
        ).memory_bytes
        for processes in (1, 2)
    )
    text = read_config(str(tiny_checkpoint), None).get_text_config()
    numbers = (
        text.num_hidden_layers
        * 2
        * text.num_key_value_heads
        * (text.hidden_size // text.num_attention_heads)
    )
    waiting = config.rollout.prompts_per_batch * 50
    assert alone["key-value cache"] == 4 * numbers * (18 * (50 + 4) + waiting)
    assert one_of_two["key-value cache"] == 4 * numbers * (9 * (50 + 4) + waiting)
    assert one_of_two["activations"] == alone["activations"] / 2
    assert one_of_two["weights"] == alone["weights"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA each answer has a copy")
def test_a_long_prompt_is_held_once_for_its_answers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """By hand: 6 groups of 3 answers of 4 tokens to 5000 tokens; in 7 slots three groups and what is left of one."""
    config = load_config(write_config(tmp_path, tiny_checkpoint))
    shape = families.get("qwen2_vl").shape_of(read_config(str(tiny_checkpoint), None))
    waiting = config.rollout.prompts_per_batch * 5000
    for slots, answers, prompts in ((128, 18, 6), (7, 7, 4)):
        rollout = config.rollout.model_copy(update={"slots": slots})
        memory = rollout_memory(config.model_copy(update={"rollout": rollout}), 6, 5000, shape)
        expected = answers * 4 + prompts * 5000 + waiting
        assert memory["key-value cache"] == 4 * shape.key_values * expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="decoding on CUDA copies no weights")
def test_copies_for_decoding_count_where_training_holds_less(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """By hand: four bytes for each weight of the layers and the head, less what is free while a rollout runs."""
    config = load_config(write_config(tmp_path, tiny_checkpoint))
    shape = families.get("qwen2_vl").shape_of(read_config(str(tiny_checkpoint), None))
    copies = 4.0 * (shape.body + shape.head)
    assert decoding_memory(config, shape, 100.0) == {"weights for decoding": copies - 100}
    assert decoding_memory(config, shape, copies) == {}
    other = config.rollout.model_copy(update={"engine": "vllm"})
    assert decoding_memory(config.model_copy(update={"rollout": other}), shape, 0.0) == {}


def test_memory_in_the_plan_of_weights_that_are_spread(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """By hand, of four processes; a frozen tower is whole on each of them."""
    model = load_model(str(tiny_checkpoint))
    family = families.get("qwen2_vl")
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    everything, tower = count(model), count(family.vision_tower(model))
    layers = [count(layer) for layer in family.layers(model)]
    blocks = [count(block) for block in family.vision_blocks(model)]
    small = sum(p.numel() for p in family.vision_tower(model).parameters() if p.dim() < 2)

    for frozen in (False, True):
        parts = ["vision", "merger"] if frozen else []
        config = load_config(
            write_config(
                tmp_path,
                tiny_checkpoint,
                train={"prompts_per_step": 4, "sharding": "fsdp2"},
                model={"freeze": parts, "dtype": "bfloat16"},
            )
        )
        memory = make_plan(
            config,
            algorithm=grpo(kl_beta=0.1),
            family=family,
            prompt_tokens=[50],
            image_tokens=[16],
            processes=4,
            steps=4,
            first_prompt="",
        ).memory_bytes
        spread = everything - tower if frozen else everything
        units = layers if frozen else layers + blocks
        root = spread - sum(units)
        held = 2 * (tower - small) + 4 * small if frozen else 0
        assert memory["weights"] == pytest.approx(4 * spread / 4 + held)
        assert memory["gradients"] == spread
        assert memory["optimizer"] == 2 * spread
        assert memory["gathered layers"] == pytest.approx(4 * (2 * root + 3 * max(units)))
        assert memory["copy that answers"] == 2 * everything + 2 * 384 * 64
        assert memory["reference"] == 2 * ((everything - tower) / 4 + tower)


def test_the_plan_of_a_run_that_reuses_its_prompts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """By hand: one forward pass over image and prompt less, and the activations of 2 prompts of 50 tokens more."""
    plans = [
        make_plan(
            load_config(write_config(tmp_path, tiny_checkpoint, train={"reuse_prefill": reuse})),
            algorithm=gpg(),
            family=families.get("qwen2_vl"),
            prompt_tokens=[50, 40, 30],
            image_tokens=[16, 16, 16],
            processes=1,
            steps=4,
            first_prompt="",
        )
        for reuse in (False, True)
    ]
    fresh, again = plans
    assert again.cost.train == fresh.cost.train - fresh.cost.prefill
    assert (fresh.cost.patches, again.cost.patches) == (2 * 64, 64)
    text = read_config(str(tiny_checkpoint), None).get_text_config()
    config = read_config(str(tiny_checkpoint), None)
    narrow = text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    of_token = 9 * text.hidden_size + 2 * narrow + 4 * text.intermediate_size
    vision = config.vision_config
    of_patch = (11 + 3 * vision.mlp_ratio) * vision.embed_dim
    assert again.memory_bytes["kept prompts"] == 4 * 2 * (
        50 * text.num_hidden_layers * of_token + 64 * vision.depth * of_patch
    )
    assert "kept prompts" not in fresh.memory_bytes


def plans(config: Config, *algorithms: Algorithm) -> list[Plan]:
    """Of the same three prompts, whose median has 40 tokens, by each of the algorithms."""
    return [
        make_plan(
            config,
            algorithm=algorithm,
            family=families.get("qwen2_vl"),
            prompt_tokens=[50, 40, 30],
            image_tokens=[16, 16, 16],
            processes=1,
            steps=4,
            first_prompt="",
        )
        for algorithm in algorithms
    ]


def test_the_plan_knows_what_an_algorithm_costs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """By hand: a second update trains once more, a reference is a forward pass and a copy of the weights more, and
    supervised training answers nothing: one completion per prompt, no rollout, no keys to hold."""
    config = load_config(write_config(tmp_path, tiny_checkpoint))
    plain, twice, supervised = plans(config, gpg(), grpo(updates=2, kl_beta=0.1), sft())
    forward = plain.cost.prefill + plain.cost.decode
    assert twice.cost.train == 2 * plain.cost.train + forward
    assert twice.memory_bytes["reference"] == 4 * plain.parameters
    assert "reference" not in plain.memory_bytes

    assert (supervised.cost.prefill, supervised.cost.decode) == (0, 0)
    assert supervised.group_size == 1
    assert supervised.cost.tokens == 40 + 3, (
        "the median prompt and one answer but for its last token"
    )
    assert "key-value cache" not in supervised.memory_bytes


def test_the_plan_counts_greedy_answers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """By hand, one beside three: a third more to decode, nothing more to train on, and its prompt once more where nothing is
    shared, as its picture of 64 patches."""
    config = load_config(write_config(tmp_path, tiny_checkpoint))
    plain, beside = plans(config, rloo(), remax())
    assert beside.cost.decode == pytest.approx(plain.cost.decode * 4 / 3)
    assert (beside.cost.prefill, beside.cost.patches) == (plain.cost.prefill, plain.cost.patches)
    assert beside.cost.train == plain.cost.train
    assert beside.naive_cost.prefill == pytest.approx(plain.naive_cost.prefill * 4 / 3)
    assert beside.naive_cost.patches == plain.naive_cost.patches + 64
    assert (plain.has_greedy, beside.has_greedy) == (False, True)
    assert (plain.work.rows, beside.work.rows) == (6, 8)
    # keys and values of 6 or 8 answers of 50 + 4 tokens, and of 32 prompts that wait
    held = [plan.memory_bytes["key-value cache"] for plan in (plain, beside)]
    waiting = 32 * 50
    assert held[1] / held[0] == pytest.approx((8 * 54 + waiting) / (6 * 54 + waiting))


def test_published_sizes_of_qwen2_vl_2b() -> None:
    """1.310 B body, 0.233 B head; 5.78 GFLOP of vision per image token at 256 tokens; the ratios of the spec's table."""
    shape = Shape(
        body=28 * 1536 * (2 * 1536 + 2 * 256 + 3 * 8960),
        head=1536 * 151936,
        layers=28,
        width=1536,
        key_values=2 * 28 * 256,
        patch_weights=32 * (4 * 1280**2 + 8 * 1280**2) + 3 * 2 * 14**2 * 1280,
        merger_weights=5120**2 + 5120 * 1536,
        vision_layers=32,
        vision_width=1280,
        merge=4,
    )
    assert shape.body == pytest.approx(1.310e9, rel=1e-3)
    assert shape.head == pytest.approx(0.233e9, rel=2e-3)
    assert image_forward(shape, 256) / 256 == pytest.approx(5.78e9, rel=0.01)
    for prompt, image, length, vision, naive, ours in (
        (356, 256, 50, "frozen", 38.3, 8.1),
        (652, 512, 150, "frozen", 79.9, 20.1),
        (250, 100, 200, "frozen", 35.3, 17.6),
    ):
        cost = [
            group_cost(
                shape,
                prompt=prompt,
                image_tokens=image,
                completion=length,
                group_size=8,
                shared=shared,
                recompute=False,
                vision=vision,
            ).train
            / 1e12
            for shared in (False, True)
        ]
        assert cost == pytest.approx([naive, ours], rel=0.03)
