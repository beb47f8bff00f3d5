"""Every registered family keeps what its record promises, shown on a tiny random model of it and the library's own forward."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import stock_images
from PIL import Image
from safetensors import safe_open
from test_policy import encoder
from torch import Tensor, nn

from gpg_vl.answers.math.rectangles import COORDINATES
from gpg_vl.data.prompts import IMAGE_MARK
from gpg_vl.data.resizing import resized_size
from gpg_vl.errors import UserError
from gpg_vl.models import tiny
from gpg_vl.models.encode import Encoder
from gpg_vl.models.families import DEFAULT, boxes_of, families, family_of, known_for_boxes
from gpg_vl.models.families.boxes import SCORED_ONLY
from gpg_vl.models.families.family import Family
from gpg_vl.models.families.missing import MISSING
from gpg_vl.models.load import load_model, load_processing
from gpg_vl.quickstart import scenes
from gpg_vl.registry import UnknownNameError
from gpg_vl.types import Example, Prompt

NAMES = families.names()
SIZES = [(56, 56), (112, 84), (28, 200), (300, 60), (90, 91), (20, 400), (1600, 900), (13, 13)]
"""(width, height): fitting, to be rounded, narrow, to be shrunk, to be enlarged."""
LIMITS = {"min_pixels": 56 * 56, "max_pixels": 401408}
TILED = {"internvl", "smolvlm"}
"""Families that cut an image into tiles; the others see it in its own shape. tests/test_tiles.py has what is their own."""
SMALL = {"num_hidden_layers": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A family with a tiny checkpoint of it."""

    family: Family
    folder: Path
    model: Any
    encoder: Encoder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Makes a family's checkpoint when it is first asked for."""

    @cache
    def make(name: str) -> Made:
        folder = tmp_path_factory.mktemp(name) / "checkpoint"
        tokenizer = tiny.tiny_tokenizer(["How many balls are there?"], 384, model_type=name)
        config = tiny.tiny_config(tokenizer, 384, model_type=name, **SMALL)
        processor = tiny.tiny_processor(tokenizer, model_type=name)
        tiny.save_checkpoint(tiny.tiny_model(config, seed=0), processor, folder)
        return Made(
            family=encoder(folder).processing.family,
            folder=folder,
            model=load_model(str(folder)),
            encoder=encoder(folder),
        )

    return make


@pytest.fixture(params=NAMES)
def made(request: pytest.FixtureRequest, checkpoints: Callable[[str], Made]) -> Made:
    return checkpoints(request.param)


SEEING = [name for name in NAMES if families.get(name).has_vision]


@pytest.fixture(params=SEEING)
def seeing(request: pytest.FixtureRequest, checkpoints: Callable[[str], Made]) -> Made:
    return checkpoints(request.param)


@pytest.fixture(params=[name for name in SEEING if name not in TILED])
def whole(request: pytest.FixtureRequest, checkpoints: Callable[[str], Made]) -> Made:
    """Families that see an image in its own shape."""
    return checkpoints(request.param)


def example_of(sizes: list[tuple[int, int]]) -> Example:
    pictures = [scenes.png(Image.effect_noise(size, 60).convert("RGB")) for size in sizes]
    marks = " then ".join("<image>" for _ in sizes)
    return Example(id="x", images=tuple(pictures), prompt=f"See {marks} and count.", answer="1")


def parameters_in(*modules: nn.Module | None) -> set[int]:
    return {id(p) for module in modules if module is not None for p in module.parameters()}


