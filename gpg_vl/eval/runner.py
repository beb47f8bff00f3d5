"""From docs and a responder to results: select, prove the scorers on the gold answers, ask, score.

A responder answers rendered examples in order. It is made only when something is left to ask, so scoring a file and
repeating a finished run load no model.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from gpg_vl.answers.verdict import Verdict
from gpg_vl.console import text_column
from gpg_vl.data.images import ImageError, load_image, read_image
from gpg_vl.errors import UserError
from gpg_vl.eval.doc_json import doc_record
from gpg_vl.eval.predictions import (
    Answers,
    Failed,
    Key,
    Prediction,
    Responder,
    Response,
    appending,
    predictions_of,
    read_log,
    to_record,
)
from gpg_vl.eval.results import Results, ScoredRow, summarise
from gpg_vl.eval.settings import EvalSettings, generation_sha, prompt_sha, render
from gpg_vl.eval.task import Doc, Scorer, Task, make_verdict, stratum
from gpg_vl.types import Example

EXACT = 1e-6  # a gold box that is written with finitely many digits is right all the same


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
        for doc in sorted(group, key=lambda doc: _draw_lot(seed, doc.doc_id))[: quotas[name]]
    }
    return [doc for doc in docs if doc.doc_id in taken]


def check_gold(task: Task, docs: Sequence[Doc], scorers: Mapping[str, Scorer]) -> dict[str, float]:
    """Prove the scorers before a model is loaded: `strict` must accept every way to write a right answer, others one.

    Scorers that the task calls flawed need not. The result is the ceiling of each of the scorers: the mean score of right
    answers, each written in the way that the scorer likes best. Raises UserError with the first doc that fails.
    """
    return select_proved(task, docs, scorers, allow_errors=False)[1]


def select_proved(
    task: Task, docs: Sequence[Doc], scorers: Mapping[str, Scorer], *, allow_errors: bool
) -> tuple[list[Doc], dict[str, float]]:
    """The docs, and what `check_gold` returns. With `allow_errors` a doc that fails says in `refused` who refuses it."""
    usable_docs = [doc for doc in docs if doc.problem is None]
    ceilings: dict[str, float] = {}
    refused: dict[int, dict[str, str]] = {}
    for name, scorer in {"strict": task.scorers["strict"], **scorers}.items():
        more_ways = task.published_golds if name in task.flawed else (lambda doc: ())
        best = [
            _best(scorer, doc, chain(task.gold_responses(doc), more_ways(doc)))
            for doc in usable_docs
        ]
        if name in scorers:
            ceilings[name] = sum(best) / max(1, len(best))
        if name in task.flawed:
            continue
        for doc, score in zip(usable_docs, best, strict=True):
            if score < task.full_marks(doc) - EXACT or (
                name == "strict" and not _accepts_all(task, scorer, doc)
            ):
                refused.setdefault(doc.doc_id, {})[name] = _refusal(task, doc, name, scorer)
    if refused and not allow_errors:
        more = f" So it is with {len(refused) - 1} more docs." if len(refused) > 1 else ""
        raise UserError(
            f"{next(reason for reasons in refused.values() for reason in reasons.values())}{more} Correct the row, drop the "
            "scorer, or give --allow-errors to score such rows 0."
        )
    return [replace(doc, refused=refused.get(doc.doc_id, {})) for doc in docs], ceilings


def _refusal(task: Task, doc: Doc, name: str, scorer: Scorer) -> str:
    got = ", ".join(
        f"{gold.text!r} scores {scorer(doc, gold).score:g}" for gold in task.gold_responses(doc)
    )
    return (
        f"Doc {doc.doc_id} of {task.name}: the scorer {name!r} does not accept the right answer: {got}. "
        f"{f'The options are {doc.example.choices}. ' if doc.example.choices else ''}".rstrip()
    )


def _best(scorer: Scorer, doc: Doc, golds: Iterable[Response]) -> float:
    """The highest score of a way to write the right answer; what comes behind one that scores 1 is not looked at."""
    best = 0.0
    for gold in golds:
        best = max(best, scorer(doc, gold).score)
        if best >= 1 - EXACT:
            return 1.0
    return best


def _accepts_all(task: Task, scorer: Scorer, doc: Doc) -> bool:
    least = task.full_marks(doc) - EXACT
    return all(scorer(doc, gold).score >= least for gold in task.gold_responses(doc))


def evaluate_responder(
    task: Task,
    docs: Sequence[Doc],
    responder: Responder,
    settings: EvalSettings,
    scorers: Mapping[str, Scorer],
) -> Results:
    """Ask and score without any file: what a training loop calls. A doc that cannot be asked is an error row."""
    ready, void = prepare(docs, settings)
    answers: dict[int, Answers] = {doc_id: Failed(reason=reason) for doc_id, reason in void.items()}
    answers |= zip(ready, responder(list(ready.values())), strict=True)
    predictions = {
        doc.doc_id: predictions_of(doc.doc_id, answers[doc.doc_id], settings.repeats)
        for doc in docs
    }
    return score(task, docs, predictions, scorers, seed=settings.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answerer:
    """Who answers, and how it is asked."""

    make: Callable[[], Responder]
    """Makes the responder; called only if something is left to ask."""
    settings: EvalSettings
    model_sha: str
    """Digest of the weights: an answer of other weights is no answer of this one."""


def evaluate(
    task: Task,
    docs: Sequence[Doc],
    answerer: Answerer,
    scorers: Mapping[str, Scorer],
    *,
    log: Path,
    allow_errors: bool = False,
    console: Console | None = None,
) -> Results:
    """Ask what `log` does not hold yet, append each response to it as it comes, and score all.

    The scorers are proved on the gold answers first. A doc that cannot be asked (a missing or damaged image) stops the
    run before a model is made, by a UserError that names it; with `allow_errors` it is an error row, scored 0. Errors in
    the log are asked again. Raises UserError.
    """
    docs, ceilings = select_proved(task, docs, scorers, allow_errors=allow_errors)
    predictions = _ask(task, docs, answerer, log=log, allow_errors=allow_errors, console=console)
    return score(task, docs, predictions, scorers, seed=answerer.settings.seed, ceilings=ceilings)


def _ask(
    task: Task,
    docs: Sequence[Doc],
    answerer: Answerer,
    *,
    log: Path,
    allow_errors: bool,
    console: Console | None,
) -> dict[int, tuple[Prediction, ...]]:
    """The predictions of all docs: those of the log, and the new ones that are appended to it."""
    ready, void = prepare(docs, answerer.settings)
    keys = _keys(task, ready, void, answerer)

    known = read_log(log)
    done = {
        doc_id: tuple(known[key] for key in of_doc)
        for doc_id, of_doc in keys.items()
        if all(key in known and known[key].error is None for key in of_doc)
    }

    # Pictures of what was answered before are not decoded again.
    todo = {doc_id: example for doc_id, example in ready.items() if doc_id not in done}
    void |= _undecodable(todo, answerer.settings)
    if not allow_errors:
        _refuse_errors(task, void)
    todo = {doc_id: example for doc_id, example in todo.items() if doc_id not in void}

    by_id = {doc.doc_id: doc for doc in docs}
    with appending(log) as append, _progress(console, task.name, len(docs), len(done)) as advance:

        def keep(doc_id: int, answers: Answers) -> None:
            """Append what the log does not have, or has as an error that is now answered."""
            kept = []
            predictions = predictions_of(doc_id, answers, answerer.settings.repeats)
            for key, new in zip(keys[doc_id], predictions, strict=True):
                old = known.get(key)
                if old is None or (old.error is not None and new.error is None):
                    append(to_record(key, new, doc_record(by_id[doc_id])))
                    old = new
                kept.append(old)
            done[doc_id] = tuple(kept)
            advance()

        for doc_id, reason in void.items():
            keep(doc_id, Failed(reason=reason))
        responses = answerer.make()(list(todo.values())) if todo else iter(())
        for doc_id, answers in zip(todo, responses, strict=True):
            if isinstance(answers, Failed) and not allow_errors:
                _refuse_errors(task, {doc_id: answers.reason})
            keep(doc_id, answers)
    return done


def score(
    task: Task,
    docs: Sequence[Doc],
    predictions: Mapping[int, Sequence[Prediction]],
    scorers: Mapping[str, Scorer],
    *,
    seed: int,
    ceilings: Mapping[str, float] | None = None,
) -> Results:
    """The results of predictions that are there for every doc. Pure; `seed` is the bootstrap's."""
    return summarise(task, score_rows(docs, predictions, scorers), seed=seed, ceilings=ceilings)


