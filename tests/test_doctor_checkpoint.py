"""`gpg-vl doctor --model`: what can be trained is said to be, and of what cannot be the missing fact is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from runs import gpg_vl

from gpg_vl.doctor.checkpoint import examine_checkpoint

FAMILIES = {
    "tiny_checkpoint": ("qwen2_vl, images and text", "ok"),
    "deep_checkpoint": ("qwen3_vl, images and text", "ok"),
    "tiled_checkpoint": ("internvl, images and text", "missing"),
    "marked_checkpoint": ("smolvlm, images and text", "missing"),
    "text_checkpoint": ("qwen2, text only", "ok"),
}
"""Fixture -> what is said of the model, and whether vLLM samples it."""


@pytest.mark.parametrize("fixture", FAMILIES)
def test_a_checkpoint_that_can_be_trained(request: pytest.FixtureRequest, fixture: str) -> None:
    report = examine_checkpoint(str(request.getfixturevalue(fixture)))
    assert report.ok
    found = {finding.name: finding for finding in report.findings}
    said, by_vllm = FAMILIES[fixture]
    assert found["model"].detail.startswith(said)
    assert found["weights"].detail.startswith("1 file(s)")
    assert "with a chat template" in found["tokenizer"].detail
    assert found["vLLM"].status == by_vllm


def change(**values: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        file = folder / "config.json"
        config = json.loads(file.read_text())
        for name, value in values.items():
            (config.get("text_config", config) if name != "model_type" else config)[name] = value
        file.write_text(json.dumps(config))

    return write


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickle_alone(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BROKEN = {
    "another type": (change(model_type="bert"), "model", "'bert', which gpg_vl does not train"),
    "dropout": (change(attention_dropout=0.1), "model", "attention_dropout 0.1; only 0 is allowed"),
    "no layers that fit": (change(num_attention_heads=7), "model", "config.json"),
    "no config": (remove("config.json"), "model", "has no config.json"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer", "tokenizer.json"),
    "pickle": (pickle_alone, "weights", "only pytorch_model.bin. Only safetensors files are read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_missing_is_named(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    break_it, place, said = BROKEN[name]
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    break_it(folder)
    report = examine_checkpoint(str(folder))
    assert not report.ok
    assert report.findings[-1].name == place
    assert said in report.findings[-1].remedy


@pytest.mark.parametrize("config", ["Qwen3_5Config", "Qwen3_5MoeConfig", "Qwen3_5TextConfig"])
def test_linear_attention_is_what_is_missing(tmp_path: Path, config: str) -> None:
    """Said by the command, of a config that the library itself writes."""
    getattr(transformers, config)().save_pretrained(tmp_path)
    done = gpg_vl("doctor", "--model", tmp_path)
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "its linear attention layers leave a recurrent state and a convolution window" in said
    assert "Did you mean" not in said


def test_the_command_has_the_exit_code_of_its_report(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = gpg_vl("doctor", "--model", tiny_checkpoint)
    assert done.returncode == 0, done.stderr
    assert "qwen2_vl, images and text" in done.stdout
    missing = gpg_vl("doctor", "--model", tmp_path)
    assert missing.returncode == 1
    assert "has no config.json" in missing.stdout
