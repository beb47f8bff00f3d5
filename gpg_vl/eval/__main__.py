"""`python -m gpg_vl.eval TASK (--model DIR | --predictions FILE) --data PATH`: measure a model, or score a file."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpg_vl.console import escaped_output, guard, make_console, progress, say
from gpg_vl.errors import RunError, UserError
from gpg_vl.eval.arguments import GENERATION, PIXELS, make_parser
from gpg_vl.eval.compare import Comparison, compare, comparison_json
from gpg_vl.eval.coordinates import model_convention, with_coordinates
from gpg_vl.eval.display import (
    comparison_tables,
    disagreement_table,
    results_notes,
    results_tables,
    size_note,
)
from gpg_vl.eval.doc_json import read_docs
from gpg_vl.eval.listing import print_list
from gpg_vl.eval.predictions import Prediction, Responder, read_predictions
from gpg_vl.eval.results import Results, results_json, sample_records, write_results
from gpg_vl.eval.runner import Answerer, evaluate, score, score_rows, select, select_proved
from gpg_vl.eval.settings import (
    FIXED,
    EvalSettings,
    file_sha,
    model_revision,
    settings_for,
)
from gpg_vl.eval.task import Doc, Scorer, Task, pick_scorers
from gpg_vl.eval.tasks import tasks
from gpg_vl.hub import PREFIX, fetch_data
from gpg_vl.models.digest import model_sha
from gpg_vl.models.run_checkpoints import find_model
from gpg_vl.pipes import run_until_pipe_breaks
from gpg_vl.prompting import DEFAULT_LIMITS, PixelLimits
from gpg_vl.registry import UnknownNameError

_PACKAGES = "gpg_vl math-verify numpy pillow pyarrow torch transformers qwen-vl-utils"
Predictions = Mapping[int, Sequence[Prediction]]


def main(argv: Sequence[str] | None = None, prog: str = "python -m gpg_vl.eval") -> int:
    """Run the program and return its exit code. What the user got wrong is one message, without a traceback."""
    return run_until_pipe_breaks(lambda: _main(argv, prog))


def _main(argv: Sequence[str] | None, prog: str) -> int:
    guard()
    with escaped_output():
        arguments = make_parser(prog).parse_args(argv)
    try:
        if arguments.list:
            print_list(arguments.task, make_console(width=160))
            return 0
        return _run(arguments)
    except (UserError, UnknownNameError) as error:
        say(f"error: {error}", error=True)
        return 2
    except RunError as error:
        say(
            f"stopped: {error} The responses so far are kept; the same command resumes there.",
            error=True,
        )
        return 1
    except KeyboardInterrupt:
        say(
            "stopped. The responses so far are kept; the same command resumes there.",
            error=True,
        )
        return 130


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the command line asks for, read and checked before anything is generated."""

    task: Task
    settings: EvalSettings
    loaded: Sequence[Doc]
    """Every doc of the data."""
    docs: Sequence[Doc]
    """Those that are measured."""
    asked: int
    """How many of them the limit asks for; fewer are measured where responses are missing and may be."""
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What was measured, and where it goes."""

    results: Results
    origin: Mapping[str, Any]
    """How the answers came about."""
    output: Path | None
    comparison: Mapping[str, Comparison] | None = None


def _run(arguments: argparse.Namespace) -> int:
    _refuse_incomplete(arguments)
    _find_files(arguments)
    job, given, others = _read_files(arguments, _job(arguments))
    scorers = _scorers(arguments, job, given)

    outcome = (
        _generate(arguments, job, scorers)
        if given is None
        else _score_file(arguments, job, given, scorers)
    )
    rows = outcome.results.rows
    if others is not None:
        docs = list({row.doc.doc_id: row.doc for row in rows}.values())  # as checked
        other_rows = score_rows(docs, others, scorers)
        outcome = replace(outcome, comparison=compare(job.task, rows, other_rows, seed=job.seed))

    if outcome.output:
        _write(arguments, job, outcome, outcome.output)
    _print(arguments, job, outcome)
    for note in _notes(arguments, job, outcome.results):
        say(note)
    if outcome.output:
        say(f"results: {outcome.output / 'results.json'}")
    return 1 if outcome.results.errors and not arguments.allow_errors else 0


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
    if arguments.model and not arguments.data:
        raise UserError(
            "There are no questions. Name the benchmark's file or folder with --data PATH; --help shows examples."
        )

    if arguments.intersect and not arguments.compare:
        raise UserError(
            "--intersect says which rows are compared, but there is nothing to compare with. Name the other predictions "
            "with --compare FILE, or leave --intersect out."
        )

    # what is asked of a checkpoint
    if arguments.model and arguments.repeats > 1 and not arguments.temperature:
        raise UserError(
            f"--repeats {arguments.repeats} asks for answers that differ, but greedy answers do not. Give --temperature "
            "(0.6 with --top-p 0.95 is usual in mathematics)."
        )


def _find_files(arguments: argparse.Namespace) -> None:
    """Replace the folder of a run by its newest model, and a data set of the hub by the folder that it is fetched to."""
    if arguments.model:
        arguments.model = find_model(arguments.model)
    named = str(arguments.data or "")
    if named.startswith(PREFIX):
        arguments.data = fetch_data(named.removeprefix(PREFIX))


def _job(arguments: argparse.Namespace) -> _Job:
    task = tasks.get(arguments.task)()
    if arguments.scorer is not None:
        # a wrong name is refused before the data is read
        pick_scorers(task, arguments.scorer.split(","))

    names = (*GENERATION, "repeats", "coordinates")
    changes = {name: getattr(arguments, name) for name in names} | {"limits": _limits(arguments)}
    settings = settings_for(task, arguments.prompt, seed=arguments.seed, **changes)
    if arguments.coordinates and not task.boxes:
        note = f"note: --coordinates has no effect on {task.name}, where no boxes are answered."
        say(note, error=True)

    if arguments.data:
        has_model = arguments.model is not None
        loaded = task.load(arguments.data, images=has_model, root=arguments.images)
    else:
        loaded = read_docs(arguments.predictions)

    # whose numbers a box is written in: those of the command line, else of the model
    if task.boxes and (arguments.data or settings.coordinates):
        used = model_convention(arguments.model, settings.coordinates)
        if arguments.model:
            settings = replace(settings, coordinates=used.coordinates)
        loaded = with_coordinates(loaded, used.coordinates, settings, used.side)

    docs = select(task, loaded, arguments.limit, arguments.seed)
    return _Job(
        task=task, settings=settings, loaded=loaded, docs=docs, asked=len(docs), seed=arguments.seed
    )


def _limits(arguments: argparse.Namespace) -> PixelLimits:
    given = {name: getattr(arguments, name) for name in PIXELS}
    return replace(DEFAULT_LIMITS, **{name: n for name, n in given.items() if n is not None})


def _read_files(
    arguments: argparse.Namespace, job: _Job
) -> tuple[_Job, Predictions | None, Predictions | None]:
    """The responses of both files, and the job with the docs that they leave to be measured.

    Responses may be missing with a limit, where any docs will do as long as the file has them, and with --intersect.
    """
    given = others = None
    if arguments.predictions:
        limited = arguments.limit is not None
        docs = job.loaded if limited else job.docs
        given = _read_responses(
            arguments.predictions, job, docs, partial=limited or arguments.intersect
        )
        there = [doc for doc in docs if doc.doc_id in given]
        job = replace(job, docs=select(job.task, there, job.asked, job.seed) if limited else there)
    if arguments.compare:  # before hours are spent on the answers of a model
        others = _read_responses(arguments.compare, job, job.docs, partial=arguments.intersect)
        job = replace(job, docs=[doc for doc in job.docs if doc.doc_id in others])
    return job, given, others


def _read_responses(
    file: Path, job: _Job, docs: Sequence[Doc], *, partial: bool
) -> dict[int, tuple[Prediction, ...]]:
    return read_predictions(
        file,
        task=job.task.name,
        known={doc.doc_id for doc in job.loaded},
        needed=[doc.doc_id for doc in docs],
        prefill=job.settings.style.prefill,
        repeats=job.settings.repeats,
        partial=partial,
    )


def _scorers(
    arguments: argparse.Namespace, job: _Job, given: Predictions | None
) -> dict[str, Scorer]:
    """Those that were named, or the task's own choice. Raises UserError for scorers of masks where there are none."""
    task = job.task
    masked = given is not None and any(
        one.response.mask for answers in given.values() for one in answers
    )
    if arguments.scorer is None:
        return pick_scorers(task, [*task.default_scorers, *(task.needs_mask if masked else ())])
    scorers = pick_scorers(task, arguments.scorer.split(","))
    if not masked and "all" in arguments.scorer.split(","):
        scorers = {name: scorer for name, scorer in scorers.items() if name not in task.needs_mask}
    if not masked and (without := [name for name in scorers if name in task.needs_mask]):
        raise UserError(
            f"The scorers {', '.join(without)} of {task.name} compare segmentations, and there are none. Give every row of "
            'the predictions a "mask", as COCO run lengths {"size": [height, width], "counts": ...}, or drop the scorers.'
        )
    return scorers


