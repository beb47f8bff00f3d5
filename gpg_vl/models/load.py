"""Loads checkpoints: the model family, the processor and the model.

Each way in which a folder can be wrong has its own error message.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from gpg_vl.data.prompts import IMAGE_MARK
from gpg_vl.errors import UserError
from gpg_vl.hub import is_hub_name, is_local_only, refuse_unreachable
from gpg_vl.models.checkpoint_json import read_json
from gpg_vl.models.families import Family, family_of
from gpg_vl.models.template import try_template
from gpg_vl.models.torchvision_shim import ensure_torchvision
from gpg_vl.models.unsupported import refuse_foreign_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ANSWER_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""Prompts may contain these tags, and some checkpoints have special tokens for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The token ids that sampling needs to know."""

    ends: tuple[int, ...]
    """Every id that ends a completion."""
    pad: int
    image: int | None
    """The id that is replaced by image features."""
    never_sampled: tuple[int, ...]
    """Vision ids: a sampled one would stand for an image that does not exist."""
    special: tuple[str, ...] = ()
    """Texts that the tokenizer reads as special tokens, which rows must not contain."""
    context: int | None = None
    """Maximum length in tokens that the model supports, prompt and answer together; None if its config does not say."""
    turn_end: int | None = None
    """The special token that the chat template writes after an answer. It should be one of `ends`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processing:
    """The tokenizer and image processor of one checkpoint."""

    family: Family
    tokenizer: Any
    image_processor: Any | None
    """None for text-only families."""
    chat_template: str | None
    tokens: Tokens
    video_settings: Mapping[str, Any] | None = None
    """The settings of the checkpoint's video processor. They are not used, only copied into the checkpoints of a run."""
    joint_settings: Mapping[str, Any] | None = None
    """The settings of the checkpoint's processor as a whole, likewise."""


def read_config(path: str, revision: str | None = None) -> Any:
    """The checkpoint's transformers config.

    Raises UserError if there is none or it cannot be read.
    """
    ensure_torchvision()
    from transformers import AutoConfig

    folder = Path(path)
    _refuse_adapters(folder)
    if not is_hub_name(path) and not (folder / "config.json").is_file():
        missing = (
            "" if folder.exists() else " (the folder does not exist; a hub name has one slash)"
        )
        raise UserError(
            f"The checkpoint {path} has no config.json{missing}. Give a folder written by save_pretrained, or a hub name."
        )
    try:
        written = read_json(path, revision, "config.json")
        if not written:
            refuse_unreachable(path)
        refuse_foreign_parts(written, path)
        return AutoConfig.from_pretrained(
            path,
            revision=revision,
            trust_remote_code=False,
            local_files_only=is_local_only(path),
            attn_implementation="sdpa",
        )
    except UserError:
        raise
    # errors that the config class raises for values of a wrong type
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The checkpoint {path} cannot be read: {_first_line(error)} Give a folder written by save_pretrained, "
            f"or a hub name of a supported family."
        ) from None
    except StrictDataclassError as error:
        raise UserError(
            f"config.json of {path} cannot be read: {' '.join(str(error).split())}. Copy the file from the original "
            f"checkpoint."
        ) from None


