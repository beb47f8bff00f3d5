"""What a model family is: a frozen record of facts and functions. It computes nothing and imports no torch.

`model` is the transformers model, with or without adapters in it. Axes: `_T` tokens, `_I` images, `_N` patches of all
images, `_H` hidden size, `_B` rows; `_3` is time, height and width, or the three axes of positions.
"""

from __future__ import annotations  # tensors are named here, torch is not loaded

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from gpg_vl.models.families.boxes import Boxes
    from gpg_vl.models.shape import Shape


class Patches(NamedTuple):
    """Images as the vision tower takes them."""

    pixel_values_N: Tensor
    """[N, values] float32."""
    grid_thw_I_3: Tensor
    """int64 patches of each image in time, height and width; their products add up to N. Where an image is cut into tiles,
    they take the place of time."""
    tokens: list[int]
    """Image tokens of each image."""


class ImageSize(Protocol):
    """The size in which the model sees an image, from the size of the file."""

    def __call__(
        self, width: int, height: int, *, min_pixels: int, max_pixels: int
    ) -> tuple[int, int]:
        """(width, height) in pixels. Raises UserError, without a name of the image, if it cannot be shown."""


class Preparation(Protocol):
    """Images into patches."""

    def __call__(
        self,
        image_processor: Any,
        images: Sequence[Image.Image],
        *,
        min_pixels: int,
        max_pixels: int,
    ) -> Patches:
        """Each image resized as `image_size` says. `image_processor` is the checkpoint's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiny:
    """A tiny random model of the family, which tests and `gpg-vl doctor` make offline."""

    special_tokens: tuple[str, ...]
    """In the order in which they follow the vocabulary."""
    end_token: str
    pad_token: str
    chat_template: str
    config: Callable[[Any, int, Mapping[str, Any]], Any]
    """(tokenizer, vocabulary, settings that override those of the text tower) -> transformers config."""
    processor: Callable[[Any, str], Any]
    """(tokenizer, chat template) -> what `save_pretrained` writes next to the weights."""


def no_image(*_: object, **__: object) -> NoReturn:
    """What a family without vision answers to every question about images."""
    raise AssertionError("a family without vision has no images")


def as_registered(family: Family, config: Any) -> Family:
    """Of a family whose images do not depend on the config."""
    return family


def no_merger(model: Any) -> None:
    """Of a family whose merger is a part of its vision tower."""


def no_deep_features(
    model: Any, features: Sequence[Tensor], image_mask_T: Tensor
) -> Mapping[str, Any]:
    """Of a family whose features enter with the embeddings alone."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """All that gpg_vl has to know of a model family. The defaults are those of a family without vision.

    Example: `families.get("qwen2_vl")`; a sister of it is `dataclasses.replace(QWEN2_VL, model_type=..., ...)`.
    """

    # ---- what it is

    model_type: str
    """`model_type` in the checkpoint's config.json."""
    model_class: str
    """The class of transformers that loads it."""
    has_vision: bool = False

    # ---- tokens

    control_tokens: tuple[str, ...]
    """Never appear in the text of a user: they would open a turn or stand for an image."""
    text_tokens: tuple[str, ...] = ()
    """Special tokens that the text of a user may hold all the same: the family was taught to point with them."""
    vision_tokens: tuple[str, ...] = ()
    """Never sampled: a completion that held one would need an image that does not exist."""
    image_token: str | None = None
    """In its place the features of an image are put, once per image token."""
    image_markup: str = ""
    """What stands for one image in a rendered prompt, with one image token in it."""
    image_text: Callable[[int, int], str] | None = None
    """(width, height) that the model sees -> what the image token of a rendered prompt becomes: all image tokens of the image
    with marks around or between them. It begins and ends with special tokens. None: the image token, repeated."""

    # ---- images

    image_size: ImageSize = no_image
    image_tokens: Callable[[int, int], int] = no_image
    """(width, height) that the model sees -> number of image tokens. Looks at no pixel."""
    patches: Preparation = no_image
    processor_settings: Callable[[int, int], Mapping[str, Any]] = no_image
    """(min_pixels, max_pixels) -> what preprocessor_config.json must say for the checkpoint's own processor to make the image
    tokens of `image_size`."""
    blank_image: Callable[[Any, int], Patches] = no_image
    """(transformers config, tokens) -> an image of at most so many image tokens, all zeros; the smallest there is, if none is so
    small."""
    fit: Callable[[Family, Any], Family] = as_registered
    """(the family, transformers config) -> the family of checkpoints with this config, where what is above depends on it. Raises
    UserError, without a name of the checkpoint, for a config that cannot be computed exactly."""

    # ---- positions

    positions: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """(ids_T, image_mask_T, grid_thw_I_3 or None) -> positions_3_T, int64."""
    tower_positions: Callable[[Tensor], Tensor]
    """positions_3_B_T -> what the text tower takes as `position_ids`."""

    # ---- features

    image_features: Callable[[Any, Tensor, Tensor], list[Tensor]] = no_image
    """(model, pixel_values_N, grid_thw_I_3) -> [image tokens, H] of each image; differentiable. Where features enter behind
    several layers of the text tower, those of all layers side by side: [image tokens, layers * H], the embeddings first."""
    place_features: Callable[[Tensor, Sequence[Tensor], Tensor], Tensor] = no_image
    """(embeddings_T_H, features of the images in their order, image_mask_T) -> embeddings_T_H with features in place."""
    deep_features: Callable[[Any, Sequence[Tensor], Tensor], Mapping[str, Any]] = no_deep_features
    """(model, features of the images in their order, image_mask_T) -> what the text tower is called with besides, so that
    they enter behind its layers too."""

    # ---- where the parts of the model are

    language_model: Callable[[Any], nn.Module]
    """The text tower, without head."""
    layers: Callable[[Any], list[nn.Module]]
    """The decoder layers of the text tower, in order."""
    attentions: Callable[[Any], list[nn.Module]]
    """The attention module of each of them."""
    vision_tower: Callable[[Any], nn.Module | None] = lambda model: None
    """The vision tower, with its merger if that is a part of it."""
    merger: Callable[[Any], nn.Module | None] = no_merger
    """The merger, if it stands beside the vision tower."""
    vision_blocks: Callable[[Any], list[nn.Module]] = lambda model: []
    """The layers of the vision tower, in order."""
    patch_embedding: str = ""
    """The name, in the vision tower, of a convolution that is given single patches; "" if there is none."""
    part_of: Callable[[str], str] = lambda parameter_name: "language"
    """`vision`, `merger` or `language`: the part that a parameter of the model belongs to, by its name."""

    # ---- what is known from the config alone

    shape_of: Callable[[Any], Shape]
    """The sizes in a transformers config."""
    thinned: Callable[[Any, int], Any]
    """(transformers config, n) -> the config of a model of the same widths with one in n of its layers and of its vocabulary, at
    least one of each. Its special tokens are those of nobody: such a model is timed, never asked."""
    boxes: Boxes | None = None
    """How it writes boxes where nothing else is asked for; None if it sees no images, or nothing is known."""
    sampled_by_vllm: bool = True
    """Whether vLLM takes its images as gpg_vl hands them over: patches and a grid, without marks inside of an image."""
    tiny: Tiny

    def vision_modules(self, model: Any) -> list[nn.Module]:
        """The modules that make features of an image: the vision tower, and its merger if that stands beside it."""
        parts = (self.vision_tower(model), self.merger(model))
        return [part for part in parts if part is not None]

    def __reduce__(self) -> tuple[Callable[..., Family], tuple[str, Mapping[str, Any]]]:
        """It travels to another process by its name, because not all of its functions have one, and with what `fit` changed."""
        from gpg_vl.models.families import family_of

        registered = family_of(self.model_type, "")
        names = [field.name for field in fields(self)]
        changed = {
            name: getattr(self, name)
            for name in names
            if getattr(self, name) is not getattr(registered, name)
        }
        return _restore, (self.model_type, changed)


def _restore(model_type: str, changed: Mapping[str, Any]) -> Family:
    from gpg_vl.models.families import family_of

    registered = family_of(model_type, "")
    return replace(registered, **changed) if changed else registered
