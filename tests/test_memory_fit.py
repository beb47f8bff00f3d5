"""Which settings fit a device: sums that can be checked by hand."""

from pathlib import Path

import pytest
from rich.console import Console
from runs import gpg_vl, write_config

from gpg_vl.config import Config, parse_config
from gpg_vl.training.memory import Sizes, weight_memory, widths
from gpg_vl.training.memory_fit import Choice, chosen, fit_choices, render_fits

GB = 2.0**30


def make_config(**sections: dict[str, object]) -> Config:
    tree: dict[str, dict[str, object]] = {
        "model": {"path": "m"},
        "data": {"train": "d"},
        "rewards": {"weights": {"choice": 1.0}},
        "output": {"folder": "o"},
    }
    for name, keys in sections.items():
        tree[name] = {**tree.get(name, {}), **keys}
    return parse_config(tree, "test")


def estimate(config: Config) -> dict[str, float]:
    """A model of 2 billion weights, of which adapters train a hundredth; 10 GB of activations in float32."""
    trained = 2 * 10**9 // (100 if config.model.lora_rank else 1)
    activations = 10 * GB / (17 if config.model.gradient_checkpointing else 1)
    if config.model.dtype == "bfloat16":
        activations /= 2
    sizes = Sizes(
        parameters=2 * 10**9,
        trained=trained,
        vision=0,
        trained_vision=0,
        layers=(),
        coded=trained,
        blocks=trained // 256,
        widths=widths(config),
    )
    return {**weight_memory(sizes), "activations": activations}


def test_needs_are_those_of_the_estimate() -> None:
    """2e9 weights: 16 bytes each are 29.80 GB; 4 bytes with 12 for a hundredth 7.67 GB, and with 2 for frozen ones 3.99; 2 of
    bfloat16 weights, 4 of gradients, 2 of moments and 8 for the scales of 256 are 14.96.
    """
    fits = fit_choices(make_config(model={"lora_rank": 8}), estimate, 24 * GB)
    needed = {
        (f.choice.dtype, f.choice.weights, f.choice.lora_rank, f.choice.checkpointing): round(
            f.needed / GB, 2
        )
        for f in fits
    }
    assert needed == {
        ("float32", "float32", 0, False): 39.80,
        ("float32", "float32", 0, True): 30.39,
        ("float32", "float32", 8, False): 17.67,
        ("float32", "float32", 8, True): 8.26,
        ("bfloat16", "float32", 0, False): 34.80,
        ("bfloat16", "float32", 0, True): 30.10,
        ("bfloat16", "float32", 8, False): 8.99,
        ("bfloat16", "float32", 8, True): 4.28,
        ("bfloat16", "bfloat16", 0, False): 19.96,
        ("bfloat16", "bfloat16", 0, True): 15.25,
    }


@pytest.mark.parametrize(
    ("size", "fitting"),
    [
        (80, 10),  # 72 can be used
        (44, 9),  # 39.6: all but 39.80
        (24, 6),  # 21.6: with adapters, or all in bfloat16
        (19.5, 4),  # 17.55: not 17.67
        (1, 0),
    ],
)
def test_a_tenth_of_the_device_is_not_counted_on(size: float, fitting: int) -> None:
    assert sum(f.fits for f in fit_choices(make_config(), estimate, size * GB)) == fitting


def test_the_configs_own_choice_is_marked() -> None:
    config = make_config(model={"dtype": "bfloat16", "gradient_checkpointing": True})
    [own] = [fit.choice for fit in fit_choices(config, estimate, GB) if fit.is_chosen]
    assert own == chosen(config)
    assert own == Choice(
        sharding="none",
        dtype="bfloat16",
        weights="float32",
        optimizer="adamw",
        lora_rank=0,
        checkpointing=True,
    )


def test_what_the_rest_of_the_config_forbids_is_not_offered() -> None:
    kept = fit_choices(make_config(train={"reuse_prefill": True}), estimate, GB)
    assert [fit.choice.checkpointing for fit in kept] == [False] * 5
    frozen = fit_choices(make_config(model={"freeze": ["language"]}), estimate, GB)
    assert [fit.choice.lora_rank for fit in frozen] == [0] * 6


def test_the_table_says_what_fits() -> None:
    console = Console(record=True, width=120)
    config = make_config()
    render_fits(fit_choices(config, estimate, 24 * GB), 24 * GB, console)
    lines = console.export_text().splitlines()
    assert "a device of 24 GB, of which 22 can be used" in lines[1]
    [own] = [line for line in lines if "this config" in line]
    assert own.split()[1:10] == [
        *("float32", "float32", "adamw", "no", "no", "39.8", "too", "large", "this"),
    ]
    assert sum(" fits " in line for line in lines) == 6


def half(config: Config) -> dict[str, float]:
    """The estimate, spread over two."""
    share = 1 if config.train.sharding == "none" else 2
    return {name: size / share for name, size in estimate(config).items()}


def test_a_sharding_is_a_column() -> None:
    """39.80 GB whole and 19.90 spread: on 24 GB, of which 21.6 can be used, the second fits."""
    console = Console(record=True, width=140)
    config = make_config(train={"sharding": "fsdp2"})
    fits = fit_choices(config, half, 24 * GB, ("none", "fsdp2"))
    render_fits(fits, 24 * GB, console, devices=2)
    lines = console.export_text().splitlines()
    assert "22 can be used; 2 of them, train.sharding none | fsdp2" in lines[1]
    [own] = [line for line in lines if "this config" in line]
    assert own.split()[1:-1] == [
        "float32",
        "float32",
        "adamw",
        "no",
        "no",
        "39.8",
        "too",
        "large",
        "19.9",
        "fits",
        "this",
        "config",
    ]


def test_spread_weights_keep_no_prompts() -> None:
    """What `train.reuse_prefill` forbids is an empty cell."""
    kept = make_config(train={"reuse_prefill": True})
    fits = fit_choices(kept, half, GB, ("none", "fsdp2"))
    assert {fit.choice.sharding for fit in fits} == {"none"}


def test_a_dry_run_is_told_the_size_of_a_device(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint)
    result = gpg_vl("train", config, "--dry-run", "--device-gb", "80")
    assert result.returncode == 0, result.stderr
    assert "estimates for a device of 80 GB, of which 72 can be used" in result.stdout
    assert result.stdout.count(" fits ") == 10
    eight = gpg_vl("train", config, "--dry-run", "--device-gb", "80", "--devices", "8")
    assert "8 of them, train.sharding none | fsdp2 | zero2 | zero3" in eight.stdout
    assert eight.stdout.count(" fits ") >= 16
    for wrong in ("0", "-3", "inf", "much"):
        refused = gpg_vl("train", config, "--dry-run", "--device-gb", wrong)
        assert refused.returncode == 2
        assert "--device-gb" in refused.stderr
    refused = gpg_vl("train", config, "--dry-run", "--devices", "0")
    assert refused.returncode == 2
    assert "give 1 or more" in refused.stderr
