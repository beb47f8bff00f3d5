"""`gpg-vl train`: a config into a run, or with --dry-run into its plan."""

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
        help="settings that differ from the file",
    )

    # its plan alone
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

    train.add_argument(
        "--recheck",
        action="store_true",
        help="check every row and picture again, though the same data was checked before",
    )
    train.add_argument("--resume", action="store_true", help="resume the run in output.folder")
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


def _train(arguments: argparse.Namespace) -> int:
    from gpg_vl.config import load_config

    # a mistake in the config is said before torch is imported
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
