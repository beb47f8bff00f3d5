"""Saves a model as an ordinary checkpoint, tensor by tensor, so that no process needs a second complete copy.

Files, names and bytes are the same that transformers would write. Each tensor is written in its own dtype, so nothing is
lost; the config names the widest of them, for readers that use one dtype for all.

The small files next to the weights match the training: the processor makes the same image tokens as the run.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpg_vl.models.adapters import merged_dtypes, plain_weights
from gpg_vl.models.load import Processing
from gpg_vl.prompting import PixelLimits

LARGEST_FILE = "50GB"
"""The default of transformers."""
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
"""Their names in safetensors."""


def save_model(
    model: Any,
    weights: Iterable[tuple[str, Tensor]],
    folder: Path,
    dtype: torch.dtype | None = None,
) -> None:
    """Write config and weights of a transformers model. Iterates the weights to the end.

    model: provides names and shapes; it may have adapters or be sharded.
    weights: whole tensors under the names of the plain model, see `adapters.merged_weights`.
    dtype: all weights are rounded to this dtype; None writes each in its own dtype.
    """
    save_model_configs(model, folder, dtype)
    places = _lay_out(model, folder, dtype)
    for name, tensor in weights:
        if (place := places.pop(name, None)) is not None:
            place.write(tensor if dtype is None else tensor.to(dtype))
    assert not places, f"no weights came for {sorted(places)[:3]} and others, {len(places)} in all"


def save_model_configs(model: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json and generation_config.json of a transformers model, without its weights.

    dtype: the dtype of all its weights; None: each has its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    widest = dtype or reduce(torch.promote_types, merged_dtypes(model).values())
    model.config.dtype = str(widest).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        _save_generation_config(model.generation_config, folder)


def _save_generation_config(settings: Any, folder: Path) -> None:
    """Write the settings unchanged, even if transformers would refuse to write them, such as a temperature with greedy
    decoding.

    Training does not use its sampling settings, but other engines use some that transformers ignores, so all are kept.
    """
    try:
        settings.save_pretrained(folder)
    except ValueError:
        text = settings.to_json_string()
        (folder / "generation_config.json").write_text(text, encoding="utf-8")


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn the bare Exception that tokenizers raises for errors of the operating system into an OSError."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error


def save_processing(processing: Processing, limits: PixelLimits, folder: Path) -> None:
    """Write tokenizer, chat template and processors, so that `AutoProcessor.from_pretrained` makes the image tokens of training.

    limits: the limits under which images were resized; the original checkpoint may have others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _as_os_error():
        processing.tokenizer.save_pretrained(folder)
    if processing.image_processor is None:
        return

    processing.image_processor.save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings |= processing.family.processor_settings(limits.min_pixels, limits.max_pixels)
    _write_json(file, settings)

    # write a separate file for videos, because otherwise the image settings would be used for them
    if processing.video_settings is not None:
        _write_json(folder / "video_preprocessor_config.json", processing.video_settings)
    if processing.joint_settings is not None:
        _write_json(folder / "processor_config.json", processing.joint_settings)


def follow_umask(folder: Path) -> None:
    """Give every file in the folder the default permissions of new files; safetensors makes files only their owner can
    read."""
    mask = os.umask(0o077)
    os.umask(mask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    file.write_text(text, encoding="utf-8")


class Place(NamedTuple):
    """The position of a tensor in its file."""

    file: Path
    start: int
    like: Tensor

    def write(self, tensor: Tensor) -> None:
        assert (tensor.shape, tensor.dtype) == (self.like.shape, self.like.dtype)
        numbers = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        with self.file.open("r+b") as file:
            file.seek(self.start)
            file.write(numbers.numpy().data)


def _lay_out(model: Any, folder: Path, dtype: torch.dtype | None) -> dict[str, Place]:
    """Create the files without data. Returns the place of each saved tensor, by its name in the model."""
    from huggingface_hub import split_torch_state_dict_into_shards

    saved = _saved_names(model, dtype)
    stand_ins = dict(saved.values())
    split = split_torch_state_dict_into_shards(
        stand_ins, filename_pattern="model{suffix}.safetensors", max_shard_size=LARGEST_FILE
    )
    if split.is_sharded:
        metadata = {"total_parameters": model.num_parameters(), **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    starts: dict[str, tuple[Path, int]] = {}
    for name, tensors in split.filename_to_tensors.items():
        file = folder / name
        offsets = open_file(file, {tensor: stand_ins[tensor] for tensor in tensors})
        starts |= {tensor: (file, start) for tensor, start in offsets.items()}
    return {name: Place(*starts[saved_as], tensor) for name, (saved_as, tensor) in saved.items()}


def _saved_names(model: Any, dtype: torch.dtype | None) -> dict[str, tuple[str, Tensor]]:
    """For each saved weight its name in the checkpoint and a tensor without data; of tied weights only the first."""
    from transformers.core_model_loading import revert_weight_conversion

    # take shapes from the config, because a process may have only parts of tensors
    with torch.device("meta"):
        shapes = {
            name: tensor.shape for name, tensor in type(model)(model.config).state_dict().items()
        }

    tied = set(model.all_tied_weights_keys)
    dtypes = merged_dtypes(model)
    stand_ins = {
        name: torch.empty(shapes[name], dtype=dtype or dtypes[name], device="meta")
        for name, tensor in plain_weights(model).items()
        if name not in tied
    }
    name_of = {id(tensor): name for name, tensor in stand_ins.items()}
    reverted: Mapping[str, Tensor] = revert_weight_conversion(model, dict(stand_ins))
    return {name_of[id(tensor)]: (saved_as, tensor) for saved_as, tensor in reverted.items()}


def open_file(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Create a safetensors file with its header and space for the data. Returns the offset of each tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }

    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(first + end)
    return {name: first + header[name]["data_offsets"][0] for name in tensors}
