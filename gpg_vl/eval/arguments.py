"""The command line of `python -m gpg_vl.eval`."""

import argparse
from pathlib import Path

from gpg_vl.answers.math.rectangles import COORDINATES
from gpg_vl.prompting import DEFAULT_LIMITS
from gpg_vl.rollout import DEFAULT as DEFAULT_ENGINE

EPILOG = """
examples:
  python -m gpg_vl.eval --list
  python -m gpg_vl.eval cvbench --model runs/sat/checkpoints/last --data data/CV-Bench --prompt visualthinker
  python -m gpg_vl.eval cvbench --predictions mine.jsonl --data data/CV-Bench --scorer all
  python -m gpg_vl.eval cvbench --predictions mine.jsonl --data data/CV-Bench --compare theirs.jsonl
  python -m gpg_vl.eval cvbench --predictions runs/eval/samples_cvbench.jsonl --scorer lmms
  python -m gpg_vl.eval aime24 --model MODEL --data data/aime_2024 --repeats 16 --temperature 0.6 --top-p 0.95

A predictions file has a line {"doc_id": <row number from 0>, "response": "<text>"} for every row of the data, and with
--repeats K a line for every {"sample": 0} to {"sample": K-1} of it. With --limit N the rows that it has are scored, at most
N of them. A file that this program wrote carries its questions: it is scored without --data.
A stopped run is continued by the same command: what is in OUTPUT/predictions.jsonl is not asked again.
exit code: 0 every row was scored, or --allow-errors was given; 1 some rows have errors (they count as wrong), or a server
was lost; 2 something to correct was given; 141 the reader of the output left, as in | head.
"""
GENERATION = {
    "max_new_tokens": "--max-new-tokens",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "batch_size": "--batch-size",
    "dtype": "--dtype",
    "engine": "--engine",
    "servers": "--servers",
}
"""Settings that decide what a model answers, and nothing when a file is scored."""
PIXELS = {"min_pixels": "--min-pixels", "max_pixels": "--max-pixels"}
"""Settings that also say what the numbers of a box in pixels mean."""


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The parser; `prog` is how the program is called."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure a vision-language model on a benchmark, from local files only.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("task", nargs="?", metavar="TASK", help="the benchmark, such as cvbench, or my.py:function")
    add(
        "--list",
        action="store_true",
        help="list the benchmarks, or what TASK has to choose from, and stop",
    )
    add(
        "--data",
        type=Path,
        metavar="PATH",
        help="the benchmark's data: a .parquet or .jsonl file, or its folder",
    )
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="where image paths start (default: the folder of the table)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", type=Path, metavar="DIR", help="answer with this checkpoint")
    what.add_argument(
        "--predictions", type=Path, metavar="FILE", help="score these responses; no model is loaded"
    )
    add(
        "--scorer",
        default=None,
        metavar="A,B",
        help="scorers, or all (default: strict and the benchmark owner's)",
    )
    add("--prompt", metavar="NAME", help="how the question is put; a name that --list shows")
    add(
        "--limit",
        type=_limit,
        metavar="N",
        help="this many rows, or this fraction (0.1), drawn in proportion from every stratum",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="draws the rows of --limit, the answers and the bootstrap",
    )
    add(
        "--repeats",
        type=int,
        default=1,
        metavar="K",
        help="answers per row: prints avg@K and pass@k (default 1)",
    )
    add(
        "--coordinates",
        choices=COORDINATES,
        help="how boxes are written (default: as the model's family does, or as the prompt says; rel1000 for a file)",
    )
    add(
        "--allow-errors",
        action="store_true",
        help="score rows that cannot be asked 0 instead of stopping at the first",
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="where predictions, samples and results go (with --model default: "
        "runs/eval-TASK-MODEL-DIGEST; with --predictions: only printed)",
    )
    add(
        "--compare",
        type=Path,
        metavar="FILE",
        help="another predictions file on the same rows: print the difference",
    )
    add(
        "--intersect",
        action="store_true",
        help="with --compare: measure only the rows that both have an answer to",
    )
    _add_generation(parser)
    return parser


def _add_generation(parser: argparse.ArgumentParser) -> None:
    only = parser.add_argument_group("with --model")
    only.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="longest answer (default: what the prompt was published with)",
    )
    only.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default 0)")
    only.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the likeliest tokens of this mass (default 1)",
    )
    only.add_argument(
        "--top-k", type=int, metavar="K", help="draw from the K likeliest tokens (default 0: all)"
    )
    only.add_argument(
        "--batch-size", type=int, metavar="N", help="prompts answered together (default 16)"
    )
    only.add_argument(
        "--min-pixels",
        type=int,
        metavar="N",
        help=f"smaller images are enlarged to this (default {DEFAULT_LIMITS.min_pixels})",
    )
    only.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help=f"larger images are shrunk to this (default {DEFAULT_LIMITS.max_pixels})",
    )
    only.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="numbers of the forward pass (default float32)",
    )
    only.add_argument(
        "--engine", metavar="NAME", help=f"what answers, as in training (default {DEFAULT_ENGINE})"
    )
    only.add_argument(
        "--servers",
        nargs="+",
        metavar="URL",
        help="addresses of gpg-vl serve, for --engine vllm_server",
    )


def _limit(text: str) -> int | float:
    """A whole number of rows, or a fraction where there is a point. Its range is checked where it is used."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number; give rows (200) or a fraction (0.1)"
        ) from None
