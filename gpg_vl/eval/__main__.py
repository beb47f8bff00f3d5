"""`python -m gpg_vl.eval TASK (--model DIR | --predictions FILE) --data PATH`: measure a model, or score a file."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from gpg_vl.errors import UserError
from gpg_vl.eval.compare import Comparison, compare, comparison_json, comparison_table
from gpg_vl.eval.predictions import Prediction, Responder, read_predictions
from gpg_vl.eval.results import Results, results_json, results_notes, results_table, sample_records, write_results
from gpg_vl.eval.runner import check_gold, evaluate, score, score_rows, select
from gpg_vl.eval.settings import EvalSettings, file_sha, model_sha, settings_for
from gpg_vl.eval.task import Doc, Scorer, Task, pick_scorers
from gpg_vl.eval.tasks import tasks
from gpg_vl.registry import UnknownNameError

EPILOG = """
examples:
  python -m gpg_vl.eval --list
  python -m gpg_vl.eval cvbench --model runs/sat/checkpoints/last --data data/CV-Bench --prompt visualthinker
  python -m gpg_vl.eval cvbench --predictions mine.jsonl --data data/CV-Bench --scorer all
  python -m gpg_vl.eval cvbench --predictions mine.jsonl --data data/CV-Bench --compare theirs.jsonl

A predictions file has a line {"doc_id": <row number from 0>, "response": "<text>"} for every row of the data.
A stopped run is continued by the same command: what is in OUTPUT/predictions.jsonl is not asked again.
exit code: 0 every row was scored; 1 some rows have errors (they count as wrong); 2 something to correct was given.
"""
_GENERATION = {
    "max_new_tokens": "--max-new-tokens",
    "batch_size": "--batch-size",
    "min_pixels": "--min-pixels",
    "max_pixels": "--max-pixels",
    "dtype": "--dtype",
}
_PACKAGES = ("gpg_vl", "numpy", "pillow", "pyarrow", "torch", "transformers", "qwen-vl-utils")


def main(argv: Sequence[str] | None = None, prog: str = "python -m gpg_vl.eval") -> int:
    """Run the program and return its exit code. What the user got wrong is one message, without a traceback."""
    arguments = _parser(prog).parse_args(argv)
    try:
        return _list(arguments.task) if arguments.list else _run(arguments)
    except (UserError, UnknownNameError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped. The responses so far are kept; the same command goes on from there.", file=sys.stderr)
        return 130


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure a vision-language model on a benchmark, from local files only.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("task", nargs="?", metavar="TASK", help="the benchmark, such as cvbench, or my.py:function")
    add("--list", action="store_true", help="list the benchmarks, or what TASK has to choose from, and stop")
    add("--data", type=Path, metavar="PATH", help="the benchmark's data: a .parquet or .jsonl file, or its folder")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", type=Path, metavar="DIR", help="answer with this checkpoint")
    what.add_argument("--predictions", type=Path, metavar="FILE", help="score these responses; no model is loaded")
    add("--scorer", default=None, metavar="A,B", help="scorers, or all (default: strict and the benchmark owner's)")
    add("--prompt", metavar="NAME", help="how the question is put; a name that --list shows")
    add(
        "--limit",
        type=_limit,
        metavar="N",
        help="this many rows, or this fraction (0.1), drawn in proportion from every stratum",
    )
    add("--seed", type=int, default=0, metavar="S", help="draws the rows of --limit and the bootstrap (default 0)")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="where predictions, samples and results go (with --model default: "
        "runs/eval-TASK-MODEL-DIGEST; with --predictions: only printed)",
    )
    add("--compare", type=Path, metavar="FILE", help="another predictions file on the same rows: print the difference")
    only = parser.add_argument_group("with --model")
    only.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="longest answer (default: what the prompt was published with)"
    )
    only.add_argument("--batch-size", type=int, metavar="N", help="prompts answered together (default 16)")
    only.add_argument("--min-pixels", type=int, metavar="N", help="smaller images are enlarged to this (default 3136)")
    only.add_argument("--max-pixels", type=int, metavar="N", help="larger images are shrunk to this (default 401408)")
    only.add_argument("--dtype", choices=("float32", "bfloat16"), help="numbers of the forward pass (default float32)")
    return parser


def _limit(text: str) -> int | float:
    """A whole number of rows, or a fraction where there is a point. Its range is checked where it is used."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; give rows (200) or a fraction (0.1)") from None


