"""Qwen2-VL-2B's shape with random weights on one GPU: seconds, memory, decoding and utilisation, sharing or not, vLLM and TRL.

    python -m benchmarks.gpu                       the grid on the GPU that is there (make bench-gpu)
    python -m benchmarks.gpu --model tiny --quick  the same program on any machine, to see that it runs

Utilisation counts the operations of the shared computation only, whatever was computed: work that is done twice is not work.
vLLM answers in its place where it is installed (pip install 'gpg_vl[vllm]'), each row in a process of its own.
TRL's GRPOTrainer with its Hugging Face rollout is measured beside them where it is installed (pip install trl==1.16.0), at
several micro-batches. Writes benchmarks/results/gpu.json after every row, so that a run that is cut off keeps what it has, and
goes on from there; a row that does not fit into memory says so.
"""

import argparse
import gc
import itertools
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.step import (
    Bench,
    Case,
    Precision,
    Timing,
    as_row,
    device_here,
    folder_of_results,
)
from gpg_vl.models.attention import varlen_missing

if TYPE_CHECKING:  # at run time gpg_vl.models decides when transformers may be imported
    from transformers import Qwen2VLForConditionalGeneration

PROMPTS = ((356, 256), (652, 484), (1300, 1156))
"""Prompt tokens and image tokens; an image is square, so its tokens are a square number."""
MICRO_BATCHES = (2, 8, 32)
"""TRL's completions per forward pass."""
PEAK = 989e12
"""Operations per second in bfloat16 that the utilisation refers to: an H100's or H200's data sheet, without sparsity."""


def grid(*, quick: bool, with_trl: bool = False, with_vllm: bool = False) -> list[Case]:
    """Every system on every case: shared with each kernel, naive with the same kernel, vLLM, TRL at each micro-batch."""
    prompts = ((60, 16),) if quick else PROMPTS
    lengths, sizes = ((8,), (4,)) if quick else ((64, 256), (8, 16))
    here = device_here()
    precision: Precision = "bfloat16" if here.type == "cuda" else "float32"
    ragged = not varlen_missing(here, getattr(torch, precision))
    kernel = "varlen" if ragged else "split"
    ways: list[dict[str, Any]] = [
        {"kernel": k, "shared": True} for k in dict.fromkeys(("split", kernel))
    ]
    ways.append({"kernel": kernel, "shared": False})
    if with_vllm:
        ways.append({"kernel": kernel, "shared": True, "engine": "vllm"})
    if with_trl:
        ways += [{"shared": False, "micro_batch": n} for n in ((2, 8) if quick else MICRO_BATCHES)]
    return [
        Case(
            group_size=size,
            image_tokens=image,
            text_tokens=prompt - image,
            completion=length,
            groups=2 if quick else 8,
            vision=vision,
            checkpointing=checkpointing,
            dtype=precision,
            slots=64 if quick else 128,
            **way,
        )
        for (prompt, image), length, size, vision, checkpointing, way in itertools.product(
            prompts, lengths, sizes, ("frozen", "trained"), (False, True), ways
        )
    ]


def build(model: str, folder: Path) -> "Qwen2VLForConditionalGeneration":
    """The model with random weights, made on the device, not read from anywhere. `folder` gets its processor."""
    from gpg_vl.models import tiny
    from gpg_vl.models.load import quiet

    tokenizer = tiny.tiny_tokenizer(["How many balls are there in the picture?"], 512)
    config = (
        tiny.tiny_config(tokenizer, 512)
        if model == "tiny"
        else tiny.tiny_config(tokenizer, 151_936, **TEXT_2B)
    )
    with quiet():
        # a small one's weights, which nobody reads; the config of the real one is put in its place
        small = tiny.tiny_config(tokenizer, 512)
        tiny.save_checkpoint(tiny.tiny_model(small, seed=0), tiny.tiny_processor(tokenizer), folder)
    if model == "2b":
        vision = config.vision_config
        vision.depth, vision.embed_dim, vision.num_heads, vision.mlp_ratio = 32, 1280, 16, 4
    config.architectures = ["Qwen2VLForConditionalGeneration"]
    config.save_pretrained(folder)
    from transformers import Qwen2VLForConditionalGeneration

    with device_here():
        torch.manual_seed(0)
        made = Qwen2VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    ready: Qwen2VLForConditionalGeneration = made.float().eval()
    return ready


TEXT_2B: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}


def utilisation(row: dict[str, Any], shared: dict[str, Any], peak: float) -> float:
    """Of the training step: operations of the shared computation over what the device could have done meanwhile."""
    return float(shared["timing"]["train_operations"] / (row["timing"]["train_seconds"] * peak))


def show(rows: list[dict[str, Any]], peak: float) -> Table:
    table = Table(
        "P / C / G",
        "vision",
        "recompute",
        "way",
        "prefill s",
        "decode s",
        "sync s",
        "tok/s",
        "train s",
        "step s",
        "util %",
        "GiB",
        "gradient error",
    )
    for row in rows:
        case, timing = row["case"], row["timing"]
        if timing is None:
            table.add_row(_shape(row), *_conditions(case), f"[red]{row['failed']}[/red]")
            continue
        twin = _shared_twin(rows, case)
        table.add_row(
            _shape(row),
            *_conditions(case),
            "" if timing["prefill_seconds"] is None else f"{timing['prefill_seconds']:.2f}",
            f"{timing['decode_seconds']:.2f}",
            "" if timing["sync_seconds"] is None else f"{timing['sync_seconds']:.2f}",
            f"{timing['decoded_tokens'] / timing['decode_seconds']:.0f}",
            f"{timing['train_seconds']:.2f}",
            f"{timing['seconds']:.2f}",
            f"{100 * utilisation(row, twin, peak):.1f}" if twin else "",
            f"{timing['peak_bytes'] / 2**30:.1f}",
            "" if timing["gradient_error"] is None else f"{timing['gradient_error']:.0e}",
        )
    return table


