"""The processor in a checkpoint of a run: it makes the image tokens that were trained with, whatever the base had."""

import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import gpg_vl, write_config
from test_train import last_checkpoint
from transformers import AutoImageProcessor, AutoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from gpg_vl.errors import UserError
from gpg_vl.models.encode import Encoder
from gpg_vl.models.families import families
from gpg_vl.models.load import load_processing
from gpg_vl.models.save import save_processing
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.types import Example

SIZES = [(700, 900), (56, 56), (13, 13), (14, 300), (300, 14), (10, 200), (28, 41), (900, 90)]
LIMITS = [
    PixelLimits(),
    PixelLimits(min_pixels=784, max_pixels=5000),
    PixelLimits(max_pixels=2**20),
]


def seen_by(checkpoint: Path) -> Callable[[tuple[int, int]], int]:
    """Image tokens that the checkpoint's own processor makes of a picture of a size, through the library alone."""
    processor = AutoProcessor.from_pretrained(checkpoint)

    def tokens(size: tuple[int, int]) -> int:
        inputs = processor(text=["<|image_pad|>"], images=[Image.new("RGB", size)])
        return int(inputs["image_grid_thw"].prod()) // 4

    return tokens


def trained_on(checkpoint: Path, limits: PixelLimits) -> Callable[[tuple[int, int]], int | None]:
    """Image tokens of the prompt that training makes of a picture of a size; None where it refuses the picture."""
    processing = load_processing(str(checkpoint))
    encoder = Encoder(processing=processing, style=PromptStyle(), limits=limits, root=None)

    def tokens(size: tuple[int, int]) -> int | None:
        file = BytesIO()
        Image.new("RGB", size).save(file, "PNG")
        example = Example(id="x", images=(file.getvalue(),), prompt="Which?", answer="A")
        try:
            return int(encoder.encode(example).image_mask_T.sum())
        except UserError:
            return None

    return tokens


@given(
    st.sampled_from([("qwen2_vl", 28), ("qwen3_vl", 32)]),
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1024, 500_000),
    st.integers(1024, 500_000),
)
@settings(deadline=None)
def test_any_picture_is_resized_as_the_library_does_it(
    family: tuple[str, int], width: int, height: int, low: int, high: int
) -> None:
    """Pictures thinner than half an image token too, where qwen_vl_utils has another rule."""
    assume(low <= high)
    assume(max(width, height) <= 200 * min(width, height))
    name, side = family
    rows, columns = smart_resize(height, width, factor=side, min_pixels=low, max_pixels=high)
    try:
        seen = families.get(name).image_size(width, height, min_pixels=low, max_pixels=high)
    except UserError:
        assert min(rows, columns) == side
        assert rows * columns > high
        return
    assert seen == (columns, rows)


def base_like(checkpoint: Path, folder: Path, kind: str) -> Path:
    """A copy of the checkpoint whose processor is written as released ones are, or resizes nothing, or otherwise."""
    shutil.copytree(checkpoint, folder)
    file = folder / "processor_config.json"
    nested: dict[str, Any] = json.loads(file.read_text())
    image = nested["image_processor"]
    if kind == "as it is":
        return folder

    file.unlink()
    if kind == "of an older version":
        del image["size"]
        image |= {"min_pixels": 3136, "max_pixels": 12_845_056}
    elif kind == "that resizes nothing":
        image |= {"do_resize": False, "resample": 0}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    return folder


@pytest.mark.parametrize("family", ["tiny_checkpoint", "newer_checkpoint", "deep_checkpoint"])
@pytest.mark.parametrize("kind", ["as it is", "of an older version", "that resizes nothing"])
def test_the_saved_processor_makes_the_image_tokens_of_training(
    kind: str, family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = base_like(request.getfixturevalue(family), tmp_path / "base", kind)
    for number, limits in enumerate(LIMITS):
        saved = tmp_path / str(number)
        shutil.copytree(base, saved, ignore=shutil.ignore_patterns("*processor*", "model*"))
        save_processing(load_processing(str(base)), limits, saved)
        ours, theirs = trained_on(base, limits), seen_by(saved)
        shown = {size: tokens for size in SIZES if (tokens := ours(size)) is not None}
        # the larger an image token, the more pictures are thinner than one
        assert len(shown) >= (5 if family == "deep_checkpoint" else 7)
        assert {size: theirs(size) for size in shown} == shown, limits


def test_readers_of_every_version_find_the_limits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Older ones know two numbers, newer ones a size; what the base says of videos stays what it was."""
    limits = PixelLimits(min_pixels=1000, max_pixels=2000)
    save_processing(load_processing(str(tiny_checkpoint)), limits, tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (saved["min_pixels"], saved["max_pixels"]) == (1000, 2000)
    assert saved["size"] == {"shortest_edge": 1000, "longest_edge": 2000}
    assert AutoImageProcessor.from_pretrained(tmp_path).size["longest_edge"] == 2000

    base = json.loads((tiny_checkpoint / "processor_config.json").read_text())
    videos = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert videos == base["video_processor"]
    assert videos["size"]["longest_edge"] == 28 * 28 * 256


def test_a_run_saves_the_processor_that_it_trained_with(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The base is limited to 256 image tokens, the run by its own max_pixels: 22 x 22 for a large square."""
    config = write_config(tmp_path, tiny_checkpoint, train={"steps": 1})
    result = gpg_vl("train", config)
    assert result.returncode == 0, result.stderr
    saved = last_checkpoint(tmp_path / "run") / "model"
    assert seen_by(tiny_checkpoint)((1000, 1000)) == 16 * 16
    assert seen_by(saved)((1000, 1000)) == 22 * 22
    assert (
        AutoProcessor.from_pretrained(saved).video_processor.size["longest_edge"] == 28 * 28 * 256
    )


def test_a_full_disk_is_an_os_error_whoever_writes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """tokenizers raises a bare Exception, which no caller could tell from a bug."""
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_processing(load_processing(str(tiny_checkpoint)), PixelLimits(), tmp_path)
