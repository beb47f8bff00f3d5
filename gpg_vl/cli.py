"""The command line: `gpg-vl train | eval | report | serve | data | rewards | config | doctor | quickstart`.

A user's mistake becomes one message and exit code 2, a run that had to stop exit code 1, Ctrl-C
130, a reader that left (`| head`) 141. Anything else is a bug of ours and keeps its traceback.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gpg_vl.parent_process  # noqa: F401  it looks at what is there when the program begins
from gpg_vl.console import escaped_output, guard, make_console, say
from gpg_vl.errors import RunError, UserError
from gpg_vl.pipes import until_the_reader_leaves
from gpg_vl.report.command import add_command as add_report_command
from gpg_vl.rewards.commands import add_commands as add_rewards_commands
from gpg_vl.rollout.vllm.command import add_command as add_serve_command

if TYPE_CHECKING:
    from accelerate import Accelerator

    from gpg_vl.config import Config

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

TRAIN_HELP = """\
Train a vision-language model with Group Policy Gradient.

  gpg-vl train configs/quickstart.yaml --dry-run          check data and rewards, print the plan, stop
  gpg-vl train configs/quickstart.yaml                    train
  gpg-vl train configs/quickstart.yaml --resume           go on from the newest complete checkpoint
  gpg-vl train my.yaml train.learning_rate=2e-6 rollout.group_size=16
  torchrun --nproc-per-node 2 -m gpg_vl train my.yaml     several processes