def _list(name: str | None) -> int:
    for each in [name] if name else tasks.names():
        task = tasks.get(each)()
        prompts = [f"{prompt} (default)" if prompt == task.default_prompt else prompt for prompt in task.prompts]
        scorers = [f"{scorer} (default)" if scorer in task.default_scorers else scorer for scorer in task.scorers]
        print(f"{task.name}: {task.description}")
        print(f"  source:     {task.source}, {task.published_size} rows")
        for kind, names in (("prompts", prompts), ("scorers", scorers), ("aggregates", list(task.aggregates))):
            print(f"  {kind + ':':11} {', '.join(names)}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    _refuse_incomplete(arguments)
    task = tasks.get(arguments.task)()
    scorers = pick_scorers(task, arguments.scorer.split(",") if arguments.scorer is not None else task.default_scorers)
    generation = {name: getattr(arguments, name) for name in _GENERATION}
    settings = settings_for(task, arguments.prompt, seed=arguments.seed, **generation)
    loaded = task.load(arguments.data, images=arguments.model is not None)
    docs = select(task, loaded, arguments.limit, arguments.seed)
    # The other file is read before hours are spent on this one.
    others = _predictions(task, arguments.compare, loaded, docs, settings) if arguments.compare else None
    output: Path | None
    if arguments.model:
        output, results, origin = _generated(arguments, task, docs, settings, scorers)
    else:
        output, results, origin = _scored(arguments, task, loaded, docs, settings, scorers)
    comparison = None
    if others is not None:
        comparison = compare(task, results.rows, score_rows(docs, others, scorers), seed=arguments.seed)
    if output:
        config = origin | {
            "seed": arguments.seed,
            "limit": arguments.limit,
            "packages": _versions(),
            "data": {str(file): file_sha(file) for file in task.files(arguments.data)},
        }
        tree = results_json(results, task=task, original=len(loaded), config=config)
        if comparison is not None:
            per_scorer = {name: comparison_json(one) for name, one in comparison.items()}
            tree["comparison"] = {"with": str(arguments.compare), **per_scorer}
        samples = sample_records(results, settings if arguments.model else None)
        write_results(output, tree, samples, task.name)
    _print(arguments, task, results, comparison, settings, len(loaded))
    if output:
        print(f"results: {output / 'results.json'}")
    return 1 if results.errors else 0


def _refuse_incomplete(arguments: argparse.Namespace) -> None:
    if not arguments.task:
        raise UserError(
            f"No benchmark was named. Known: {', '.join(tasks.names())}. Write it first, as in "
            "python -m gpg_vl.eval cvbench --help."
        )
    if not (arguments.model or arguments.predictions):
        raise UserError(
            "There is nothing to measure. Name a checkpoint with --model DIR, or a file of responses with "
            "--predictions FILE; --help shows examples."
        )
    if not arguments.data:
        raise UserError(
            "There are no questions. Name the benchmark's file or folder with --data PATH; --help shows examples."
        )


def _generated(
    arguments: argparse.Namespace, task: Task, docs: list[Doc], settings: EvalSettings, scorers: Mapping[str, Scorer]
) -> tuple[Path, Results, dict[str, Any]]:
    model: Path = arguments.model
    if not model.is_dir():
        raise UserError(
            f"There is no checkpoint folder {model}. Give a folder with config.json and weights; nothing is downloaded."
        )
    digest = model_sha(model)
    output = arguments.output or Path("runs") / f"eval-{task.name}-{model.resolve().name}-{digest[:8]}"

    def make_responder() -> Responder:
        from gpg_vl.eval.generate import model_responder  # imports torch, which scoring a file does not need

        return model_responder(model, settings)

    results = evaluate(
        task,
        docs,
        make_responder,
        settings,
        scorers,
        log=output / "predictions.jsonl",
        model_sha=digest,
        console=Console(stderr=True),
    )
    return output, results, {"model": str(model), "model_sha": digest, **asdict(settings)}


def _scored(
    arguments: argparse.Namespace,
    task: Task,
    loaded: list[Doc],
    docs: list[Doc],
    settings: EvalSettings,
    scorers: Mapping[str, Scorer],
) -> tuple[Path | None, Results, dict[str, Any]]:
    for name, flag in _GENERATION.items():
        if getattr(arguments, name) is not None:
            print(f"note: {flag} has no effect with --predictions, where nothing is generated.", file=sys.stderr)
    predictions = _predictions(task, arguments.predictions, loaded, docs, settings)
    check_gold(task, docs, scorers)
    results = score(task, docs, predictions, scorers, seed=arguments.seed)
    # How somebody else's responses were asked for is known only if the user says so.
    return (
        arguments.output,
        results,
        {
            "predictions": str(arguments.predictions),
            "prompt": arguments.prompt,
            "predictions_sha256": file_sha(arguments.predictions),
        },
    )


def _predictions(
    task: Task, file: Path, loaded: list[Doc], docs: list[Doc], settings: EvalSettings
) -> dict[int, Prediction]:
    return read_predictions(
        file,
        task=task.name,
        known={doc.doc_id for doc in loaded},
        needed=[doc.doc_id for doc in docs],
        prefill=settings.prefill,
    )


def _print(
    arguments: argparse.Namespace,
    task: Task,
    results: Results,
    comparison: Mapping[str, Comparison] | None,
    settings: EvalSettings,
    loaded: int,
) -> None:
    prompt = settings.prompt if arguments.model or arguments.prompt else "not given"
    console = Console(width=None if sys.stdout.isatty() else 160)
    measured = arguments.model or arguments.predictions
    print(f"{task.name}   {measured}   prompt: {prompt}")
    console.print(results_table(results))
    print(*results_notes(results), sep="\n")
    if comparison is not None:
        print(f"\nminus {arguments.compare}, on the same rows")
        console.print(comparison_table(comparison))
    if len(results.rows) < loaded:
        print(f"note: {len(results.rows)} of {loaded} rows, drawn by --limit and --seed {arguments.seed}.")
    if loaded != task.published_size:
        print(
            f"note: the data has {loaded} rows, the published benchmark {task.published_size}. Published numbers are "
            "of all."
        )
    for name, share in results.answered.items():
        if share < 0.9:
            print(
                f"warning: {name} finds an answer in only {share:.1%} of the responses (prompt: {prompt}). Read some "
                "samples: the model may not follow this prompt."
            )
    if results.errors:
        first = next(row.prediction for row in results.rows if row.prediction.error is not None)
        print(
            f"warning: {results.errors} rows have errors and count as wrong; the first is doc_id {first.doc_id}: "
            f"{first.error}"
        )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