def matrices(*modules: nn.Module) -> int:
    """Weights of all but biases and norms."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.dim() > 1)


def is_looked_up(name: str) -> bool:
    """Whether a parameter is a table of embeddings, which costs bytes and no arithmetic."""
    return name.endswith(
        ("pos_embed.weight", "cls_token", "position_embeddings", "position_embedding.weight")
    )


# ---- tokens


def test_tokens_of_a_family_are_in_its_vocabulary(made: Made) -> None:
    family, vocabulary = made.family, made.encoder.processing.tokenizer.get_vocab()
    assert {*family.control_tokens, *family.vision_tokens} <= vocabulary.keys()
    # where it is the mark of an image in rows, a row may hold it
    assert set(family.vision_tokens) - {IMAGE_MARK} <= set(family.control_tokens)
    assert made.encoder.processing.tokens.never_sampled == tuple(
        vocabulary[token] for token in family.vision_tokens
    )


def test_an_image_is_written_once_by_markup_and_template(made: Made) -> None:
    family = made.family
    if not family.has_vision:
        assert (family.image_token, family.image_markup) == (None, "")
        assert made.encoder.processing.tokens.image is None
        return
    assert family.image_token in family.vision_tokens
    assert family.image_markup.count(family.image_token) == 1
    for style in ("plain", "template"):
        text = encoder(made.folder, chat=style).render(example_of([(56, 56), (84, 84)]))
        assert text.count(family.image_markup) == text.count(family.image_token) == 2


def test_no_control_token_stands_in_a_users_text(made: Made) -> None:
    for token in made.family.control_tokens:
        with pytest.raises(UserError, match="contains the control token"):
            made.encoder.render(Example(id="x", prompt=f"a{token}b", answer="1"))


def test_a_tokenizer_of_another_model_is_refused(seeing: Made, tmp_path: Path) -> None:
    """Its image ids would be ordinary words to the model."""
    copy = shutil.copytree(seeing.folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"image_token_id": 7}))
    with pytest.raises(UserError, match=r"config\.json reads 7 as an image.*a matching pair"):
        load_processing(str(copy))


# ---- images


@pytest.mark.proves("token counts")
def test_tokens_counted_before_decoding_are_those_of_the_patches(seeing: Made) -> None:
    """And those of the features, which is what they stand for; counted from the sizes alone."""
    family, processing = seeing.family, seeing.encoder.processing
    images = [Image.effect_noise(size, 60).convert("RGB") for size in SIZES]
    seen = [family.image_size(*size, **LIMITS) for size in SIZES]
    patches = family.patches(processing.image_processor, images, **LIMITS)
    with torch.no_grad():
        features = family.image_features(seeing.model, patches.pixel_values_N, patches.grid_thw_I_3)

    assert [family.image_tokens(*size) for size in seen] == patches.tokens
    assert [len(f) for f in features] == patches.tokens
    assert int(patches.grid_thw_I_3.prod(dim=1).sum()) == len(patches.pixel_values_N)
    assert patches.pixel_values_N.dtype == torch.float32
    assert patches.grid_thw_I_3.dtype == torch.int64


def test_the_size_that_is_seen_is_the_one_that_boxes_are_scored_in(whole: Made) -> None:
    assert whole.family.boxes is not None
    side = whole.family.boxes.image_side(json.loads((whole.folder / "config.json").read_text()))
    for size in SIZES:
        width, height = whole.family.image_size(*size, **LIMITS)
        assert (width, height) == resized_size(*size, *LIMITS.values(), side=side)
        assert width % side == height % side == 0
        assert LIMITS["min_pixels"] <= width * height <= LIMITS["max_pixels"]


@pytest.mark.parametrize(
    "size,limits,message",
    [
        ((10, 3000), LIMITS, "10x3000 pixels is more than 200 times as long as wide"),
        ((60, 6000), {"min_pixels": 0, "max_pixels": 3136}, "60x6000 pixels is thinner than one"),
    ],
)
def test_an_image_that_cannot_be_shown_is_refused_in_words(
    whole: Made, size: tuple[int, int], limits: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        whole.family.image_size(*size, **limits)


def test_a_family_without_vision_has_no_images() -> None:
    family = families.get("qwen2")
    for ask in (
        lambda: family.image_size(56, 56, **LIMITS),
        lambda: family.image_tokens(56, 56),
    ):
        with pytest.raises(AssertionError, match="without vision has no images"):
            ask()


# ---- positions and features


def stock_inputs(made: Made, prompt: Prompt) -> dict[str, Tensor]:
    """What the library's own forward hands to the text tower for this prompt."""
    seen: dict[str, Tensor] = {}
    hook = made.family.language_model(made.model).register_forward_pre_hook(
        lambda module, arguments, named: seen.update(named), with_kwargs=True
    )
    try:
        with torch.no_grad():
            made.model(prompt.input_ids_T[None], **stock_images(made.model, prompt))
    finally:
        hook.remove()
    # a tower with one axis of positions counts by itself
    if seen["position_ids"] is None:
        seen["position_ids"] = torch.arange(prompt.length)[None]
    return seen


