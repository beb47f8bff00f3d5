"""`gpg-vl try MODEL IMAGE QUESTION`: sample answers to one question and, with --reward, score and explain each."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpg_vl.answers.verdict import Verdict
from gpg_vl.console import make_console, plain, say
from gpg_vl.errors import UserError
from gpg_vl.rewards.scoring import RewardFailure
from gpg_vl.types import Completion, Example

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

HELP = """\
Ask a model one question and print its answers.

  gpg-vl try Qwen/Qwen2-VL-2B-Instruct street.png "How many cars are there?"
  gpg-vl try runs/my_run scene.png "Which is closer? (A) ball (B) cube" -n 8 \\
      --reward choice --gold "(B)" --choices ball cube
  gpg-vl try Qwen/Qwen2.5-1.5B-Instruct none "What is 12 * 13?" -n 4 --reward math --gold 156

With --reward the answers are scored as in training, and each score is shown with the answer that the reward extracted."""
NO_IMAGE = "none"


def add_command(commands: "_Commands") -> None:
    """Add `try` to the command line."""
    parser = commands.add_parser(
        "try",
        help="ask a model one question, and see how a reward scores its answers",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    # model and question
    parser.add_argument("model", help="a checkpoint folder, the folder of a run, or a hub name")
    parser.add_argument("image", metavar="IMAGE", help=f"an image file, or {NO_IMAGE}")
    parser.add_argument("question", metavar="QUESTION", help="the user's text")

    # how answers are sampled
    parser.add_argument("-n", type=int, default=4, help="answers (default %(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="0 is greedy (default %(default)s)"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        help="maximum length of an answer, in tokens (default %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of sampling (default %(default)s)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")

    # scoring
    parser.add_argument(
        "--reward",
        metavar="NAME",
        help="score the answers with this reward: a name, or path/to/file.py:function",
    )
    parser.add_argument("--gold", default="", help="the gold answer, for the reward")
    parser.add_argument(
        "--choices", nargs="+", metavar="OPTION", help="the options of the question, in order"
    )

    parser.set_defaults(run=_try)


def _try(arguments: argparse.Namespace) -> int:
    _refuse_contradictions(arguments)
    from gpg_vl.model import Model

    model = Model.load(arguments.model, dtype=arguments.dtype)
    answers = model.generate(
        None if arguments.image == NO_IMAGE else Path(arguments.image),
        arguments.question,
        n=arguments.n,
        temperature=arguments.temperature,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
    )
    if arguments.reward is None:
        _print(answers)
        return 0

    example = Example(
        id="question",
        prompt=arguments.question,
        answer=arguments.gold,
        choices=tuple(arguments.choices) if arguments.choices else None,
    )
    _print_scored(answers, _score(arguments.reward, example, answers))
    return 0


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    if arguments.n < 1:
        raise UserError(f"-n is {arguments.n}. Ask for at least 1 answer.")
    if arguments.reward is None and (arguments.gold or arguments.choices):
        raise UserError(
            "--gold and --choices are used by a reward, but no reward is given. Give one with --reward, such as --reward "
            "choice (gpg-vl rewards list shows them), or leave both out."
        )


def _score(
    name: str, example: Example, answers: Sequence[Completion]
) -> list[Verdict | RewardFailure]:
    """Score each answer with the reward, as in training. Raises UserError if the reward cannot be loaded."""
    from gpg_vl.rewards.try_reward import score_answers

    return score_answers(name, example, answers)


# ---- what is printed


def _print(answers: Sequence[Completion]) -> None:
    for number, answer in enumerate(answers, 1):
        say(f"{number}  {answer.response}{_ending(answer)}")


def _print_scored(answers: Sequence[Completion], scored: Sequence[Verdict | RewardFailure]) -> None:
    from rich.table import Table

    table = Table("", "score", "answer", "read as", "why", box=None)
    for number, (answer, one) in enumerate(zip(answers, scored, strict=True), 1):
        failed = isinstance(one, RewardFailure)
        cells = (
            ("failed", "", str(one))
            if isinstance(one, RewardFailure)
            else (f"{one.score:g}", one.parsed or "(nothing)", one.note)
        )
        score, read, why = cells
        text = plain(answer.response + _ending(answer))
        table.add_row(
            str(number), plain(score, "red" if failed else ""), text, plain(read), plain(why)
        )
    make_console().print(table)

    values = [one.score for one in scored if isinstance(one, Verdict)]
    if values:
        mean = sum(values) / len(values)
        spread = "they differ: a signal" if max(values) > min(values) else "all equal: no signal"
        say(f"mean {mean:.3f} over {len(values)} answers; {spread} for training")


def _ending(answer: Completion) -> str:
    return "" if answer.finish_reason == "stop" else " [cut off by --max-new-tokens]"
