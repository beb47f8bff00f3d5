"""What a run would save is saved once before it trains: what cannot be is said then, and nothing of the rest is lost."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import gpg_vl, write_config
from test_train import last_checkpoint
from transformers import GenerationConfig

from gpg_vl.config import load_config
from gpg_vl.errors import UserError
from gpg_vl.models.load import load_processing
from gpg_vl.training.prepare import make_encoder
from gpg_vl.training.trial_save import refuse_unsavable


def changed(checkpoint: Path, folder: Path, file: str, **settings: Any) -> Path:
    """A copy of the checkpoint with other settings in one of its files."""
    shutil.copytree(checkpoint, folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **settings}))
    return folder


def try_run(tmp_path: Path, model: Path, **section: Any) -> None:
    config = load_config(write_config(tmp_path, model, model=section))
    refuse_unsavable(config, make_encoder(config))


GREEDY = {"do_sample": False, "temperature": 0.5, "top_p": 0.9, "top_k": 7}


def test_settings_that_transformers_refuses_to_write_are_kept(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Sampling settings of greedy answers: read without a word, refused at the first save. All of them are saved."""
    model = changed(tiny_checkpoint, tmp_path / "model", "generation_config.json", **GREEDY)
    with pytest.raises(ValueError, match="temperature"):
        GenerationConfig.from_pretrained(model).save_pretrained(tmp_path / "theirs")

    result = gpg_vl("train", write_config(tmp_path, model, train={"steps": 1}))
    assert result.returncode == 0, result.stderr
    saved = last_checkpoint(tmp_path / "run") / "model"
    before = json.loads((model / "generation_config.json").read_text())
    after = json.loads((saved / "generation_config.json").read_text())
    assert {key: after[key] for key in before} == before
    assert load_processing(str(saved)).tokens == load_processing(str(model)).tokens


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1, "early_stopping": True, "length_penalty": 3.0},
        {"do_sample": False, "temperature": 0.3},
        {"output_scores": True, "return_dict_in_generate": False},
        {"pad_token_id": -1},
        {"of_another_library": {"a": [1]}},
    ],
)
def test_odd_generation_settings_do_not_stop_a_run(
    tiny_checkpoint: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = changed(tiny_checkpoint, tmp_path / "model", "generation_config.json", **settings)
    try_run(tmp_path, model)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            {"early_stopping": "maybe", "num_beams": 3},
            "generation_config.json .* cannot be used: .*early_stopping",
        ),
        ({"max_new_tokens": -3}, "generation_config.json .* cannot be used: .*max_new_tokens"),
        ({"cache_implementation": "own"}, "generation_config.json .* cannot be used: .*cache_impl"),
        ({"watermarking_config": {"x": 1}}, "generation_config.json .* cannot be used"),
        (
            {"eos_token_id": "495"},
            "names '495' as an end-of-sequence token; it must be a whole number",
        ),
        (
            {"eos_token_id": [495, None]},
            "names None as an end-of-sequence token; it must be a whole number",
        ),
    ],
)
def test_settings_that_no_model_loads_with_are_said_first(
    tiny_checkpoint: Path, tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    model = changed(tiny_checkpoint, tmp_path / "model", "generation_config.json", **settings)
    with pytest.raises(UserError, match=why):
        try_run(tmp_path, model)


def test_a_generation_config_that_is_a_list(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = changed(tiny_checkpoint, tmp_path / "model", "generation_config.json")
    (model / "generation_config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"generation_config.json of .* holds list, not an object"):
        try_run(tmp_path, model)


def test_everything_small_is_tried_before_the_data_is_read(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of file in turn, as if a library refused to write it."""
    from gpg_vl.training import trial_save

    for name, what in (
        ("save_model_configs", "config"),
        ("save_processing", "tokenizer or processor"),
        ("save_adapter_config", "adapter config"),
    ):

        def refuse(*_: Any, **__: Any) -> None:
            raise TypeError("Object of type set is not JSON serializable")

        with monkeypatch.context() as patch:
            patch.setattr(trial_save, name, refuse)
            with pytest.raises(
                UserError, match=rf"The {what} of .* can be read but not saved.*type set"
            ):
                try_run(tmp_path, tiny_checkpoint, lora_rank=2)


def test_a_tokenizer_that_is_read_back_otherwise(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpg_vl.training import trial_save

    save = trial_save.save_processing

    def lose_the_template(processing: Any, limits: Any, folder: Path) -> None:
        save(processing, limits, folder)
        (folder / "chat_template.jinja").unlink()

    monkeypatch.setattr(trial_save, "save_processing", lose_the_template)
    with pytest.raises(UserError, match="changes when it is saved and read back"):
        try_run(tmp_path, tiny_checkpoint)


def test_no_room_for_the_trial(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpg_vl.training import trial_save

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trial_save, "save_processing", full)
    with pytest.raises(UserError, match=r"temporary folder: .*No space left.*set TMPDIR"):
        try_run(tmp_path, tiny_checkpoint)


# ---- configs that ask for what is not trained


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"is quantised \(gptq, quant",
        ),
        ({"quantization_config": {"load_in_4bit": True}}, r"is quantised \(by an unnamed method"),
        (
            {"vision_config": {"quantization_config": {"quant_method": "fp8"}}},
            r"is quantised \(fp8, vision_config\.quantization_config",
        ),
        (
            {"attn_implementation": "kernels-community/flash-attn3"},
            "attn_implementation: 'kernels-comm",
        ),
        ({"_attn_implementation": "own/kernel:attend"}, "_attn_implementation: 'own/kernel"),
        (
            {"text_config": {"attn_implementation": "own/kernel"}},
            r"text_config\.attn_implementation: 'own/kernel'",
        ),
        ({"use_kernels": True}, "use_kernels: True"),
        ({"experts_implementation": "own/kernel"}, "experts_implementation: 'own/kernel'"),
    ],
)
def test_quantised_weights_and_kernels_of_the_hub(
    tiny_checkpoint: Path, tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    model = changed(tiny_checkpoint, tmp_path / "model", "config.json", **settings)
    with pytest.raises(UserError, match=why):
        load_processing(str(model))


def test_the_kernel_that_a_base_was_published_with_is_no_matter(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Flash attention is not installed here, and nothing asks for it."""
    model = changed(
        tiny_checkpoint, tmp_path / "model", "config.json", attn_implementation="flash_attention_2"
    )
    try_run(tmp_path, model)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_act": "gleu"},
        {"hidden_size": "64"},
        {"num_attention_heads": 0},
        {"hidden_size": -1},
    ],
)
def test_a_config_that_describes_no_model(
    tiny_checkpoint: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    written = json.loads((tiny_checkpoint / "config.json").read_text())["text_config"]
    model = changed(
        tiny_checkpoint, tmp_path / "model", "config.json", text_config={**written, **settings}
    )
    with pytest.raises(UserError, match=r"describes no qwen2_vl that|cannot be read: "):
        try_run(tmp_path, model)


def test_a_quantised_checkpoint_on_the_command_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = changed(
        tiny_checkpoint,
        tmp_path / "model",
        "config.json",
        quantization_config={"quant_method": "awq"},
    )
    result = gpg_vl("data", "check", write_config(tmp_path, model))
    assert result.returncode == 2
    assert "is quantised (awq" in result.stderr
    assert "Traceback" not in result.stderr
