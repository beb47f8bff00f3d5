"""Families that cut an image into tiles: against the library's own processor, and what a checkpoint of one may not ask for."""

import pickle
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_policy import encoder
from transformers import AutoProcessor
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.smolvlm import image_processing_smolvlm as smolvlm_library
from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from gpg_vl.errors import UserError
from gpg_vl.models.encode import Encoder
from gpg_vl.models.families import families, smolvlm, tiles
from gpg_vl.models.families.internvl import RELEASED, image_size, tile_limits
from gpg_vl.models.families.tiles import Tile
from gpg_vl.models.load import load_model, load_processing, read_config
from gpg_vl.models.save import save_processing
from gpg_vl.prompting import PixelLimits
from gpg_vl.quickstart import scenes
from gpg_vl.rollout.vllm import compatibility
from gpg_vl.training.flops import image_forward
from gpg_vl.types import Example

TINY = Tile(side=56, patch=14, merge=2)
CHECKPOINTS = ["tiled_checkpoint", "marked_checkpoint"]
TILES = {"internvl": 56, "smolvlm": 128}
SIZES = [(56, 56), (140, 84), (28, 200), (300, 60), (13, 13), (90, 91)]


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.effect_noise(size, 60).convert("RGB")


def example_of(sizes: list[tuple[int, int]], text: str = "See {} and count.") -> Example:
    marks = " then ".join("<image>" for _ in sizes)
    pictures = tuple(scenes.png(picture(size)) for size in sizes)
    return Example(id="x", images=pictures, prompt=text.format(marks), answer="1")


def limited(checkpoint: Path, limits: PixelLimits, chat: str = "auto") -> Encoder:
    return replace(encoder(checkpoint, chat=chat), limits=limits)


@pytest.fixture(autouse=True)
def no_numbers_are_read_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that the library's processor of SmolVLM asks for, to name the frames of a video."""
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)


def library(checkpoint: Path, limits: PixelLimits, folder: Path) -> Any:
    """The processor that a run with these limits saves, as transformers loads it."""
    config = checkpoint / "config.json"
    folder.mkdir()
    (folder / "config.json").write_bytes(config.read_bytes())
    save_processing(load_processing(str(checkpoint)), limits, folder)
    return AutoProcessor.from_pretrained(folder)


# ---- against the library's processor


@pytest.mark.parametrize("fewest,most", [(0, 1), (1, 9), (2, 4)])
@pytest.mark.parametrize("chat", ["template", "plain"])
def test_prompts_are_those_of_the_processor_that_a_run_saves(
    checkpoint: Path, tmp_path: Path, fewest: int, most: int, chat: str
) -> None:
    """Token by token, and pixel by pixel: one image, several of several sizes, none."""
    area = TILES[read_config(str(checkpoint)).model_type] ** 2
    limits = PixelLimits(min_pixels=fewest * area, max_pixels=most * area)
    processor = library(checkpoint, limits, tmp_path / "saved")
    for sizes in ([(112, 84)], SIZES, []):
        example = example_of(sizes)
        made = limited(checkpoint, limits, chat)
        prompt, counts = made.encode(example), made.count(example)
        images = {"images": [[Image.open(BytesIO(one)) for one in example.images]]} if sizes else {}
        theirs = processor(
            text=[prompt.text], add_special_tokens=False, return_tensors="pt", **images
        )
        assert prompt.input_ids_T.tolist() == theirs["input_ids"][0].tolist()
        assert counts.tokens == prompt.length
        assert counts.image_tokens == int(prompt.image_mask_T.sum())
        if sizes:
            ours = tiles.to_tiles(prompt.pixel_values_N, prompt.grid_thw_I_3)
            assert torch.equal(ours, theirs["pixel_values"].reshape(ours.shape))


