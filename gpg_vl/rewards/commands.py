"""`gpg-vl rewards list | show | test`: their arguments, actions and output."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpg_vl.answers.verdict import Verdict
from gpg_vl.console import escaped_output, make_console, plain
from gpg_vl.errors import UserError, cut
from gpg_vl.prompting import GOLD_FORM
from gpg_vl.rewards.catalogue import documentation, entries, entry, run_samples
from gpg_vl.rewards.gold_proof import SAME_FAILURES, ways_on
from gpg_vl.rewards.scoring import Item, RewardFailure, load
from gpg_vl.rewards.try_reward import Trial, read_responses, try_reward

if TYPE_CHECKING:
    from rich.console import Console

HELP = """\
List and describe rewards, and test one before training with it.

  gpg-vl rewards list                                     every reward with its meaning, range and origin
  gpg-vl rewards show counting                            its documentation, with examples of accepted and refused answers
  gpg-vl rewards test counting --data train.jsonl         check that the gold answers get full marks
  gpg-vl rewards test counting --data train.jsonl --completions answers.jsonl
                                                          also score each completion, and explain its score
  gpg-vl rewards test my_rewards.py:exact --data train.jsonl

A reward is named as in a config: a built-in one, one of an installed package, or path/to/file.py:function."""

TEST_HELP = """\
Score the gold answers of a data set, and completions, with one reward, and show the answer that was extracted from each.

The data is in any form that `gpg-vl train` reads: .jsonl, .parquet, a folder of these, or datasets:NAME. The completions
are lines of
JSON, {"id": the id of an example, "response": the whole text of the answer}. Rewards run in processes of their own, with a
time limit for each call.

Exit code 1 if a gold answer does not get full marks, or if a call fails."""

_SHOWN_GOLD = 10
_EXPLAINED = ("value", "response", "read as", "gold", "note")
_UNEXPLAINED = ("value", "response", "gold")


def add_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add `rewards` to the subcommands of `gpg-vl`. Each action sets `run`, a function of the parsed arguments."""
    raw = argparse.RawDescriptionHelpFormatter
    rewards = commands.add_parser(
        "rewards",
        help="list the rewards, describe one, or test one on data",
        description=HELP,
        formatter_class=raw,
    )
    actions = rewards.add_subparsers(required=True, metavar="ACTION")

    listing = actions.add_parser("list", help="name, meaning, range and origin of every reward")
    listing.set_defaults(run=_list)

    show = actions.add_parser(
        "show", help="describe one reward, with examples of accepted and refused answers"
    )
    show.add_argument("name", help="a name of the list, or path/to/file.py:function")
    show.set_defaults(run=_show)

    test = actions.add_parser(
        "test", help="try a reward on data", description=TEST_HELP, formatter_class=raw
    )

    # what is scored
    test.add_argument("name", help="a name of the list, or path/to/file.py:function")
    test.add_argument(
        "--data", required=True, metavar="FILE", help="the examples with their gold answers"
    )
    test.add_argument(
        "--completions",
        type=Path,
        metavar="FILE",
        help="JSONL file of id and response; without it only gold answers are scored",
    )
    test.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="FIELD=COLUMN",
        help="names of columns that differ from our fields, such as answer=solution; fields: id, images, prompt, answer, "
        "choices, task",
    )

    # how it is scored and shown
    test.add_argument(
        "--rows",
        type=int,
        default=50,
        help="completions to print, the worst first (default %(default)s)",
    )
    test.add_argument(
        "--time-limit", type=float, default=10.0, help="seconds for one call (default %(default)g)"
    )
    test.add_argument(
        "--gold",
        default=GOLD_FORM,
        metavar="TEMPLATE",
        help="the form of a gold answer, with {answer} in its place, as rewards.gold in a config; a reward that declares "
        "its own form is tested in that form",
    )
    test.add_argument(
        "--root",
        type=Path,
        help="the folder that image paths are relative to (default: the folder of the data)",
    )
    test.add_argument("--workers", type=int, default=2, help="processes (default %(default)s)")

    test.set_defaults(run=_test)


def _list(_: argparse.Namespace) -> int:
    from rich.table import Table

    table = Table("name", "range", "from", "meaning", box=None)
    with escaped_output():
        listed = entries()
    for one in listed:
        batched = " batched" if one.batched else ""
        table.add_row(
            one.name, f"{one.low:g} to {one.high:g}{batched}", plain(one.source), plain(one.meaning)
        )
    make_console().print(table)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    with escaped_output():
        reward, about = load(arguments.name), entry(arguments.name)
        samples = run_samples(reward)
    console = make_console()
    console.print(
        plain(f"{about.name}: {about.low:g} to {about.high:g}, {about.source}"), style="bold"
    )
    console.print(
        f"given {'all completions of an example at once' if about.batched else 'one completion at a time'}\n"
    )
    console.print(plain(documentation(reward) or "(no docstring)"))
    if samples:
        table = _table(*_EXPLAINED)
        for one in samples:
            _add(table, one.score, one.sample.response, *_why(one.verdict, one.sample.answer))
        console.print("\nits scores for these answers:")
        console.print(table)
        settings = {str(dict(one.sample.meta)) for one in samples if one.sample.meta}
        choices = {str(list(one.sample.choices)) for one in samples if one.sample.choices}
        for what, values in (("columns of the example", settings), ("choices", choices)):
            if values:
                console.print(plain(f"{what}: {'; '.join(sorted(values))}"))
    return 0