@pytest.mark.proves("positions", "several images")
@pytest.mark.parametrize("sizes", [[(112, 84)], [(140, 56), (84, 84), (28, 200)]])
def test_positions_and_embeddings_are_those_of_the_library(
    seeing: Made, sizes: list[tuple[int, int]]
) -> None:
    family, model = seeing.family, seeing.model
    prompt = seeing.encoder.encode(example_of(sizes))
    stock = stock_inputs(seeing, prompt)
    with torch.no_grad():
        features = family.image_features(model, prompt.pixel_values_N, prompt.grid_thw_I_3)
        plain_T_H = model.get_input_embeddings()(prompt.input_ids_T)
        placed_T_H = family.place_features(plain_T_H, features, prompt.image_mask_T)

    positions = family.tower_positions(prompt.positions_3_T[:, None])
    assert torch.equal(positions, stock["position_ids"])
    assert torch.equal(placed_T_H[None], stock["inputs_embeds"])
    assert torch.equal(placed_T_H[~prompt.image_mask_T], plain_T_H[~prompt.image_mask_T])
    width = placed_T_H.shape[1]
    assert torch.equal(placed_T_H[prompt.image_mask_T], torch.cat(features)[:, :width])

    deep = family.deep_features(model, features, prompt.image_mask_T)
    given = stock.get("deepstack_visual_embeds") or []
    assert len(given) == len(deep.get("deepstack_visual_embeds", []))
    assert torch.cat(features).shape[1] == width * (1 + len(given))
    if deep:
        assert torch.equal(deep["visual_pos_masks"], stock["visual_pos_masks"])
        for ours, theirs in zip(deep["deepstack_visual_embeds"], given, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.proves("positions")
def test_text_counts_up_on_every_axis_and_the_tower_takes_it(made: Made) -> None:
    """The tower with our positions computes what it computes with those it makes of its own."""
    prompt = made.encoder.encode(Example(id="x", prompt="How many balls?", answer="1"))
    assert torch.equal(prompt.positions_3_T, torch.arange(prompt.length).expand(3, -1))

    tower = made.family.language_model(made.model)
    embeddings = made.model.get_input_embeddings()(prompt.input_ids_T)[None]
    positions = made.family.tower_positions(prompt.positions_3_T[:, None])
    with torch.no_grad():
        ours = tower(inputs_embeds=embeddings, position_ids=positions).last_hidden_state
        stock = tower(inputs_embeds=embeddings).last_hidden_state
    assert torch.equal(ours, stock)


# ---- where the parts are


def test_layers_attentions_and_blocks_are_all_there_are(made: Made) -> None:
    family, model = made.family, made.model
    layers, attentions = family.layers(model), family.attentions(model)
    assert len(layers) == len(attentions) == SMALL["num_hidden_layers"]
    for number, (layer, attention) in enumerate(zip(layers, attentions, strict=True)):
        assert attention in list(layer.modules())
        assert attention.layer_idx == number
    assert parameters_in(*layers) < parameters_in(family.language_model(model))

    tower, blocks = family.vision_tower(model), family.vision_blocks(model)
    assert (tower is not None) == family.has_vision
    assert len(blocks) == (2 if family.has_vision else 0), "that tiny models are made with"
    assert parameters_in(*blocks) <= parameters_in(tower)


def test_every_parameter_belongs_to_the_part_it_is_in(made: Made) -> None:
    family, model = made.family, made.model
    parts: dict[str, set[int]] = {"vision": set(), "merger": set(), "language": set()}
    for name, parameter in model.named_parameters():
        parts[family.part_of(name)].add(id(parameter))

    vision = family.vision_modules(model)
    assert parts["vision"] | parts["merger"] == parameters_in(*vision)
    assert parts["language"] == parameters_in(
        family.language_model(model), model.get_output_embeddings()
    )
    assert parts["vision"] >= parameters_in(*family.vision_blocks(model))
    assert bool(parts["merger"]) == family.has_vision


def test_the_names_in_a_saved_checkpoint_belong_to_the_same_parts(made: Made) -> None:
    with safe_open(made.folder / "model.safetensors", "pt") as file:
        saved = [made.family.part_of(name) for name in file.keys()]  # noqa: SIM118  # no mapping
    loaded = [made.family.part_of(name) for name, _ in made.model.named_parameters()]
    assert sorted(saved) == sorted(loaded)


# ---- what is known from the config


def test_the_shape_is_that_of_the_counted_weights(made: Made) -> None:
    family, model = made.family, made.model
    shape, attentions = family.shape_of(model.config), family.attentions(model)
    assert shape.body == matrices(*family.layers(model))
    assert shape.head == model.get_output_embeddings().weight.numel()
    assert shape.layers == len(family.layers(model))
    assert shape.width == attentions[0].q_proj.out_features
    keys_and_values = [(a.k_proj.out_features, a.v_proj.out_features) for a in attentions]
    assert shape.key_values == sum(map(sum, keys_and_values))

    tower = family.vision_tower(model)
    if tower is None:
        assert (shape.patch_weights, shape.merger_weights, shape.merge) == (0, 0, 1)
        return
    named = dict(model.named_parameters())
    counted = {
        part: sum(
            p.numel()
            for name, p in named.items()
            if p.dim() > 1 and family.part_of(name) == part and not is_looked_up(name)
        )
        for part in ("vision", "merger")
    }
    assert shape.patch_weights == counted["vision"]
    assert shape.merger_weights == counted["merger"]


@pytest.mark.parametrize(
    "name,whole",
    [
        ("qwen2_vl", 2),
        ("qwen2_5_vl", 1),
        ("qwen3_vl", 2),
        ("internvl", 2),
        ("smolvlm", 2),
        ("qwen2", 0),
    ],
)
def test_blocks_that_see_the_whole_image(name: str, whole: int) -> None:
    """By hand: of two blocks, Qwen2.5-VL's first attends in windows."""
    tokenizer = tiny.tiny_tokenizer(["a"], 384, model_type=name)
    config = tiny.tiny_config(tokenizer, 384, model_type=name)
    assert families.get(name).shape_of(config).vision_layers == whole


@pytest.mark.parametrize(
    "name,coordinates",
    [
        ("qwen2_vl", "rel1000"),
        ("qwen2_5_vl", "abs_resized"),
        ("qwen3_vl", "rel1000"),
        ("qwen3_vl_moe", "rel1000"),
        ("internvl", "rel1000"),
        ("smolvlm", "rel1000"),
    ],
)
def test_how_boxes_are_written(name: str, coordinates: str) -> None:
    boxes = boxes_of(name)
    assert boxes is not None
    assert boxes.coordinates == coordinates
    assert boxes.image_side({}) == (32 if name.startswith("qwen3_vl") else 28)
    if name in TILED:
        return
    assert boxes.image_side({"vision_config": {"patch_size": 16, "spatial_merge_size": 3}}) == 48


def test_every_convention_exists() -> None:
    written = [boxes for name in known_for_boxes() if (boxes := boxes_of(name))]
    assert {boxes.coordinates for boxes in written} <= set(COORDINATES)
    assert boxes_of("qwen2") is None
    assert boxes_of("llava") is None
    assert not SCORED_ONLY.keys() & set(NAMES), "a family that is trained says it itself"


# ---- how a family is found


def test_a_family_is_found_by_its_model_type() -> None:
    assert DEFAULT in NAMES
    for name in NAMES:
        assert families.get(name).model_type == name


def test_an_unknown_family_is_told_the_nearest_and_all() -> None:
    with pytest.raises(UserError) as error:
        family_of("qwen2_5_v", "folder")
    text = str(error.value)
    assert "The checkpoint folder is of model type 'qwen2_5_v'" in text
    assert (
        "Did you mean 'qwen2_5_vl'? Known: internvl, qwen2, qwen2_5_vl, qwen2_vl, qwen3, qwen3_vl, smolvlm."
        in text
    )


def install(folder: Path, code: str, name: str, target: str) -> None:
    """As pip would leave a package: a module and a dist-info folder."""
    info = folder / "far_family-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "far_family.py").write_text(textwrap.dedent(code))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far_family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gpg_vl.families]\n{name} = far_family:{target}\n")