@given(
    st.sampled_from([RELEASED, TINY]),
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1, 9),
    st.integers(1, 14),
)
@settings(max_examples=400, deadline=None)
def test_tiles_are_counted_from_the_size_as_the_library_cuts_them(
    tile: Tile, width: int, height: int, fewest: int, most: int
) -> None:
    """Squares too, of which the larger ones are cut into more tiles though the ratio is the same."""
    assume(fewest <= most)
    height = width if height % 5 == 0 else height
    limits = {"min_pixels": fewest * tile.side**2, "max_pixels": (most + 1) * tile.side**2 - 1}
    family = families.get("internvl").fit(families.get("internvl"), config_with(tile))
    seen = family.image_size(width, height, **limits)
    theirs = GotOcr2ImageProcessor(size={"height": tile.side, "width": tile.side})
    settings = {"crop_to_patches": True, "min_patches": fewest, "max_patches": most}
    expected = theirs.get_number_of_image_patches(height, width, settings)
    assert family.image_tokens(*seen) == expected * (tile.side // 28) ** 2
    assert family.image_text(*seen).count("<IMG_CONTEXT>") == family.image_tokens(*seen)
    assert tile_limits(**limits, tile=tile) == (fewest, most)


@given(
    st.sampled_from([Tile(side=512, patch=16, merge=4), Tile(side=384, patch=14, merge=3)]),
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1, 6),
)
@settings(max_examples=300, deadline=None)
def test_named_tiles_are_counted_from_the_size_as_the_library_cuts_them(
    tile: Tile, width: int, height: int, most: int
) -> None:
    """By the very steps of the processor, on a tensor that has a size and no content."""
    settings = smolvlm.processor_settings(0, (most * tile.side) ** 2, tile=tile)
    theirs = SmolVLMImageProcessor()
    shape = torch.empty(1, height, width, device="meta")
    rows, columns = smolvlm_library.get_resize_output_image_size(
        shape, settings["size"]["longest_edge"]
    )
    sizes: list[Any] = []

    def resize(image: Any, size: Any, resample: Any = None) -> None:
        sizes.append((size["width"], size["height"]))

    theirs.resize = resize
    theirs.resize_for_vision_encoder(torch.empty(1, rows, columns, device="meta"), tile.side)
    limits = {"min_pixels": 0, "max_pixels": (most * tile.side) ** 2}
    seen = smolvlm.image_size(width, height, **limits, tile=tile)
    assert [seen] == sizes
    shown = smolvlm.image_text(*seen, tile=tile)
    assert shown.count("<image>") == smolvlm.image_tokens(*seen, tile=tile)
    down, across = (edge // tile.side for edge in (seen[1], seen[0]))
    split = (down, across) if down * across > 1 else (0, 0)
    marks = ("<fake_token_around_image>", "<image>", "<global-img>")
    assert shown == get_image_prompt_string(*split, tile.tokens, *marks)


@cache
def config_with(tile: Tile) -> Any:
    from transformers import InternVLConfig

    vision = {"image_size": tile.side, "patch_size": tile.patch}
    return InternVLConfig(text_config={"model_type": "qwen2"}, vision_config=vision)


def test_a_picture_has_the_same_pixels_whatever_its_neighbours(checkpoint: Path) -> None:
    """It is known by its content, and computed once for all prompts that show it."""
    made = encoder(checkpoint)
    three = example_of([(90, 60), (60, 90), (90, 60)])
    first, second, third = made.encode(three).image_keys
    assert first != third, "noise is drawn anew"
    for number, key in enumerate((first, second, third)):
        alone = replace(three, images=(three.images[number],), prompt="<image>Count.")
        assert made.encode(alone).image_keys == (key,)


def test_patches_of_tiles_come_back_as_they_were() -> None:
    """By hand for one value: tile 1, channel 2, third row and fifth column of pixels, in patches of 2 by 2."""
    whole = torch.arange(2 * 3 * 6 * 6.0).reshape(2, 3, 6, 6)
    patches = tiles.to_patches(whole, 2)
    assert patches.shape == (18, 12)
    assert patches[9 + 3 + 2, 8] == whole[1, 2, 2, 4]
    grid = torch.tensor([[1, 3, 3], [1, 3, 3]])
    assert torch.equal(tiles.to_tiles(patches, grid), whole)


# ---- what is refused


@pytest.mark.parametrize(
    "limits",
    [
        {"min_pixels": 1, "max_pixels": 448 * 448 - 1},
        {"min_pixels": 448 * 448 + 1, "max_pixels": 2 * 448 * 448 - 1},
    ],
)
def test_limits_that_no_number_of_tiles_keeps_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"448x448 pixels, 200704 each.*data\.max_pixels"):
        image_size(500, 500, **limits, tile=RELEASED)


def change(config: Any, path: str, value: Any) -> None:
    *owners, name = path.split(".")
    for owner in owners:
        config = getattr(config, owner)
    setattr(config, name, value)


TILED = "tiled_checkpoint"
MARKED = "marked_checkpoint"