def _shared_twin(rows: list[dict[str, Any]], case: dict[str, Any]) -> dict[str, Any] | None:
    """The measured row in which the same is computed once per group."""
    same = (
        r
        for r in rows
        if r["timing"] and r["case"]["shared"] and all(r["case"][k] == case[k] for k in SAME)
    )
    return next(same, None)


def _shape(row: dict[str, Any]) -> str:
    case, timing = row["case"], row["timing"]
    prompt = timing["prompt_tokens"] if timing else case["image_tokens"] + case["text_tokens"]
    return f"{prompt} / {case['completion']} / {case['group_size']}"


def _conditions(case: dict[str, Any]) -> tuple[str, str, str]:
    """The columns vision, recompute and way."""
    ours = f"{case['kernel']}, {'once per group' if case['shared'] else 'for every answer'}"
    if case["engine"] != "native":
        ours += f", {case['engine']}"
    way = f"TRL, micro-batch {case['micro_batch']}" if case["micro_batch"] else ours
    return case["vision"], "yes" if case["checkpointing"] else "no", way


WIDTH = 160
"""Of the table in a file."""
SAME = ("group_size", "image_tokens", "text_tokens", "completion", "vision", "checkpointing")
"""What two rows of one comparison have in common."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("2b", "tiny"), default="2b")
    parser.add_argument("--quick", action="store_true", help="one small case, one step")
    parser.add_argument(
        "--steps", type=int, default=3, help="measured steps per row, after one that is not"
    )
    parser.add_argument(
        "--peak",
        type=float,
        default=PEAK,
        help=f"operations per second of the device, default {PEAK:g}",
    )
    parser.add_argument("--out", type=Path, default=folder_of_results(), metavar="DIR")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = device_here()
    if arguments.case:
        case = Case(**json.loads(arguments.case))
        row = _measured(arguments.model, case, arguments.steps, device)
        arguments.row.write_text(json.dumps(row))
        return 0
    if arguments.model == "2b" and device.type != "cuda":
        print(
            "gpu.py: there is no CUDA device here. Use --model tiny to see that the program runs.",
            file=sys.stderr,
        )
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / ("gpu.json" if arguments.model == "2b" else "gpu_tiny.json")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    kept: dict[str, Any] = {"device": name, "rows": []}
    if file.exists():
        kept = json.loads(file.read_text())
    rows: list[dict[str, Any]] = kept["rows"] if kept["device"] == name else []
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    has_trl = find_spec("trl") is not None
    if not has_trl:
        console.print(
            "TRL is not installed here, its rows are left out. To have them: pip install trl==1.16.0"
        )
    has_vllm = find_spec("vllm") is not None
    if not has_vllm:
        console.print(
            "vLLM is not installed here, its rows are left out. To have them: pip install 'gpg_vl[vllm]'"
        )
    for case in grid(quick=arguments.quick, with_trl=has_trl, with_vllm=has_vllm):
        if any(row["case"] == asdict(case) for row in rows):
            continue
        console.print(f"{len(rows) + 1}: {case}")
        steps = 1 if arguments.quick else arguments.steps
        # what vLLM takes of a device it keeps until its process ends
        measured = _measured if case.engine == "native" else _measured_apart
        rows.append(measured(arguments.model, case, steps, device))
        file.write_text(json.dumps({"device": name, "rows": rows}, indent=1) + "\n")
    console.print(show(rows, arguments.peak))
    print(f"wrote {file}")
    return 0


def _measured(model: str, case: Case, steps: int, device: torch.device) -> dict[str, Any]:
    """The row of a case; one that does not fit into memory has no timing."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return as_row(
                case, _timing(build(model, Path(folder)), Path(folder), case, steps, device)
            )
    except torch.OutOfMemoryError:
        return {"case": asdict(case), "timing": None, "failed": "out of memory"}
    finally:
        gc.collect()  # a trainer and its callbacks refer to each other
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measured_apart(model: str, case: Case, steps: int, device: torch.device) -> dict[str, Any]:
    """The same in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "benchmarks.gpu", "--model", model, "--steps", str(steps)]
        command += ["--case", json.dumps(asdict(case)), "--row", file.name]
        subprocess.run(command, check=True)
        row: dict[str, Any] = json.loads(Path(file.name).read_text())
    return row


def _timing(
    model: "Qwen2VLForConditionalGeneration",
    folder: Path,
    case: Case,
    steps: int,
    device: torch.device,
) -> Timing:
    if case.micro_batch:
        from benchmarks import trl_side

        return trl_side.timing(model, folder, case, steps=steps, warmup=1)
    from gpg_vl.models.load import load_processing

    bench = Bench(model, load_processing(str(folder)), case, device, folder)
    return bench.measure(steps=steps, warmup=1)


if __name__ == "__main__":
    sys.exit(main())