def _generate(arguments: argparse.Namespace, job: _Job, scorers: Mapping[str, Scorer]) -> _Outcome:
    model: Path = arguments.model
    digest = model_sha(model)
    named = f"eval-{job.task.name}-{model.resolve().name}-{digest[:8]}"
    output = arguments.output or Path("runs") / named
    console = make_console(error=True)

    def make_responder() -> Responder:
        # imports torch, which scoring a file does not need
        from gpg_vl.eval.generate import model_responder

        with progress(console, f"loading the weights of {model}"):
            return model_responder(model, job.settings)

    results = evaluate(
        job.task,
        job.docs,
        Answerer(make=make_responder, settings=job.settings, model_sha=digest),
        scorers,
        log=output / "predictions.jsonl",
        allow_errors=arguments.allow_errors,
        console=console,
    )
    weights = {"model": str(model), "model_sha": digest, "revision": model_revision(model)}
    return _Outcome(
        results=results, origin={**weights, **job.settings.record(), **FIXED}, output=output
    )


def _score_file(
    arguments: argparse.Namespace, job: _Job, given: Predictions, scorers: Mapping[str, Scorer]
) -> _Outcome:
    without_effect = GENERATION if job.task.boxes else GENERATION | PIXELS
    for name, flag in without_effect.items():
        if getattr(arguments, name) is not None:
            say(
                f"note: {flag} has no effect with --predictions, where nothing is generated.",
                error=True,
            )

    docs, ceilings = select_proved(job.task, job.docs, scorers, allow_errors=arguments.allow_errors)
    results = score(job.task, docs, given, scorers, seed=job.seed, ceilings=ceilings)

    # How somebody else's responses were asked for is known only if the user says so.
    origin = {
        "predictions": str(arguments.predictions),
        "prompt": arguments.prompt,
        "coordinates": _coordinates(job),
        "predictions_sha256": file_sha(arguments.predictions),
    }
    return _Outcome(results=results, origin=origin, output=arguments.output)


