"""From docs and a responder to results: select, prove the scorers on the gold answers, ask, score.

A responder answers rendered examples in order. It is made only when something is left to ask, so scoring a file and
repeating a finished run load no model.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gpg_vl.errors import UserError
from gpg_vl.eval.predictions import Key, Prediction, Responder, appending, failed, read_log, to_record
from gpg_vl.eval.results import Results, ScoredRow, summarise
from gpg_vl.eval.settings import EvalSettings, generation_sha, prompt_sha, render
from gpg_vl.eval.task import Doc, Score, Scorer, Task, stratum
from gpg_vl.types import Example


def select(task: Task, docs: Sequence[Doc], limit: int | float | None, seed: int) -> list[Doc]:
    """A part of the docs with every stratum in proportion and at least one doc of each, in the order of the docs.

    `limit` is a number of docs, or a fraction up to 1.0 (a float). Which docs are taken depends on the seed and their
    ids alone, not on their order. A limit below the number of strata is raised to it. None takes all.
    """
    if limit is None:
        return list(docs)
    if limit <= 0 or (isinstance(limit, float) and limit > 1):
        raise UserError(
            f"The limit is {limit}. Allowed is a whole number of docs from 1, or a fraction of them up to "
            f"1.0. Leave it out to take all {len(docs)}."
        )
    wanted = min(len(docs), round(limit * len(docs)) if isinstance(limit, float) else limit)
    members: dict[tuple[str, ...], list[Doc]] = {}
    for doc in docs:
        members.setdefault(stratum(doc, task.strata), []).append(doc)
    quotas = _quotas({name: len(group) for name, group in members.items()}, wanted)
    taken = {
        doc.doc_id
        for name, group in members.items()
        for doc in sorted(group, key=lambda doc: _lot(seed, doc.doc_id))[: quotas[name]]
    }
    return [doc for doc in docs if doc.doc_id in taken]


def check_gold(task: Task, docs: Sequence[Doc], scorers: Mapping[str, Scorer]) -> None:
    """Prove the scorers before a model is loaded: `strict` must accept every way to write a right answer, others one.

    Raises UserError with the first doc that fails.
    """
    for name, scorer in {"strict": task.scorers["strict"], **scorers}.items():
        enough = all if name == "strict" else any
        for doc in docs:
            golds = task.gold_responses(doc)
            if not enough(scorer(doc, gold, False).score == 1 for gold in golds):
                got = ", ".join(f"{gold!r} scores {scorer(doc, gold, False).score:g}" for gold in golds)
                raise UserError(
                    f"Doc {doc.doc_id} of {task.name}: the scorer {name!r} does not accept the right "
                    f"answer: {got}. The options are {doc.example.choices}. Correct the row, or drop the "
                    "scorer."
                )


def evaluate_responder(
    task: Task, docs: Sequence[Doc], responder: Responder, settings: EvalSettings, scorers: Mapping[str, Scorer]
) -> Results:
    """Ask and score without any file: what a training loop calls. A doc whose image cannot be read is an error row."""
    ready, void = prepare(docs, settings)
    answered = zip(ready, responder(list(ready.values())), strict=True)
    predictions = void | {doc_id: Prediction(doc_id=doc_id, response=response) for doc_id, response in answered}
    return score(task, docs, predictions, scorers, seed=settings.seed)


def evaluate(
    task: Task,
    docs: Sequence[Doc],
    make_responder: Callable[[], Responder],
    settings: EvalSettings,
    scorers: Mapping[str, Scorer],
    *,
    log: Path,
    model_sha: str,
    console: Console | None = None,
) -> Results:
    """Ask what `log` does not hold yet, append each response to it as it comes, and score all.

    The scorers are proved on the gold answers first. Errors in the log are asked again. Raises UserError.
    """
    check_gold(task, docs, scorers)
    ready, void = prepare(docs, settings)
    by_id = {doc.doc_id: doc for doc in docs}
    keys = _keys(task, ready, void, settings, model_sha)
    known = read_log(log)
    done = {doc_id: known[key] for doc_id, key in keys.items() if key in known and known[key].error is None}
    todo = {doc_id: example for doc_id, example in ready.items() if doc_id not in done}
    with appending(log) as append, _progress(console, task.name, len(docs), len(docs) - len(todo)) as advance:
        for prediction in (one for one in void.values() if keys[one.doc_id] not in known):
            append(to_record(keys[prediction.doc_id], prediction, _log_doc(task, by_id[prediction.doc_id])))
        responses = make_responder()(list(todo.values())) if todo else iter(())
        for doc_id, response in zip(todo, responses, strict=True):
            done[doc_id] = Prediction(doc_id=doc_id, response=response)
            append(to_record(keys[doc_id], done[doc_id], _log_doc(task, by_id[doc_id])))
            advance()
    return score(task, docs, void | done, scorers, seed=settings.seed)


def score(
    task: Task, docs: Sequence[Doc], predictions: Mapping[int, Prediction], scorers: Mapping[str, Scorer], *, seed: int
) -> Results:
    """The results of predictions that are there for every doc. Pure; `seed` is the bootstrap's."""
    return summarise(task, score_rows(docs, predictions, scorers), seed=seed)


