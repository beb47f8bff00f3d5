"""The policy against the stock model: same log-probs, same gradient, whatever the layout and the cut."""

from pathlib import Path

import pytest
import torch
from conftest import scene_example
from oracle import naive_logp
from PIL import Image

from gpg_vl.data import scenes
from gpg_vl.errors import UserError
from gpg_vl.models.encode import Encoder, PixelLimits, PromptStyle
from gpg_vl.models.layout import pack, sibling_mask
from gpg_vl.models.load import load_model, load_processing
from gpg_vl.models.policy import Policy
from gpg_vl.types import Example, Prompt

COMPLETIONS = [[(5, 9, 300, 7), (11,), (12, 13)], [(40, 41, 42, 43, 44), (50, 51), (60,)]]


def encoder(checkpoint: Path, **style: str) -> Encoder:
    return Encoder(
        processing=load_processing(str(checkpoint)), style=PromptStyle(**style), limits=PixelLimits(), root=None
    )


def prompts(checkpoint: Path) -> list[Prompt]:
    """One prompt with one picture, one with two of other sizes."""
    pictures = tuple(scenes.png(Image.effect_noise(size, 90).convert("RGB")) for size in ((140, 84), (56, 112)))
    two = Example(id="two", images=pictures, prompt="<image>Count the balls here, and<image>here.", answer="3")
    encode = encoder(checkpoint).encode
    return [encode(scene_example(1)), encode(two)]


@pytest.fixture(scope="module")
def policy(tiny_checkpoint: Path) -> Policy:
    processing = load_processing(str(tiny_checkpoint))
    return Policy(load_model(str(tiny_checkpoint)), processing.family, processing.tokens)


def gradients(policy: Policy) -> torch.Tensor:
    return torch.cat(
        [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel(), dtype=p.dtype) for p in policy.parameters()]
    )


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "dtype,tolerance,gradient_tolerance", [(torch.float32, 1e-4, 1e-5), (torch.float64, 1e-9, 1e-6)]
)
def test_rows_of_groups_equal_the_stock_model(
    tiny_checkpoint: Path, shared: bool, dtype: torch.dtype, tolerance: float, gradient_tolerance: float
) -> None:
    processing = load_processing(str(tiny_checkpoint))
    policy = Policy(load_model(str(tiny_checkpoint)), processing.family, processing.tokens, temperature=0.7).to(dtype)
    two = prompts(tiny_checkpoint)
    c_PG = torch.tensor([0.5, -1.0, 0.5, 2.0, -0.3, -1.7])
    rows = pack(two, COMPLETIONS, pad=processing.tokens.pad, shared_prefix=shared)
    output = policy(rows, c_PG.repeat_interleave(rows.lengths_PG))
    output.loss.backward()
    ours = gradients(policy)
    policy.zero_grad(set_to_none=True)
    flat = [(prompt, c) for prompt, group in zip(two, COMPLETIONS, strict=True) for c in group]
    naive = [naive_logp(policy.model, processing.tokens, prompt, c, temperature=0.7) for prompt, c in flat]
    (-sum(weight * logp.sum() for weight, logp in zip(c_PG, naive, strict=True))).backward()
    assert torch.allclose(output.logp_K.double(), torch.cat(naive).detach().double(), atol=tolerance, rtol=0)
    assert relative(ours, gradients(policy)) < gradient_tolerance
    assert ours.norm() > 0.1, "the comparison of two zero gradients would prove nothing"
    vision = [n for n, p in policy.named_parameters() if ".visual." in n and p.grad is not None and p.grad.norm() > 0]
    assert len(vision) > 10, "the vision tower must be part of what is compared"


def test_a_sibling_cannot_be_seen(policy: Policy, tiny_checkpoint: Path) -> None:
    one = prompts(tiny_checkpoint)[:1]
    before = policy(pack(one, [[(5, 6, 7), (8, 9)]], pad=0, shared_prefix=True)).logp_K
    after = policy(pack(one, [[(200, 201, 202), (8, 9)]], pad=0, shared_prefix=True)).logp_K
    assert torch.equal(before[3:], after[3:])
    assert not torch.equal(before[:3], after[:3])


def test_log_probs_do_not_depend_on_the_neighbours_in_a_pass(policy: Policy, tiny_checkpoint: Path) -> None:
    """Two images of different size in one pass: each completion as if it were alone."""
    two = prompts(tiny_checkpoint)
    together = policy(pack(two, COMPLETIONS, pad=0, shared_prefix=True)).logp_K
    alone = torch.cat(
        [policy(pack([p], [c], pad=0, shared_prefix=True)).logp_K for p, c in zip(two, COMPLETIONS, strict=True)]
    )
    assert torch.allclose(together, alone, atol=1e-5, rtol=0)


def test_swapping_the_image_changes_the_log_probs(policy: Policy, tiny_checkpoint: Path) -> None:
    encode = encoder(tiny_checkpoint).encode
    first, other = scene_example(1), scene_example(5)
    mixed = Example(id="mixed", images=other.images, prompt=first.prompt, answer=first.answer, choices=first.choices)
    a, b = (policy(pack([encode(e)], [[(5, 6)]], pad=0, shared_prefix=True)).logp_K for e in (first, mixed))
    assert (a - b).abs().max() > 1e-4