def _coordinates(job: _Job) -> str | None:
    return (
        next((doc.columns.get("coordinates") for doc in job.docs), None) if job.task.boxes else None
    )


def _write(arguments: argparse.Namespace, job: _Job, outcome: _Outcome, output: Path) -> None:
    data = arguments.data
    config = {
        **outcome.origin,
        "seed": arguments.seed,
        "limit": arguments.limit,
        "repeats": job.settings.repeats,
        "packages": _versions(),
        "data": {str(file): file_sha(file) for file in job.task.files(data)} if data else None,
    }
    results = outcome.results
    tree = results_json(results, task=job.task, original=len(job.loaded), config=config)
    if outcome.comparison is not None:
        per_scorer = {name: comparison_json(one) for name, one in outcome.comparison.items()}
        tree["comparison"] = {"with": str(arguments.compare), "rows": results.docs, **per_scorer}
    samples = sample_records(results, job.settings if arguments.model else None)
    write_results(output, tree, samples, job.task.name)


def _print(arguments: argparse.Namespace, job: _Job, outcome: _Outcome) -> None:
    """The tables, and what is under them."""
    prompt = job.settings.prompt if arguments.model or arguments.prompt else "not given"
    coordinates = f"   coordinates: {_coordinates(job)}" if job.task.boxes else ""
    source = arguments.model or arguments.predictions
    say(f"{job.task.name}   {source}   prompt: {prompt}{coordinates}")

    console, results = make_console(width=160), outcome.results
    for table in results_tables(results, console):
        console.print(table)
    say("\n".join(results_notes(results, prompt=prompt)))
    if (disagreement := disagreement_table(results.rows)) is not None:
        console.print(disagreement)
    if outcome.comparison is not None:
        say(f"\nminus {arguments.compare}, on the same {results.docs} rows")
        for table in comparison_tables(outcome.comparison, console):
            console.print(table)


def _notes(arguments: argparse.Namespace, job: _Job, results: Results) -> Iterator[str]:
    """How many rows there are of those that there might be, and what went wrong; a line each."""
    loaded = len(job.loaded)
    if results.docs < job.asked:
        where = "are in both" if arguments.intersect else "have an answer"
        yield f"note: {results.docs} of {job.asked} rows {where}; the others are left out."
    elif results.docs < loaded:
        drawn = f"drawn by --limit and --seed {arguments.seed}"
        yield f"note: {results.docs} of {loaded} rows, {drawn}."
    if note := size_note(job.task, loaded):
        yield note

    first = next((row for row in results.rows if row.error is not None), None)
    if first is not None:
        yield (
            f"warning: {results.errors} rows have errors and count as wrong; the first is doc_id {first.doc.doc_id}: "
            f"{first.error}"
        )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES.split():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