def _refuse_adapters(folder: Path) -> None:
    """Refuse a folder with only adapters, for which transformers would load the base model from wherever the folder
    says."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return

    merged = folder.parent / "model"
    if (merged / "config.json").is_file():
        instead = f"Give {merged}, the same model with its adapters merged in."
    else:
        instead = (
            f"Merge them into their base model, {_base_of(file)} (PeftModel.from_pretrained, merge_and_unload, save_pretrained), "
            f"and give that folder; a checkpoint of gpg_vl has it already, as model/ next to adapter/."
        )
    raise UserError(
        f"The folder {folder} has adapters (peft), not a model; a complete checkpoint is needed. {instead}"
    )


def _base_of(file: Path) -> str:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    name = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    return str(name) if name else "which its adapter_config.json does not name"


def load_processing(path: str, revision: str | None = None) -> Processing:
    """Load tokenizer, image processor and token ids of a checkpoint, without weights.

    Raises UserError.
    """
    config = read_config(path, revision)
    from transformers import AutoImageProcessor, AutoTokenizer

    family = _fit(config, path)
    images = None
    try:
        local = is_local_only(path)
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=False, local_files_only=local
        )
        if family.has_vision:
            images = AutoImageProcessor.from_pretrained(
                path, revision=revision, trust_remote_code=False, local_files_only=local
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The tokenizer or image processor of {path} cannot be read: {_first_line(error)} Copy the files "
            f"tokenizer.json, tokenizer_config.json and preprocessor_config.json from the original checkpoint."
        ) from None

    # older vision checkpoints have the template in a separate file
    if tokenizer.chat_template is None:
        content = read_json(path, revision, "chat_template.json")
        tokenizer.chat_template = content.get("chat_template")

    template = _default_template(tokenizer, path)
    tokens = _find_tokens(path, revision, config, tokenizer, family)
    if template is not None:
        names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        behind = try_template(template, names, has_vision=family.has_vision, where=path)
        tokens = replace(tokens, turn_end=_first_special(tokenizer, behind or ""))
    return Processing(
        family=family,
        tokenizer=tokenizer,
        image_processor=images,
        chat_template=template,
        tokens=tokens,
        video_settings=_video_settings(path, revision) if family.has_vision else None,
        joint_settings=_joint_settings(path, revision) if family.has_vision else None,
    )


def _fit(config: Any, path: str) -> Family:
    family = family_of(config.model_type, path)
    try:
        return family.fit(family, config)
    except UserError as error:
        raise UserError(f"The checkpoint {path} cannot be trained: {error}") from None


def _joint_settings(path: str, revision: str | None) -> Mapping[str, Any] | None:
    """What processor_config.json says beside the settings of its parts, such as the image tokens of a tile."""
    content = read_json(path, revision, "processor_config.json")
    own = {key: value for key, value in content.items() if not isinstance(value, dict)}
    return own if own.keys() - {"processor_class"} else None


def _video_settings(path: str, revision: str | None) -> Mapping[str, Any] | None:
    """Read them from the same files and in the same order as transformers; older checkpoints have one file for images and
    videos."""
    nested: Mapping[str, Any] | None
    nested = read_json(path, revision, "processor_config.json").get("video_processor")
    own = nested or read_json(path, revision, "video_preprocessor_config.json")
    return own or read_json(path, revision, "preprocessor_config.json") or None


def _default_template(tokenizer: Any, path: str) -> str | None:
    """The chat template for conversations without tools; a checkpoint may have several named templates."""
    templates = tokenizer.chat_template
    template = templates.get("default") if isinstance(templates, dict) else templates
    if template is None and templates:
        raise UserError(
            f"The chat templates of {path} are called {', '.join(map(repr, templates))}; one must be called 'default'. "
            f"Rename the one to be used for conversations."
        )
    if template is not None and not isinstance(template, str):
        raise UserError(
            f"The chat template of {path} is {template!r:.80}; it must be a text. Copy the file from the original "
            f"checkpoint."
        )
    return template


def _first_special(tokenizer: Any, text: str) -> int | None:
    """The first special token of `text`."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return next((i for i in ids if i in tokenizer.added_tokens_decoder), None)


def read_generation_config(path: str, revision: str | None = None) -> Any | None:
    """The checkpoint's generation_config.json as transformers reads it; None if it has none.

    Raises UserError if transformers would not load a model with it.
    """
    from transformers import GenerationConfig

    settings = read_json(path, revision, "generation_config.json")
    if not settings:
        return None
    try:
        return GenerationConfig.from_dict(settings)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"generation_config.json of {path} cannot be used: {_first_line(error)} Training uses only its eos_token_id: "
            f"correct the setting, or remove it."
        ) from None


