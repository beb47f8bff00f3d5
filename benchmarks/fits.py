"""What Qwen2-VL of 2B and 7B takes of a GPU, by the plan, as the tables of docs/scaling.md.

    python -m benchmarks.fits

Nothing is loaded: the sizes of the released models are written into a config, and the plan is asked what one and eight
processes would hold, for the settings of configs/cvbench_qwen2vl_2b.yaml, prompts of 600 tokens and images of 480.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import Qwen2VLConfig

from benchmarks.gpu import TEXT_2B
from gpg_vl.config import load_config, make_algorithm
from gpg_vl.models.families import family_of
from gpg_vl.training.memory_fit import USABLE, Choice, Fit
from gpg_vl.training.plan import make_plan

CONFIG = Path(__file__).parent.parent / "configs" / "cvbench_qwen2vl_2b.yaml"
PROMPT, IMAGE = 600, 480
GB = 2.0**30
VISION = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4}
TEXT_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152_064,
    "tie_word_embeddings": False,
}
TEXTS: Mapping[str, Mapping[str, Any]] = {
    "2B": {**TEXT_2B, "vocab_size": 151_936, "tie_word_embeddings": True},
    "7B": TEXT_7B,
}


class Column(NamedTuple):
    """A model, on so many GPUs, spread so."""

    model: str
    devices: int
    sharding: str


COLUMNS = (
    Column("2B", 1, "none"),
    Column("2B", 8, "none"),
    Column("2B", 8, "fsdp2"),
    Column("2B", 8, "zero2"),
    Column("7B", 8, "none"),
    Column("7B", 8, "fsdp2"),
    Column("7B", 8, "zero2"),
    Column("7B", 8, "zero3"),
    Column("7B", 16, "fsdp2"),
)
CARDS = (24, 80)
"""GB."""


def write_shape(folder: Path, text: Mapping[str, Any]) -> Path:
    """A checkpoint's config.json, with a tower that fits its text model."""
    vision = {**VISION, "hidden_size": text["hidden_size"]}
    made = Qwen2VLConfig(
        text_config=dict(text),
        vision_config=vision,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    made.save_pretrained(folder)
    return folder


def fits_of(path: Path, devices: int) -> tuple[Fit, ...]:
    """What each choice takes of each of some devices, of which each answers at least one prompt of a step."""
    step = f"train.prompts_per_step={max(8, devices)}"
    config = load_config(CONFIG, [f"model.path={path}", "model.dtype=bfloat16", step])
    return make_plan(
        config,
        algorithm=make_algorithm(config.algorithm),
        family=family_of("qwen2_vl", str(path)),
        prompt_tokens=[PROMPT],
        image_tokens=[IMAGE],
        processes=1,
        steps=1,
        first_prompt="",
        device_bytes=1.0,
        devices=devices,
    ).fits


def name_row(choice: Choice) -> str:
    """How a model is trained, in words."""
    what = f"LoRA, rank {choice.lora_rank}" if choice.lora_rank else "in full"
    if choice.weights != "float32":
        what += f", `weights: {choice.weights}`, `{choice.optimizer}`"
    return what + (", checkpointing" if choice.checkpointing else "")


def show(fit: Fit | None) -> str:
    """GB, and behind them the smallest card that they fit."""
    if fit is None:
        return "-"
    card = next((f" ({gb})" for gb in CARDS if fit.needed <= USABLE * gb * GB), "")
    return f"{fit.needed / GB:.1f}{card}"


def main() -> None:
    """Print a row for each way to train in bfloat16, and a column for each of `COLUMNS`."""
    table: dict[str, dict[Column, Fit]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: write_shape(Path(folder) / name, text) for name, text in TEXTS.items()}
        for model, devices in dict.fromkeys((column.model, column.devices) for column in COLUMNS):
            for fit in fits_of(paths[model], devices):
                if fit.choice.dtype == "bfloat16":
                    column = Column(model, devices, fit.choice.sharding)
                    table.setdefault(name_row(fit.choice), {})[column] = fit

    print("| | " + " | ".join(f"{c.model} x {c.devices}, {c.sharding}" for c in COLUMNS) + " |")
    print("|---" * (1 + len(COLUMNS)) + "|")
    for row, cells in table.items():
        print(f"| {row} | " + " | ".join(show(cells.get(column)) for column in COLUMNS) + " |")


if __name__ == "__main__":
    main()
