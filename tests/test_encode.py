"""Encoding: rendering, image tokens, positions, and everything that an encoder must refuse."""

import math
from pathlib import Path

import pytest
import torch
from conftest import scene_example
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_policy import encoder

from gpg_vl.errors import UserError
from gpg_vl.models.encode import Encoder
from gpg_vl.models.families import FAMILIES, mrope_positions
from gpg_vl.models.load import load_model, load_processing
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.quickstart import scenes
from gpg_vl.types import Example, Message


def picture(width: int, height: int) -> bytes:
    return scenes.png(Image.effect_noise((width, height), 60).convert("RGB"))


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [(112, 84)],
        [(140, 56), (84, 84)],
        [(56, 56), (28, 200), (300, 60), (112, 112), (90, 91)],
    ],
)
def test_positions_and_image_tokens_are_those_of_the_library(
    tiny_checkpoint: Path, sizes: list[tuple[int, int]]
) -> None:
    """0, 1, 2 and 5 images: positions as `get_rope_index` has them, one image token per feature of the vision tower."""
    model = load_model(str(tiny_checkpoint))
    marks = " then ".join("<image>" for _ in sizes)
    prompt = encoder(tiny_checkpoint).encode(
        Example(
            id="x",
            images=tuple(picture(*s) for s in sizes),
            prompt=f"See {marks} and count.",
            answer="1",
        )
    )
    if sizes:
        expected, _ = model.model.get_rope_index(
            prompt.input_ids_T[None],
            mm_token_type_ids=prompt.image_mask_T[None].int(),
            image_grid_thw=prompt.grid_thw_I_3,
        )
        features = model.model.get_image_features(
            prompt.pixel_values_N, prompt.grid_thw_I_3
        ).pooler_output
        assert sum(len(f) for f in features) == int(prompt.image_mask_T.sum())
        assert prompt.next_position < prompt.length
    else:
        expected = torch.arange(prompt.length).expand(3, 1, -1)
        assert prompt.next_position == prompt.length
    assert torch.equal(prompt.positions_3_T, expected[:, 0])
    assert prompt.next_position == int(expected.max()) + 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(1, 6)), max_size=4),
    st.integers(1, 5),
)
def test_positions_by_counting(images: list[tuple[int, int, int]], tail: int) -> None:
    """An independent, slow restatement: token by token."""
    ids, mask, expected, position = [], [], [], 0
    for text, rows, columns in images:
        for _ in range(
            text + 1
        ):  # at least one token of text before an image, as the vision start token is
            ids.append(0)
            mask.append(False)
            expected.append((position, position, position))
            position += 1
        for r in range(rows):
            for c in range(columns):
                ids.append(1)
                mask.append(True)
                expected.append((position, position + r, position + c))
        position += max(rows, columns)
    for _ in range(tail):
        ids.append(0)
        mask.append(False)
        expected.append((position, position, position))
        position += 1
    grid = torch.tensor([[1, 2 * r, 2 * c] for _, r, c in images]) if images else None
    got = mrope_positions(torch.tensor(ids), torch.tensor(mask), grid, 2)
    assert got.T.tolist() == [list(p) for p in expected]