def test_a_text_only_model_takes_the_same_path(text_checkpoint: Path) -> None:
    processing = load_processing(str(text_checkpoint))
    policy = Policy(load_model(str(text_checkpoint)), processing.family, processing.tokens)
    prompt = encoder(text_checkpoint).encode(Example(id="t", prompt="How many balls? Two.", answer="2"))
    output = policy(pack([prompt], [[(5, 6, 7), (8,)]], pad=0, shared_prefix=True))
    naive = torch.cat([naive_logp(policy.model, processing.tokens, prompt, c) for c in [(5, 6, 7), (8,)]])
    assert torch.allclose(output.logp_K, naive.detach(), atol=1e-5)


def test_a_vision_model_reads_rows_with_and_without_image_in_one_pass(policy: Policy, tiny_checkpoint: Path) -> None:
    tokens = load_processing(str(tiny_checkpoint)).tokens
    plain = encoder(tiny_checkpoint).encode(Example(id="t", prompt="How many balls? Two.", answer="2"))
    two = [plain, prompts(tiny_checkpoint)[0]]
    output = policy(pack(two, [[(5, 6)], [(7,)]], pad=tokens.pad, shared_prefix=True))
    naive = torch.cat(
        [naive_logp(policy.model, tokens, two[0], (5, 6)), naive_logp(policy.model, tokens, two[1], (7,))]
    )
    assert torch.allclose(output.logp_K, naive.detach(), atol=1e-5)


def test_the_head_is_the_same_in_one_tile_and_in_many(
    policy: Policy, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pack(prompts(tiny_checkpoint), COMPLETIONS, pad=0, shared_prefix=True)
    c_K = torch.linspace(-1, 1, len(rows.targets_K))
    results = []
    for elements in (2**24, 384 * 2):
        monkeypatch.setattr("gpg_vl.models.policy.HEAD_TILE_ELEMENTS", elements)
        policy.zero_grad(set_to_none=True)
        output = policy(rows, c_K)
        output.loss.backward()
        results.append((output.logp_K, gradients(policy)))
    policy.zero_grad(set_to_none=True)
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert relative(results[1][1], results[0][1]) < 1e-5


def test_gradient_checkpointing_leaves_the_gradient_as_it_is(tiny_checkpoint: Path) -> None:
    processing = load_processing(str(tiny_checkpoint))
    rows = pack(prompts(tiny_checkpoint), COMPLETIONS, pad=0, shared_prefix=True)
    results = []
    for checkpointing in (False, True):
        model = load_model(str(tiny_checkpoint))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy = Policy(model, processing.family, processing.tokens).train()
        policy(rows, torch.linspace(-1, 1, len(rows.targets_K))).loss.backward()
        results.append(gradients(policy))
    assert relative(results[1], results[0]) < 1e-6


def test_entropy_is_that_of_the_sampling_distribution(policy: Policy, tiny_checkpoint: Path) -> None:
    """On a vocabulary of V equal logits the entropy is log of the number of tokens that may be sampled."""
    policy_flat = Policy(load_model(str(tiny_checkpoint)), policy.family, load_processing(str(tiny_checkpoint)).tokens)
    with torch.no_grad():
        policy_flat.model.get_output_embeddings().weight.zero_()
    output = policy_flat(pack(prompts(tiny_checkpoint)[:1], [[(5, 6)]], pad=0, shared_prefix=True))
    allowed = int((~policy_flat.never_sampled_V).sum())
    assert torch.allclose(output.entropy_K, torch.log(torch.tensor(float(allowed))).expand(2), atol=1e-5)


def test_a_model_with_dropout_is_refused(tiny_checkpoint: Path) -> None:
    processing = load_processing(str(tiny_checkpoint))
    model = load_model(str(tiny_checkpoint))
    model.config.get_text_config().attention_dropout = 0.1
    with pytest.raises(UserError, match=r"attention_dropout 0.1; only 0 is allowed"):
        Policy(model, processing.family, processing.tokens)


def test_mask_of_a_small_row_by_hand() -> None:
    """prompt of 2, completions of 1 and 2, one padding token."""
    mask = sibling_mask(torch.tensor([[0, 0, 1, 2, 2, -1]]))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_padded_generation_of_the_stock_model_is_left_alone(policy: Policy, tiny_checkpoint: Path) -> None:
    """Nothing is registered or patched: an ordinary padded forward gives the same before and after ours."""
    ids = torch.tensor([[287 % 384, 5, 6, 7], [8, 9, 10, 11]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])

    def stock() -> torch.Tensor:
        policy.model.model.rope_deltas = None
        with torch.no_grad():
            return policy.model(input_ids=ids, attention_mask=mask).logits

    before = stock()
    policy(pack(prompts(tiny_checkpoint), COMPLETIONS, pad=0, shared_prefix=True))
    assert torch.equal(before, stock())