def test_a_family_of_another_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        from dataclasses import replace
        from gpg_vl.models.families.qwen2_vl import QWEN2_VL
        FAR = replace(QWEN2_VL, model_type="far_vl")
        NO_FAMILY = len
    """
    install(tmp_path, code, "far_vl", "FAR")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "far_family", raising=False)
    assert "far_vl" in families.names()
    assert "far_family" not in sys.modules
    assert family_of("far_vl", "x").model_type == "far_vl"
    monkeypatch.delitem(sys.modules, "far_family")


LACKS = {
    "qwen3_5": "a recurrent state and a convolution window",
    "qwen3_5_text": "a recurrent state and a convolution window",
    "qwen3_5_moe": "a recurrent state and a convolution window",
    "qwen3_vl_moe": "mixtures of experts",
    "gemma3": "one mask for all layers",
}


@pytest.mark.parametrize("name", LACKS)
def test_a_known_type_is_refused_with_what_is_missing(name: str) -> None:
    """Not with the nearest name, which is another model's."""
    with pytest.raises(UserError) as refused:
        family_of(name, "folder")
    said = str(refused.value)
    assert f"The checkpoint folder is of model type '{name}', which gpg_vl does not train" in said
    assert LACKS[name] in said
    assert "Did you mean" not in said
    assert said.endswith(f"Choose a checkpoint of one of these: {', '.join(families.names())}.")