def _test(arguments: argparse.Namespace) -> int:
    from gpg_vl.data.read import folder_of, load_examples

    if "{answer}" not in arguments.gold:
        raise UserError(
            f"--gold is {arguments.gold!r}, which has no {{answer}}. Write {{answer}} where the gold answer goes, as in "
            f"'<answer>{{answer}}</answer>'."
        )

    examples = load_examples(arguments.data, _columns(arguments.columns), answers=False)
    ids = [example.id for example in examples]
    if len(set(ids)) < len(ids):
        twice = next(key for place, key in enumerate(ids) if key in ids[:place])
        raise UserError(
            f"{arguments.data} has the id {twice!r} more than once. Ids must be unique. Correct the rows."
        )

    responses = {} if arguments.completions is None else read_responses(arguments.completions, ids)
    trial = try_reward(
        arguments.name,
        examples,
        responses,
        time_limit=arguments.time_limit,
        workers=arguments.workers,
        gold=arguments.gold,
        root=arguments.root or folder_of(arguments.data),
    )
    _print_trial(trial, make_console(), arguments)
    return 0 if trial.ok else 1


def _columns(pairs: Sequence[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        field, given, column = pair.partition("=")
        if not given:
            raise UserError(
                f"--columns was given {pair!r}. FIELD=COLUMN is allowed, such as answer=solution."
            )
        columns[field] = column
    return columns


def _print_trial(trial: Trial, console: "Console", arguments: argparse.Namespace) -> None:
    scores, problems, rows = trial.scores, trial.gold_problems, arguments.rows
    if trial.tried:
        ordered = sorted(trial.tried, key=lambda one: trial.score(one[1], failed=float("-inf")))
        console.print(_make_trial_table(ordered[:rows], explained=trial.explained))
        if len(ordered) > rows:
            console.print(
                f"... and {len(ordered) - rows} more with the same or a greater value (--rows)",
            )
        mean = sum(scores) / len(scores) if scores else float("nan")
        full = sum(score == trial.high for score in scores)
        console.print(
            f"\ncompletions {len(trial.tried)}: mean {mean:.4f}, full marks {full}, unparsed {trial.unparsed}, "
            f"failed {len(trial.tried) - len(scores)}; {trial.seconds:.2f} s with {arguments.workers} processes",
        )
    console.print(_gold_line(trial))
    if problems:
        console.print(_make_trial_table(problems[:_SHOWN_GOLD], explained=trial.explained))
        if len(problems) > _SHOWN_GOLD:
            console.print(f"... and {len(problems) - _SHOWN_GOLD} more")
    _say_failures([*problems[:_SHOWN_GOLD], *trial.tried], console)
    if any(isinstance(outcome, Verdict) for _, outcome in problems):
        console.print(f"\n{ways_on(arguments.gold)}", soft_wrap=True)
    if not trial.explained and (trial.tried or problems):
        console.print(
            f"\n{trial.name} does not say what it reads in a response. Decorate it with @explained of "
            f"gpg_vl.rewards.samples, and it is shown here next to each value.",
            soft_wrap=True,
        )


def _gold_line(trial: Trial) -> str:
    problems, number = len(trial.gold_problems), len(trial.gold)
    if not trial.proved:
        return (
            f"gold answers {trial.rows}: not tried, as {trial.name} declares that none can get full marks "
            f"(@gold_form(None))"
        )
    line = f"gold answers {number}: {number - problems} get full marks ({trial.high:g})"
    if number < trial.rows:
        line += (
            f"; the other {trial.rows - number} were not tried, because the reward failed {SAME_FAILURES} times for the "
            f"same cause"
        )
    return f"{line}, {problems} do not:" if problems else line


def _say_failures(
    outcomes: Sequence[tuple[Item, Verdict | RewardFailure]], console: "Console"
) -> None:
    failed = dict.fromkeys(str(one) for _, one in outcomes if isinstance(one, RewardFailure))
    for message in list(failed)[: 2 * _SHOWN_GOLD]:
        console.print(plain(f"\n{message}"))


def _make_trial_table(
    outcomes: Sequence[tuple[Item, Verdict | RewardFailure]], *, explained: bool
) -> Any:
    table = _table("id", *(_EXPLAINED if explained else _UNEXPLAINED))
    for (example, (completion,)), outcome in outcomes:
        score = None if isinstance(outcome, RewardFailure) else outcome.score
        why = _why(outcome, example.answer) if explained else [example.answer]
        _add(table, score, completion.response, *why, first=(example.id,))
    return table


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _add(table: Any, score: float | None, *cells: str, first: Sequence[str] = ()) -> None:
    value = "failed" if score is None else f"{score:.4g}"
    table.add_row(*(plain(_short(cell)) for cell in (*first, value, *cells)))


def _why(verdict: Verdict | RewardFailure | None, answer: str) -> list[str]:
    """The cells behind the value. A call that failed has no verdict, whatever the reward can tell."""
    if not isinstance(verdict, Verdict):
        return ["-", answer, "" if verdict is None else str(verdict)]
    return ["unparsed" if verdict.parsed is None else verdict.parsed, verdict.gold, verdict.note]


def _short(text: str, width: int = 60) -> str:
    text = " ".join(text[: 4 * width].split()) if len(text) > 4 * width else " ".join(text.split())
    return cut(text, width)
