"""Shared fixtures: one tiny real checkpoint per session, and encoders over it. No network, no GPU."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch

from gpg_vl.models.torchvision_shim import ensure_torchvision

ensure_torchvision()

from gpg_vl.quickstart import scenes
from gpg_vl.types import Example


def scene_example(number: int, seed: int = 3) -> Example:
    """A drawn scene as an example with its picture as bytes."""
    row = next(iter(scenes.rows(seed, 1, start=number)))
    return Example(
        id=str(number),
        images=(row["image"]["bytes"],),
        prompt=row["prompt"],
        answer=row["answer"],
        choices=tuple(row["choices"]),
        task=row["task"],
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Qwen2-VL in the ordinary format."""
    return _checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", "qwen2_vl")


@pytest.fixture(scope="session")
def newer_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Qwen2.5-VL: windows in its vision tower, everything else as in the other."""
    return _checkpoint(tmp_path_factory.mktemp("newer") / "checkpoint", "qwen2_5_vl")


def _checkpoint(folder: Path, model_type: str, **text: str | int) -> Path:
    from gpg_vl.models import tiny

    corpus = [row["prompt"] for row in scenes.rows(3, 40)] + list("ABCD0123456789")
    tokenizer = tiny.tiny_tokenizer(corpus, 384, model_type=model_type)
    config = tiny.tiny_config(
        tokenizer,
        384,
        model_type=model_type,
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=2,
        num_key_value_heads=1,
        **text,
    )
    processor = tiny.tiny_processor(tokenizer, model_type=model_type)
    tiny.save_checkpoint(tiny.tiny_model(config, seed=0), processor, folder)
    return folder


@pytest.fixture(scope="session")
def deep_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Qwen3-VL: features enter behind the first layer of the text tower too, patches of 16 pixels."""
    return _checkpoint(tmp_path_factory.mktemp("deep") / "checkpoint", "qwen3_vl")


@pytest.fixture(scope="session")
def tiled_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny InternVL: an image is cut into tiles of 56 pixels, positions have one axis."""
    return _checkpoint(tmp_path_factory.mktemp("tiled") / "checkpoint", "internvl")


@pytest.fixture(scope="session")
def tiled_qwen3_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the text tower of Qwen3, as InternVL 3.5 has it."""
    folder = tmp_path_factory.mktemp("tiled_qwen3") / "checkpoint"
    return _checkpoint(folder, "internvl", text_tower="qwen3", head_dim=32)


@pytest.fixture(scope="session")
def marked_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny SmolVLM: tiles of 128 pixels, each behind its name in the prompt; the text tower is Llama's."""
    return _checkpoint(tmp_path_factory.mktemp("marked") / "checkpoint", "smolvlm")


@pytest.fixture(scope="session")
def normed_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny text-only Qwen3: queries and keys are normalised head by head."""
    return _checkpoint(tmp_path_factory.mktemp("normed") / "checkpoint", "qwen3")


@pytest.fixture(scope="session")
def text_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny text-only Qwen2 with the same tokenizer."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("text") / "checkpoint"
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=384,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                tie_word_embeddings=True,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