def score_rows(
    docs: Sequence[Doc],
    predictions: Mapping[int, Sequence[Prediction]],
    scorers: Mapping[str, Scorer],
) -> list[ScoredRow]:
    """Every answer under every scorer, in the order of the docs. What has an error scores 0 everywhere, and a doc whose
    gold answer a scorer refuses scores 0 under that one."""
    rows = []
    for doc in docs:
        for prediction in predictions[doc.doc_id]:
            if doc.problem is not None and prediction.error is None:
                prediction = replace(prediction, error=doc.problem)
            scores = {
                name: _score_response(name, scorer, doc, prediction)
                for name, scorer in scorers.items()
            }
            rows.append(ScoredRow(doc=doc, prediction=prediction, scores=scores))
    return rows


def _score_response(name: str, scorer: Scorer, doc: Doc, prediction: Prediction) -> Verdict:
    void = doc.refused.get(name) if prediction.error is None else prediction.error
    if void is None:
        return scorer(doc, prediction.response)
    return make_verdict(doc, 0.0, None, note=f"error: {void}")


def prepare(
    docs: Sequence[Doc], settings: EvalSettings
) -> tuple[dict[int, Example], dict[int, str]]:
    """Rendered examples with their images as bytes, and why the other docs cannot be asked (an image that is not there)."""
    ready, void = {}, {}
    for doc in docs:
        if doc.problem is not None:
            void[doc.doc_id] = doc.problem
            continue
        example = render(settings, doc)
        try:
            images = tuple(read_image(image, root=doc.root) for image in example.images)
        except ImageError as error:
            void[doc.doc_id] = str(error)
        else:
            ready[doc.doc_id] = replace(example, images=images)
    return ready, void


