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
Run the same command again to continue a stopped run: answers in OUTPUT/predictions.jsonl are not generated again.
exit code: 0 every row was scored, or --allow-errors was given; 1 some rows have errors (they count as wrong), or a server
was lost; 2 a mistake in the command or the data; 141 the program that read the output has ended, as in | head.
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
"""Settings that determine a model's answers; they have no effect when a file is scored."""
PIXELS = {"min_pixels": "--min-pixels", "max_pixels": "--max-pixels"}
"""Settings that also determine the pixel coordinates of boxes."""


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The parser; `prog` is how the program is called."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure a vision-language model on a benchmark, from local files, unless --data says hub:.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("task", nargs="?", metavar="TASK", help="the benchmark, such as cvbench, or my.py:function")
    listing = "list the benchmarks, or the choices of TASK, and exit"
    add("--list", action="store_true", help=listing)

    what = parser.add_mutually_exclusive_group()
    model = "evaluate this checkpoint, or the newest one of this run folder"
    what.add_argument("--model", type=Path, metavar="DIR", help=model)
    scored = "score these responses; no model is loaded"
    what.add_argument("--predictions", type=Path, metavar="FILE", help=scored)

    _add_data(parser.add_argument_group("the questions"))
    _add_scoring(parser.add_argument_group("the scores"))
    _add_generation(parser.add_argument_group("with --model"))
    return parser


def _add_data(group: argparse._ArgumentGroup) -> None:
    data = (
        "the benchmark's data: a .parquet or .jsonl file, or its folder, or hub:OWNER/NAME to fetch it "
        "(TASK --list says which)"
    )
    group.add_argument("--data", type=Path, metavar="PATH", help=data)
    images = "folder that image paths are relative to (default: the folder of the table)"
    group.add_argument("--images", type=Path, metavar="DIR", help=images)

    prompt = "prompt style; a name that --list shows"
    group.add_argument("--prompt", metavar="NAME", help=prompt)
    coordinates = (
        "how boxes are written (default: as the model's family does, or as the prompt says; "
        "rel1000 for a file)"
    )
    group.add_argument("--coordinates", choices=COORDINATES, help=coordinates)

    limit = "number of rows, or a fraction (0.1), taken in proportion from every stratum"
    group.add_argument("--limit", type=_limit, metavar="N", help=limit)
    repeats = "answers per row: prints avg@K and pass@k (default 1)"
    group.add_argument("--repeats", type=int, default=1, metavar="K", help=repeats)
    seed = "seed of --limit, of sampling and of the bootstrap"
    group.add_argument("--seed", type=int, default=0, metavar="S", help=seed)


def _add_scoring(group: argparse._ArgumentGroup) -> None:
    scorer = "scorers, or all (default: strict and the benchmark owner's)"
    group.add_argument("--scorer", metavar="A,B", help=scorer)
    errors = "score rows that cannot be evaluated 0 instead of stopping at the first"
    group.add_argument("--allow-errors", action="store_true", help=errors)

    compare = "another predictions file on the same rows: print the difference"
    group.add_argument("--compare", type=Path, metavar="FILE", help=compare)
    intersect = "with --compare: use only the rows that both files have an answer to"
    group.add_argument("--intersect", action="store_true", help=intersect)

    output = (
        "where predictions, samples and results go (with --model default: "
        "runs/eval-TASK-MODEL-DIGEST; with --predictions: only printed)"
    )
    group.add_argument("--output", type=Path, metavar="DIR", help=output)


def _add_generation(group: argparse._ArgumentGroup) -> None:
    tokens = "maximum length of an answer (default: the published limit of the prompt style)"
    group.add_argument("--max-new-tokens", type=int, metavar="N", help=tokens)
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default 0)")
    top_p = "sample from the most likely tokens with this total probability (default 1)"
    group.add_argument("--top-p", type=float, metavar="P", help=top_p)
    top_k = "sample from the K most likely tokens (default 0: all)"
    group.add_argument("--top-k", type=int, metavar="K", help=top_k)

    smallest = f"smaller images are enlarged to this (default {DEFAULT_LIMITS.min_pixels})"
    group.add_argument("--min-pixels", type=int, metavar="N", help=smallest)
    largest = f"larger images are shrunk to this (default {DEFAULT_LIMITS.max_pixels})"
    group.add_argument("--max-pixels", type=int, metavar="N", help=largest)

    batch = "prompts answered together (default 16)"
    group.add_argument("--batch-size", type=int, metavar="N", help=batch)
    dtype = "precision of the forward pass (default float32)"
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help=dtype)
    engine = f"the engine, as in training (default {DEFAULT_ENGINE})"
    group.add_argument("--engine", metavar="NAME", help=engine)
    servers = "addresses of gpg-vl serve, for --engine vllm_server"
    group.add_argument("--servers", nargs="+", metavar="URL", help=servers)


def _limit(text: str) -> int | float:
    """A whole number of rows, or a fraction where there is a point. Its range is checked where it is used."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number; give rows (200) or a fraction (0.1)"
        ) from None