def score_rows(
    docs: Sequence[Doc], predictions: Mapping[int, Prediction], scorers: Mapping[str, Scorer]
) -> list[ScoredRow]:
    """Every doc under every scorer, in the order of the docs. A prediction with an error scores 0 everywhere."""
    rows = []
    for doc in docs:
        prediction = predictions[doc.doc_id]
        response = prediction.response
        if prediction.error is None:
            scores = {name: scorer(doc, response.text, response.prefilled_think) for name, scorer in scorers.items()}
        else:
            void = Score(score=0.0, answered=False, parsed=None, notes=f"error: {prediction.error}")
            scores = dict.fromkeys(scorers, void)
        rows.append(ScoredRow(doc=doc, prediction=prediction, scores=scores))
    return rows


def prepare(docs: Sequence[Doc], settings: EvalSettings) -> tuple[dict[int, Example], dict[int, Prediction]]:
    """Rendered examples with their images as bytes, and error predictions of the docs whose images cannot be read."""
    ready, void = {}, {}
    for doc in docs:
        example = render(settings, doc)
        try:
            images = tuple(image if isinstance(image, bytes) else Path(image).read_bytes() for image in example.images)
        except OSError as error:
            void[doc.doc_id] = failed(doc.doc_id, f"the image {error.filename} cannot be read: {error.strerror}")
        else:
            ready[doc.doc_id] = replace(example, images=images)
    return ready, void


def _keys(
    task: Task, ready: Mapping[int, Example], void: Mapping[int, Prediction], settings: EvalSettings, model_sha: str
) -> dict[int, Key]:
    generation = generation_sha(settings, model_sha)
    shas = dict.fromkeys(void, "no image")
    for doc_id, example in ready.items():
        digests = [hashlib.sha256(image).hexdigest() for image in example.images if isinstance(image, bytes)]
        shas[doc_id] = prompt_sha(settings, example, digests)
    return {doc_id: Key(task.name, doc_id, sha, generation) for doc_id, sha in shas.items()}


def _log_doc(task: Task, doc: Doc) -> dict[str, object]:
    return {**doc.columns, "gold": doc.gold, "strata": stratum(doc, task.strata)}


def _lot(seed: int, doc_id: int) -> bytes:
    return hashlib.sha256(f"{seed} {doc_id}".encode()).digest()


def _quotas(sizes: Mapping[tuple[str, ...], int], wanted: int) -> dict[tuple[str, ...], int]:
    """Docs per stratum: one each, and the rest in proportion to what is left of each, by largest remainder."""
    rest, left = max(0, wanted - len(sizes)), sum(sizes.values()) - len(sizes)
    exact = {name: rest * (size - 1) / left if left else 0.0 for name, size in sizes.items()}
    quotas = {name: 1 + int(share) for name, share in exact.items()}
    # The name breaks ties, so that the order of the docs does not.
    by_remainder = sorted(exact, key=lambda name: (int(exact[name]) - exact[name], name))
    for name in by_remainder[: len(sizes) + rest - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


@contextmanager
def _progress(console: Console | None, title: str, total: int, done: int) -> Iterator[Callable[[], None]]:
    """A function to call after each response; it moves a bar if there is a terminal to show it on."""
    if console is None or not console.is_terminal:
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(title, total=total, completed=done)
        yield lambda: progress.advance(bar)