`gpg-vl config` lists every key with its default and meaning."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    return until_the_reader_leaves(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    # spinning threads make a shared machine several times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    guard()

    # argparse would take an option in front, as in `eval --list`, for one of ours
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["eval"]:
        return _eval(words[1:])

    with escaped_output():
        arguments = _parse(words)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        say(f"gpg-vl: {error}", error=True)
        return 2
    except RunError as error:
        say(f"gpg-vl: {error}", error=True)
        return 1
    except KeyboardInterrupt:
        say(
            "gpg-vl: stopped. What was checkpointed is complete; go on with --resume.",
            error=True,
        )
        return 130


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Exits with code 2 for words that no command takes."""
    parser = _parser()
    arguments, behind = parser.parse_known_args(words)
    if not behind:
        return arguments

    has_option = any(word.startswith("-") for word in behind)
    if has_option or not hasattr(arguments, "overrides"):
        parser.error(f"unrecognized arguments: {' '.join(behind)}")

    # argparse does not take overrides up again behind an option
    arguments.overrides += behind
    return arguments


# ---- what can be typed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpg-vl",
        description="Teach vision-language models to reason, by reinforcement learning with "
        "verifiable rewards and Group Policy Gradient.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_eval(commands)
    add_report_command(commands)
    add_serve_command(commands)
    _add_data(commands)
    add_rewards_commands(commands)
    _add_config(commands)
    _add_doctor(commands)
    _add_quickstart(commands)
    return parser


def _add_train(commands: "_Commands") -> None:
    train = commands.add_parser(
        "train",
        help="train a model from a config",
        description=TRAIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", type=Path, help="a YAML file, such as configs/quickstart.yaml")
    train.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings that differ from the file",
    )
    train.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan, load no weights"
    )
    train.add_argument(
        "--device-gb",
        type=_gigabytes,
        metavar="GB",
        help="say which settings fit a GPU of this memory (default: the one that is there)",
    )
    train.add_argument(
        "--devices",
        type=_count,
        metavar="N",
        help="... and N of them, with a process each (default: the processes of this run)",
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in output.folder")
    train.set_defaults(run=_train)


def _count(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is no number of devices; 1 or more is wanted")
    return number


def _gigabytes(word: str) -> float:
    size = float(word)
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{word} is no size; a number above 0 is wanted, such as 80"
        )
    return size


def _add_eval(commands: "_Commands") -> None:
    evaluate = commands.add_parser(
        "eval",
        help="evaluate a model or a file of predictions",
        add_help=False,
        description="The same as python -m gpg_vl.eval.",
    )
    evaluate.add_argument("rest", nargs=argparse.REMAINDER)


def _add_data(commands: "_Commands") -> None:
    data = commands.add_parser("data", help="check a data set")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="read every row, image and prompt of a config's data, without any model weights",
    )
    check.add_argument("config", type=Path)
    check.add_argument("overrides", nargs="*", metavar="section.key=value")
    check.add_argument("--json", type=Path, help="also write the report to this file")
    check.set_defaults(run=_data_check)


def _add_config(commands: "_Commands") -> None:
    config = commands.add_parser(
        "config", help="list every config key, or print a config with its defaults filled in"
    )
    config.add_argument("config", type=Path, nargs="?")
    config.add_argument("overrides", nargs="*", metavar="section.key=value")
    config.set_defaults(run=_config)


def _add_doctor(commands: "_Commands") -> None:
    doctor = commands.add_parser(
        "doctor", help="say what is installed, what is missing for what, and test this machine"
    )
    doctor.set_defaults(run=_doctor)


def _add_quickstart(commands: "_Commands") -> None:
    quickstart = commands.add_parser(
        "quickstart",
        help="the whole way on a tiny model, offline: evaluate, train, evaluate",
        description="Writes a tiny Qwen2-VL base model and drawn scenes, evaluates the base, "
        "trains it with configs/quickstart.yaml, evaluates it again and prints both. Needs no "
        "network and no GPU.",
    )
    quickstart.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/quickstart"),
        help="where everything is written (default %(default)s)",
    )
    quickstart.add_argument(
        "--seed",
        type=int,
        default=0,
        help="training data, data order and sampling (default %(default)s)",
    )
    quickstart.add_argument(
        "--train-rows", type=int, default=4000, help="scenes to train on (default %(default)s)"
    )
    quickstart.add_argument(
        "--test-rows", type=int, default=1200, help="held-out scenes (default %(default)s)"
    )
    quickstart.add_argument(
        "--config", type=Path, default=Path("configs/quickstart.yaml"), help="default %(default)s"
    )
    # when `make quickstart` began to install
    quickstart.add_argument("--since", type=float, help=argparse.SUPPRESS)
    quickstart.add_argument(
        "--prepare-only", action="store_true", help="write base model and data sets, then stop"
    )
    quickstart.set_defaults(run=_quickstart)


# ---- what the commands do; heavy modules are imported late, because --help must be quick


def _train(arguments: argparse.Namespace) -> int:
    from gpg_vl.config import load_config

    # a mistake in the config is said before torch is imported
    config = load_config(arguments.config, arguments.overrides)
    from gpg_vl.training.launcher import make_accelerator
    from gpg_vl.training.watchdog import keep_watch

    accelerator = make_accelerator(config)
    with keep_watch(accelerator, minutes=config.train.max_wait_minutes):
        return _train_together(arguments, config, accelerator)


def _train_together(
    arguments: argparse.Namespace, config: "Config", accelerator: "Accelerator"
) -> int:
    from functools import partial

    from gpg_vl.rewards.gold_readings import render_golds
    from gpg_vl.training.agreement import refuse_other_settings
    from gpg_vl.training.evaluation import make_evaluation
    from gpg_vl.training.fit import render_fits
    from gpg_vl.training.launcher import memory_of_device
    from gpg_vl.training.plan import render_plan
    from gpg_vl.training.prepare import prepare
    from gpg_vl.training.ranks import once_per_node, wait_for_all
    from gpg_vl.training.run import launch

    refuse_other_settings(accelerator, config)
    console, is_main = make_console(), accelerator.is_main_process
    once = partial(once_per_node, accelerator)
    device_bytes = (
        memory_of_device() if arguments.device_gb is None else arguments.device_gb * 2**30
    )
    prepared = prepare(
        config,
        processes=accelerator.num_processes,
        console=console if is_main else None,
        once_per_node=once,
        device_bytes=device_bytes,
        devices=arguments.devices,
    )
    evaluation = make_evaluation(config, prepared.processing, once)
    if is_main:
        prepared.report.render(console)
        render_golds(config.rewards.weights, prepared.report.golds, console)
        render_plan(prepared.plan, config, console)
        if device_bytes:
            devices = arguments.devices or accelerator.num_processes
            render_fits(prepared.plan.fits, device_bytes, console, devices)

    finished = arguments.dry_run or launch(
        prepared, accelerator, resume=arguments.resume, console=console, evaluation=evaluation
    )
    if is_main and not arguments.dry_run:
        console.print(f"run folder: {config.output.folder}", soft_wrap=True)

    # a process that leaves early would break off the last word of another
    wait_for_all(accelerator)
    accelerator.end_training()
    return 0 if finished else 130


def _eval(words: Sequence[str]) -> int:
    from gpg_vl.eval.__main__ import main as eval_main

    return eval_main(words, prog="gpg-vl eval")


def _data_check(arguments: argparse.Namespace) -> int:
    from gpg_vl.config import load_config

    # a mistake in the config is said before torch is imported
    config = load_config(arguments.config, arguments.overrides)
    from gpg_vl.rewards.gold_readings import read_gold_of, render_golds
    from gpg_vl.training.prepare import check_data, make_encoder

    console = make_console()
    read_gold = read_gold_of(config.rewards.weights)
    report = check_data(config, make_encoder(config), console, read_gold=read_gold)
    report.render(console)
    render_golds(config.rewards.weights, report.golds, console)

    if arguments.json:
        try:
            arguments.json.write_text(report.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"The report cannot be written to {arguments.json}: {error}. Give another path."
            ) from None
    return 0 if report.ok else 2


def _config(arguments: argparse.Namespace) -> int:
    from gpg_vl.config import describe_keys, dump_config, load_config

    if arguments.config is not None:
        say(dump_config(load_config(arguments.config, arguments.overrides)), end="")
    else:
        say(describe_keys())
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from gpg_vl.doctor.examine import examine
    from gpg_vl.doctor.findings import render

    return render(examine(), make_console())


def _quickstart(arguments: argparse.Namespace) -> int:
    from gpg_vl.quickstart.run import prepare, quickstart

    rows = {"train_rows": arguments.train_rows, "test_rows": arguments.test_rows}
    if arguments.prepare_only:
        say(f"wrote {prepare(arguments.folder, arguments.seed, **rows)}")
        return 0
    if not arguments.config.is_file():
        raise UserError(
            f"There is no config file {arguments.config}. Start in the project's folder, or name it with --config."
        )

    return quickstart(
        arguments.folder,
        arguments.seed,
        arguments.config,
        make_console(),
        started=arguments.since or time.time(),
        **rows,
    )


if __name__ == "__main__":
    sys.exit(main())
