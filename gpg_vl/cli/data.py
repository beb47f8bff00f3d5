"""`gpg-vl data check` finds mistakes in the data of a config; `data rate` measures how hard its rows are for its model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gpg_vl.console import make_console
from gpg_vl.errors import UserError

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


RATE_HELP = """\
Let the model of a config answer every row of its data several times, score the answers, and store the pass rate of each
row next to the data. Run the same command again to resume a rating that was interrupted.

  gpg-vl data rate my.yaml                                8 answers per row, or rollout.group_size if that is more
  gpg-vl data rate my.yaml -k 32                          finer rates
  torchrun --nproc-per-node 2 -m gpg_vl data rate my.yaml several processes

Then data.pass_rate=[0.05,0.95] trains only on rows whose pass rate is within these bounds."""


def add_command(commands: "_Commands") -> None:
    data = commands.add_parser("data", help="check a data set, or rate how hard its rows are")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="read every row, image and prompt of a config's data, without any model weights",
    )
    check.add_argument("config", type=Path)
    check.add_argument("overrides", nargs="*", metavar="section.key=value")
    check.add_argument("--json", type=Path, help="also write the report to this file")
    check.set_defaults(run=_data_check)

    rate = actions.add_parser(
        "rate",
        help="sample answers of the model to every row, and count how often each is solved",
        description=RATE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rate.add_argument("config", type=Path)
    rate.add_argument("overrides", nargs="*", metavar="section.key=value")
    rate.add_argument(
        "-k",
        "--samples",
        type=_samples,
        metavar="N",
        help="answers per row (default: rollout.group_size, and at least 8)",
    )
    rate.set_defaults(run=_data_rate)


def _samples(word: str) -> int:
    number = int(word)
    if number < 2:
        raise argparse.ArgumentTypeError(
            f"{word} is too few answers per row; give 2 or more, such as 8"
        )
    return number


def _data_check(arguments: argparse.Namespace) -> int:
    from gpg_vl.config import load_config

    # report a mistake in the config before importing torch, which takes seconds
    config = load_config(arguments.config, arguments.overrides)
    from gpg_vl.rewards.gold_readings import read_gold_of, render_golds
    from gpg_vl.training.data_check import check_data
    from gpg_vl.training.prepare import make_encoder, refuse_unreachable_parts
    from gpg_vl.training.training_sets import training_sets

    console = make_console()
    refuse_unreachable_parts(config, console)
    reports = []
    for one in training_sets(config):
        weights = one.config.rewards.weights
        encoder, read_gold = make_encoder(one.config), read_gold_of(weights)
        report = check_data(one.config, encoder, console, read_gold=read_gold)
        report.render(console)
        render_golds(weights, report.golds, console)
        reports.append(report)

    if arguments.json:
        objects = [report.to_json() for report in reports]
        joined = ",\n".join(objects)
        text = joined if len(objects) == 1 else f"[\n{joined}\n]"
        try:
            arguments.json.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"The report cannot be written to {arguments.json}: {error}. Give another path."
            ) from None
    return 0 if all(report.ok for report in reports) else 2


def _data_rate(arguments: argparse.Namespace) -> int:
    from gpg_vl.config import load_config

    # report a mistake in the config before importing torch, which takes seconds
    config = load_config(arguments.config, arguments.overrides)
    from gpg_vl.training.launcher import make_accelerator
    from gpg_vl.training.rate import rate
    from gpg_vl.training.watchdog import keep_watch

    accelerator = make_accelerator(config)
    with keep_watch(accelerator, minutes=config.train.max_wait_minutes):
        return rate(config, accelerator, samples=arguments.samples)