@pytest.mark.parametrize(
    "checkpoint,path,value,message",
    [
        (TILED, "text_config.model_type", "qwen3_moe", "'qwen3_moe'; only qwen2 and qwen3"),
        (
            TILED,
            "vision_feature_layer",
            -2,
            "vision_feature_layer in its config.json is -2; only -1",
        ),
        (TILED, "vision_feature_select_strategy", "full", "only 'default' is supported"),
        (TILED, "vision_config.use_mask_token", True, "use_mask_token in its config.json is True"),
        (TILED, "vision_config.image_size", (56, 84), "not a whole number of image tokens"),
        (TILED, "vision_config.image_size", (70, 70), "not a whole number of image tokens"),
        (TILED, "downsample_ratio", 0.4, "a downsample_ratio of 0.4"),
        (MARKED, "text_config.model_type", "qwen2", "'qwen2'; only 'llama' is supported"),
        (MARKED, "vision_config.num_channels", 1, "num_channels in its config.json is 1; only 3"),
        (MARKED, "scale_factor", 3, "128 pixels are not a whole number of image tokens"),
    ],
)
def test_a_checkpoint_that_is_not_computed_exactly_is_refused(
    request: pytest.FixtureRequest, checkpoint: str, path: str, value: Any, message: str
) -> None:
    config = read_config(str(request.getfixturevalue(checkpoint)))
    family = families.get(config.model_type)
    change(config, path, value)
    with pytest.raises(UserError, match=message):
        family.fit(family, config)


@pytest.mark.parametrize(
    "limits,message",
    [
        (
            {"min_pixels": 0, "max_pixels": 512 * 512 - 1},
            "512x512 pixels, 262144 each, and data.max",
        ),
        ({"min_pixels": 600_000, "max_pixels": 2**20}, "1024x512, which is less than data.min"),
    ],
)
def test_limits_that_named_tiles_cannot_keep_are_refused(
    limits: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        smolvlm.image_size(900, 300, **limits, tile=smolvlm.RELEASED)


def test_a_tile_of_zeros_among_others_is_seen(marked_checkpoint: Path) -> None:
    """As any other: the library's own method would take it for padding."""
    model, family = load_model(str(marked_checkpoint)), families.get("smolvlm")
    blank = family.blank_image(model.config, 12)
    lit = blank.pixel_values_N.clone()
    lit[64:] = 0.5
    with torch.no_grad():
        (ours,) = family.image_features(model, lit, blank.grid_thw_I_3)
        (dark,) = family.image_features(model, blank.pixel_values_N, blank.grid_thw_I_3)
    assert ours.shape == (12, 64)
    assert torch.allclose(ours[:4], dark[:4], atol=1e-6)
    assert torch.allclose(ours[4:8], ours[8:], atol=1e-6)
    assert not torch.allclose(ours[:4], ours[4:8], atol=1e-3)


def test_a_refusal_names_the_checkpoint(
    tiled_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(str(tiled_checkpoint))
    config.vision_feature_layer = -2
    monkeypatch.setattr("gpg_vl.models.load.read_config", lambda *_: config)
    with pytest.raises(UserError, match=r"checkpoint .*checkpoint cannot be trained: vision_fea"):
        load_processing(str(tiled_checkpoint))


def test_vllm_refuses_tiles_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "installed_version", lambda: TESTED)
    with pytest.raises(UserError, match=r"images of internvl checkpoints to vLLM yet.*native"):
        compatibility.refuse_vllm(families.get("internvl"))


TESTED = next(one.version for one in compatibility.TESTED if one.operator == ">=")


# ---- what a family is elsewhere


def test_a_fitted_family_is_the_same_in_another_process(checkpoint: Path) -> None:
    family = load_processing(str(checkpoint)).family
    again = pickle.loads(pickle.dumps(family))
    limits = {"min_pixels": 1, "max_pixels": 300_000}
    for size in SIZES:
        seen = family.image_size(*size, **limits)
        assert again.image_size(*size, **limits) == seen
        assert again.image_text(*seen) == family.image_text(*seen)
    assert again.vision_blocks is family.vision_blocks
    registered = families.get(family.model_type)
    assert registered.image_size is not family.image_size
    assert pickle.loads(pickle.dumps(registered)) is not None


def test_attention_is_within_a_tile(tiled_checkpoint: Path) -> None:
    """By hand: twice the tiles are twice the operations."""
    family = families.get("internvl")
    shape = family.shape_of(read_config(str(tiled_checkpoint)))
    assert image_forward(shape, 80) == 2 * image_forward(shape, 40)
    attention = 4 * 2 * 96 * (10 * 16) * 16
    linear = 2 * shape.patch_weights * 160 + 2 * shape.merger_weights * 40
    assert image_forward(shape, 40) == linear + attention