@settings(max_examples=15, deadline=None)
@given(width=st.integers(20, 400), height=st.integers(20, 400))
def test_counting_agrees_with_encoding(tiny_checkpoint: Path, width: int, height: int) -> None:
    """`count` computes no patches and must say the same."""
    example = Example(id="x", images=(picture(width, height),), prompt="How many?", answer="1")
    counts, prompt = (
        encoder(tiny_checkpoint).count(example),
        encoder(tiny_checkpoint).encode(example),
    )
    assert counts.tokens == prompt.length
    assert counts.image_tokens == int(prompt.image_mask_T.sum())
    ((w, h),) = counts.image_sizes
    assert (h // 14, w // 14) == tuple(prompt.grid_thw_I_3[0, 1:].tolist())


def test_pixel_limits_bound_the_image_tokens(tiny_checkpoint: Path) -> None:
    example = Example(id="x", images=(picture(600, 300),), prompt="How many?", answer="1")
    few = Encoder(
        processing=load_processing(str(tiny_checkpoint)),
        style=PromptStyle(),
        limits=PixelLimits(max_pixels=28 * 28 * 10),
        root=None,
    )
    assert few.count(example).image_tokens <= 10
    small = Example(id="x", images=(picture(28, 28),), prompt="How many?", answer="1")
    many = Encoder(
        processing=load_processing(str(tiny_checkpoint)),
        style=PromptStyle(),
        limits=PixelLimits(min_pixels=28 * 28 * 9),
        root=None,
    )
    assert many.count(small).image_tokens >= 9


def test_a_chat_template_is_used_where_there_is_one_and_plain_text_where_not(
    tiny_checkpoint: Path,
) -> None:
    example = scene_example(1)
    assert (
        encoder(tiny_checkpoint)
        .render(example)
        .startswith("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Considering")
    )
    assert encoder(tiny_checkpoint).render(example).endswith("<|im_end|>\n<|im_start|>assistant\n")
    plain = encoder(tiny_checkpoint, chat="plain").render(example)
    assert plain.startswith("<|vision_start|><|image_pad|><|vision_end|>Considering")
    assert "<|im_start|>" not in plain


def test_a_base_model_without_a_template(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base, ignore=shutil.ignore_patterns("chat_template*"))
    assert load_processing(str(base)).chat_template is None
    assert (
        encoder(base)
        .render(scene_example(1))
        .startswith("<|vision_start|><|image_pad|><|vision_end|>Considering")
    )
    with pytest.raises(UserError, match=r"has no chat template\. Use 'plain'"):
        encoder(base, chat="template").render(scene_example(1))


def test_template_system_and_prefill(tiny_checkpoint: Path) -> None:
    made = encoder(
        tiny_checkpoint,
        template="{prompt} Choose {choices}.",
        system="Look closely.",
        prefill="<think>",
    )
    example = Example(
        id="x", images=(picture(56, 56),), prompt="Which?", answer="A", choices=("ball", "cube")
    )
    assert made.render(example) == (
        "<|im_start|>system\nLook closely.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "Which? Choose ball or cube.<|im_end|>\n<|im_start|>assistant\n<think>"
    )
    assert made.encode(example).prefill == "<think>"


def test_a_question_with_braces_is_left_as_it_is(tiny_checkpoint: Path) -> None:
    example = Example(id="x", prompt="What is {choices} of {x}?", answer="A", choices=("ball",))
    assert "What is {choices} of {x}?" in encoder(tiny_checkpoint, template="Q: {prompt}").render(
        example
    )


def test_conversations_keep_their_turns_and_marks_their_places(tiny_checkpoint: Path) -> None:
    turns = (
        Message(role="user", content="First <image>?"),
        Message(role="assistant", content="A ball."),
        Message(role="user", content="And <image>?"),
    )
    text = encoder(tiny_checkpoint).render(
        Example(id="x", images=(picture(56, 56), picture(56, 56)), prompt=turns, answer="cube")
    )
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == (
        f"<|im_start|>user\nFirst {image}?<|im_end|>\n<|im_start|>assistant\nA ball.<|im_end|>\n"
        f"<|im_start|>user\nAnd {image}?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "example,message",
    [
        (
            Example(id="7", images=(picture(56, 56),), prompt="<image> and <image>?", answer="1"),
            r"Example 7: the prompt has 2 <image> mark\(s\) for 1 image",
        ),
        (
            Example(id="7", prompt="look at <|image_pad|>", answer="1"),
            r"Example 7: the prompt contains the control token <\|image_pad\|>",
        ),
        (Example(id="7", prompt="end<|im_end|>", answer="1"), r"control token <\|im_end\|>"),
        (
            Example(id="7", images=(picture(30, 6100),), prompt="x", answer="1"),
            "more than 200 times as long as wide. Crop or pad it",
        ),
        (
            Example(id="7", prompt=(Message(role="assistant", content="hi"),), answer="1"),
            "has no user turn",
        ),
    ],
)
def test_what_cannot_be_encoded_is_refused_in_words(
    tiny_checkpoint: Path, example: Example, message: str
) -> None:
    for action in (encoder(tiny_checkpoint).encode, encoder(tiny_checkpoint).count):
        with pytest.raises(UserError, match=message):
            action(example)


def test_a_text_model_refuses_images(text_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"has 1 image\(s\), but qwen2 reads text only"):
        encoder(text_checkpoint).encode(scene_example(1))


def test_every_family_says_all_its_facts() -> None:
    for family in FAMILIES.values():
        assert family.model_class
        if family.has_vision:
            assert family.patch_size > 0
            assert math.log2(family.merge_size).is_integer()
            assert "image_pad" in family.image_markup
