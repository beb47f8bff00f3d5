"""`gpg-vl train`: run the training of a config, or with --dry-run print its plan."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

TRAIN_HELP = """\
Train a vision-language model with Group Policy Gradient.

  gpg-vl train configs/quickstart.yaml --dry-run          check data and rewards, print the plan, stop
  gpg-vl train configs/quickstart.yaml                    train
  gpg-vl train configs/quickstart.yaml --resume           resume from the newest complete checkpoint
  gpg-vl train my.yaml train.learning_rate=2e-6 rollout.group_size=16
  torchrun --nproc-per-node 2 -m gpg_vl train my.yaml     several processes

`gpg-vl config` lists every key with its default and meaning."""


def add_command(commands: "_Commands") -> None:
    train = commands.add_parser(
        "train",
        help="train a model from a config",
        description=TRAIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    # what is trained
    train.add_argument("config", type=Path, help="a YAML file, such as configs/quickstart.yaml")
    train.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings that replace those of the file",
    )

    # plan only
    train.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan, load no weights"
    )
    train.add_argument(
        "--device-gb",
        type=_gigabytes,
        metavar="GB",
        help="show which settings fit a GPU with this memory (default: this machine's GPU)",
    )
    train.add_argument(
        "--devices",
        type=_count,
        metavar="N",
        help="number of such GPUs, one process each (default: the processes of this run)",
    )

    train.add_argument(
        "--recheck",
        action="store_true",
        help="check every row and image again, even if the same data was checked before",
    )
    train.add_argument("--resume", action="store_true", help="resume the run in output.folder")
    train.set_defaults(run=_train)


def _count(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a number of devices; give 1 or more")
    return number


def _gigabytes(word: str) -> float:
    size = float(word)
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{word} is not a memory size; give a number above 0, such as 80"
        )
    return size


def _train(arguments: argparse.Namespace) -> int:
    from gpg_vl.config import load_config

    # report a mistake in the config before importing torch, which takes seconds
    config = load_config(arguments.config, arguments.overrides)
    from gpg_vl.training.launcher import make_accelerator
    from gpg_vl.training.start import Ask, start
    from gpg_vl.training.watchdog import keep_watch

    ask = Ask(
        dry_run=arguments.dry_run,
        resume=arguments.resume,
        recheck=arguments.recheck,
        device_gb=arguments.device_gb,
        devices=arguments.devices,
    )
    accelerator = make_accelerator(config)
    with keep_watch(accelerator, minutes=config.train.max_wait_minutes):
        return start(config, accelerator, ask)