def _find_tokens(
    path: str, revision: str | None, config: Any, tokenizer: Any, family: Family
) -> Tokens:
    """End tokens are those of the generation config (ids only: its sampling settings are never
    read), config and tokenizer.
    """
    text_config = config.get_text_config()
    listed = read_json(path, revision, "generation_config.json").get("eos_token_id")

    ends: list[int] = []
    for ids in (listed, getattr(text_config, "eos_token_id", None), tokenizer.eos_token_id):
        if ids is not None:
            ends += ids if isinstance(ids, list) else [ids]
    if wrong := [i for i in ends if not isinstance(i, int) or isinstance(i, bool)]:
        raise UserError(
            f"The checkpoint {path} names {wrong[0]!r} as an end-of-sequence token; it must be a whole number. Correct "
            f"eos_token_id in its generation_config.json and config.json."
        )
    if not ends:
        raise UserError(
            f"The checkpoint {path} names no end-of-sequence token. Set eos_token_id in its config.json."
        )

    vocabulary = tokenizer.get_vocab()
    vision = tuple(vocabulary[t] for t in family.vision_tokens if t in vocabulary)
    return Tokens(
        ends=tuple(dict.fromkeys(ends)),
        pad=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0],
        image=_find_image_id(path, config, vocabulary, family),
        never_sampled=vision,
        special=_find_special(tokenizer, family),
        context=getattr(text_config, "max_position_embeddings", None),
    )


def _find_special(tokenizer: Any, family: Family) -> tuple[str, ...]:
    """The tokenizer's special tokens, except those that prompts may contain: object marks and answer tags."""
    added = tokenizer.added_tokens_decoder.values()
    texts = [token.content for token in added if token.special] + list(tokenizer.all_special_tokens)
    allowed = {*family.text_tokens, *_ANSWER_TAGS, IMAGE_MARK}
    return tuple(text for text in dict.fromkeys(texts) if text.strip() and text not in allowed)


def _find_image_id(
    path: str, config: Any, vocabulary: Mapping[str, int], family: Family
) -> int | None:
    """The id of the family's image token, None if it has none.

    Raises UserError if config and tokenizer disagree on it.
    """
    if family.image_token is None:
        return None

    written = vocabulary.get(family.image_token)
    read = getattr(config, "image_token_id", written)
    if written is None or written != read:
        raise UserError(
            f"The tokenizer of {path} writes {family.image_token} as the id {written}, but its config.json reads {read} "
            f"as an image. They do not match; use a matching pair."
        )
    return written


def load_model(
    path: str, *, revision: str | None = None, attention: str = "sdpa"
) -> "PreTrainedModel":
    """Load the model with float32 weights, on the CPU, in eval mode. Raises UserError if a weight is missing or unused.

    With a missing weight, training would silently start from random numbers.
    """
    config = read_config(path, revision)
    import transformers

    family = family_of(config.model_type, path)
    model_class = getattr(transformers, family.model_class)

    try:
        with quiet():
            model, report = model_class.from_pretrained(
                path,
                revision=revision,
                dtype=torch.float32,
                trust_remote_code=False,
                local_files_only=is_local_only(path),
                attn_implementation=attention,
                output_loading_info=True,
                use_safetensors=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(
            f"The weights of {path} cannot be read: {_first_line(error)} Copy the checkpoint again; only safetensors "
            f"files are read."
        ) from None
    except SafetensorError as error:
        raise UserError(
            f"The weights of {path} are damaged: {_first_line(error)} Copy the checkpoint again."
        ) from None

    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, report.get(kind) or ())):
            raise UserError(
                f"The checkpoint {path} has {len(keys)} {kind.replace('_', ' ')}, such as {keys[0]}. Its weights and its "
                f"config.json do not belong together; use a matching pair."
            )

    loaded: PreTrainedModel = model.eval()
    return loaded


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    line = text[0] if text else type(error).__name__
    return line if line.endswith(".") else line + "."


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off transformers' progress bars, which would break the lines of ours."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
