"""Explains why an answer got its reward: computes the verdict of each reward again.

Only built-in rewards are run, because a run folder from someone else must not decide which code runs. The verdicts of users'
`@explained` rewards were recorded next to their values in samples.jsonl. Rewards that may be slow on some texts run in a separate
process with a time limit.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose

from gpg_vl.answers.extract import extract_answer
from gpg_vl.answers.verdict import Verdict
from gpg_vl.console import say
from gpg_vl.errors import UserError
from gpg_vl.report.groups import Answer, Group
from gpg_vl.rewards import BUILTIN, QUICK, rewards
from gpg_vl.types import Completion, Example

TIME_LIMIT = 20.0
"""Time limit for all verdicts that may be slow."""
LONGEST_JUDGED = 20_000
"""Characters of an answer that is judged again."""
NO_TIME = "not judged again: the time limit was reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A reward and the answer that it explains.

    Example: `Question(reward="choice", group=group, answer=group.answers[0])`
    """

    reward: str
    group: Group
    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """How one reward read an answer, with a note.

    Example: `Reason(parsed="B", gold="B", note="", score=1.0)`
    """

    parsed: str | None = None
    """None: no answer could be read."""
    gold: str | None = None
    note: str = ""
    score: float | None = None
    """The score by the current version's rule; None if it was not run."""


def explain_all(questions: Sequence[Question]) -> list[Reason]:
    """The reason of each question, in their order."""
    slow = [q for q in questions if q.reward in BUILTIN and q.reward not in QUICK and _short(q)]
    answered = iter(_in_own_process(slow))
    reasons = []
    for question in questions:
        is_slow = question.reward in BUILTIN and question.reward not in QUICK
        reasons.append(
            next(answered) if is_slow and _short(question) else _explain_quickly(question)
        )
    return reasons


def _short(question: Question) -> bool:
    return len(question.answer.text) <= LONGEST_JUDGED


def _explain_quickly(question: Question) -> Reason:
    if question.reward not in BUILTIN:
        return _of_its_own(question)
    if not _short(question):
        return Reason(note=f"not judged again: longer than {LONGEST_JUDGED:,} characters")
    return explain(question.reward, *_as_given(question))


def _of_its_own(question: Question) -> Reason:
    """The recorded verdict of a user's reward, if there is one."""
    stored = question.answer.verdicts.get(question.reward)
    if stored is None:
        text = question.answer.prefill + question.answer.text
        return Reason(
            parsed=extract_answer(text).candidate if _short(question) else None,
            note="a reward of the run's own, which does not say why; decorate it with @explained",
        )

    # the score comes from the explain function, which may differ from the reward function
    recorded, notes = question.answer.parts[question.reward], [stored.note]
    if stored.score is not None and not isclose(stored.score, recorded, abs_tol=1e-6):
        notes.append(f"the run recorded {recorded:g}, its explanation says {stored.score:g}")
    return Reason(
        parsed=stored.parsed,
        note="; ".join(filter(None, notes)),
        score=None if stored.score is None else recorded,
    )


def explain(reward: str, completion: Completion, example: Example) -> Reason:
    """The verdict of a built-in reward. If the row lacks something for it, the note says so."""
    judge = getattr(rewards.get(reward), "explain", None)
    if judge is None:
        return Reason()
    try:
        verdict: Verdict = judge(completion, example)
    except (UserError, TypeError, ValueError, LookupError, AttributeError) as error:
        # the row may come from an older version or be edited: still show its reward
        return Reason(note=f"not judged again: {error}")
    return Reason(
        parsed=verdict.parsed, gold=verdict.gold, note=verdict.note, score=float(verdict.score)
    )


def _as_given(question: Question) -> tuple[Completion, Example]:
    """The answer and its example as the reward was given them."""
    group, answer = question.group, question.answer
    completion = Completion(
        token_ids=(0,) * min(answer.tokens or 0, 1_000_000),
        logprobs=(),
        text=answer.text,
        finish_reason="length" if answer.finish_reason == "length" else "stop",
        prefill=answer.prefill,
    )
    example = Example(
        id=group.id,
        prompt=group.question,
        answer=group.gold,
        choices=group.choices,
        task=group.task,
        meta=group.meta,
    )
    return completion, example


# ---- the process of its own


def _in_own_process(questions: Sequence[Question]) -> Iterator[Reason]:
    """Yield reasons until the time limit, then the note that it was reached."""
    if not questions:
        return
    lines = [json.dumps(_record(question)) + "\n" for question in questions]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "gpg_vl.report.verdicts"],
            input="".join(lines).encode(),
            stdout=subprocess.PIPE,
            timeout=TIME_LIMIT,
            check=True,
        ).stdout
    except subprocess.TimeoutExpired as error:
        done = error.stdout or b""

    answered = done.split(b"\n")[:-1]
    for place in range(len(questions)):
        known = place < len(answered)
        yield Reason(**json.loads(answered[place])) if known else Reason(note=NO_TIME)


def _record(question: Question) -> dict[str, object]:
    completion, example = _as_given(question)
    return {
        "reward": question.reward,
        "text": completion.text,
        "prefill": completion.prefill,
        "tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "prompt": example.prompt,
        "answer": example.answer,
        "choices": example.choices,
        "task": example.task,
        "meta": dict(example.meta),
    }


def _answer_lines(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        row = json.loads(line)
        reason = _explain_record(row)
        fields = {name: getattr(reason, name) for name in Reason.__slots__}
        yield json.dumps(fields)


def _explain_record(row: Mapping[str, object]) -> Reason:
    completion = Completion(
        token_ids=(0,) * int(str(row["tokens"])),
        logprobs=(),
        text=str(row["text"]),
        finish_reason="length" if row["finish_reason"] == "length" else "stop",
        prefill=str(row["prefill"]),
    )
    choices, meta = row["choices"], row["meta"]
    example = Example(
        id="0",
        prompt=str(row["prompt"]),
        answer=str(row["answer"]),
        choices=tuple(choices) if isinstance(choices, list) else None,
        task=str(row["task"]),
        meta=meta if isinstance(meta, dict) else {},
    )
    return explain(str(row["reward"]), completion, example)


if __name__ == "__main__":
    for out in _answer_lines(sys.stdin.buffer):
        say(out)