def _undecodable(examples: Mapping[int, Example], settings: EvalSettings) -> dict[int, str]:
    """Why images cannot be used, by doc: found out before hours are spent, not after."""
    void = {}
    for doc_id, example in examples.items():
        try:
            for image in example.images:
                load_image(image, root=None, max_pixels=settings.limits.max_image_pixels)
        except ImageError as error:
            void[doc_id] = str(error)
    return void


def _refuse_errors(task: Task, void: Mapping[int, str]) -> None:
    if void:
        doc_id, reason = next(iter(void.items()))
        more = f" So are {len(void) - 1} more docs." if len(void) > 1 else ""
        raise UserError(
            f"Doc {doc_id} of {task.name} cannot be asked: {reason}{more} Correct the data, or give --allow-errors to "
            "score such rows 0."
        )


def _keys(
    task: Task, ready: Mapping[int, Example], void: Mapping[int, str], answerer: Answerer
) -> dict[int, tuple[Key, ...]]:
    """The keys of every doc, one for each of the repeated answers to it."""
    settings = answerer.settings
    generation = [
        generation_sha(settings, answerer.model_sha, sample) for sample in range(settings.repeats)
    ]
    shas = dict.fromkeys(void, "no image")
    for doc_id, example in ready.items():
        digests = [
            hashlib.sha256(image).hexdigest()
            for image in example.images
            if isinstance(image, bytes)
        ]
        shas[doc_id] = prompt_sha(settings, example, digests)
    return {
        doc_id: tuple(Key(task.name, doc_id, sha, one) for one in generation)
        for doc_id, sha in shas.items()
    }


def _draw_lot(seed: int, doc_id: int) -> bytes:
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
def _progress(
    console: Console | None, title: str, total: int, done: int
) -> Iterator[Callable[[], None]]:
    """A function to call after each response; it moves a bar if there is a terminal to show it on."""
    if console is None or not console.is_terminal:
        yield lambda: None
        return
    columns = (
        text_column("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(title, total=total, completed=done)
        yield lambda: progress.advance(bar)