def test_nothing_is_missing_of_a_family_that_is_trained() -> None:
    assert not MISSING.keys() & set(NAMES)


def test_what_is_no_family_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function would do for a registry of functions."""
    install(tmp_path, "NO_FAMILY = len\n", "far_vl", "NO_FAMILY")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "far_family", raising=False)
    with pytest.raises(UnknownNameError, match=r"far_family:NO_FAMILY.*no such Family"):
        family_of("far_vl", "x")
    monkeypatch.delitem(sys.modules, "far_family")


def test_families_are_listed_without_torch() -> None:
    """Scoring a file of boxes needs their conventions and no model."""
    code = (
        "import sys; from gpg_vl.models.families import boxes_of, families; "
        "assert families.names() and boxes_of('qwen3_vl_moe'); sys.exit(('torch' in sys.modules) * 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- an image where there is none


def test_a_blank_image_reaches_every_weight_of_the_tower_with_nothing(seeing: Made) -> None:
    """The smallest image; what it adds to a gradient is 0, not none: a process that waits for its part gets one."""
    family, model = seeing.family, seeing.model
    blank = family.blank_image(model.config, 1)
    smallest = 4 if family.model_type in TILED else 1
    assert blank.tokens == [smallest]
    of_41 = 40 if family.model_type in TILED else 36
    assert family.blank_image(model.config, 41).tokens == [of_41], "10 tiles, or 6 by 6"
    model.zero_grad(set_to_none=True)
    (features,) = family.image_features(model, blank.pixel_values_N, blank.grid_thw_I_3)
    assert len(features) == smallest
    assert features.shape[1] % model.config.get_text_config().hidden_size == 0
    assert features.isfinite().all()

    (0.0 * features.sum()).backward()
    for module in family.vision_modules(model):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name
    model.zero_grad(set_to_none=True)
