"""Everything a run depends on in addition to its checkpoint's files. It is saved with each checkpoint and compared on
resume.

What may change when a run is resumed is listed in `MAY_CHANGE` and in docs/training.md. Any other change is refused, and the
message names it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpg_vl.algorithms.algorithm import Algorithm
from gpg_vl.config import Config, parse_config
from gpg_vl.errors import UserError
from gpg_vl.models.load import read_config
from gpg_vl.training.manifest import digest_file
from gpg_vl.training.row_digests import RowDigests
from gpg_vl.training.training_sets import all_rewards

MAY_CHANGE = (
    "output.",
    "eval.",
    "train.steps",
    "train.epochs",
    "train.max_wait_minutes",
    "train.tokens_per_pass",
    "model.gradient_checkpointing",
    "data.workers",
    "rewards.workers",
    "rewards.time_limit",
    "rewards.on_error",
    "rollout.prompts_per_batch",
    "rollout.slots",
    "rollout.servers",
    "rollout.server_wait",
    "rollout.vllm_memory",
    "rollout.vllm_sleep",
    "rollout.max_logp_gap",
)
"""Keys that may change when a run is resumed; `train.steps` and `train.epochs` only if the learning rate does not depend on
them."""
_PROCESSING = (".json", ".jinja", ".txt", ".model")
"""Name endings of checkpoint files that determine how text and images become tensors."""
_WEIGHTS = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Two runs with the same identity, seed included, are the same run.

    Example: `Identity(settings=config.model_dump(mode="json"), rows=digests, steps=400, base={"config.json": "9f86..."},
    code={"my_rewards.py": "60303..."})`
    """

    settings: Mapping[str, Any]
    rows: RowDigests
    steps: int
    """Optimizer steps of the whole run, on which the learning rate schedule depends."""
    base: Mapping[str, str]
    """SHA-256 of the files in `model.path` that are read again on resume; for a hub checkpoint its commit."""
    code: Mapping[str, str]
    """SHA-256 of each code file that the config names."""
    rating: str | None = None
    """The digest of the pass rates by which rows are selected; None: all rows are drawn."""
    order: str | None = None
    """SHA-256 of the file `data.order`."""

    def to_json(self) -> dict[str, Any]:
        """Everything except the digests of single rows."""
        return {
            "settings": self.settings,
            "data": self.rows.whole,
            "steps": self.steps,
            "base": dict(self.base),
            "code": dict(self.code),
            "rating": self.rating,
            "order": self.order,
        }


def make_identity(
    config: Config,
    algorithm: Algorithm,
    rows: RowDigests,
    steps: int,
    *,
    rating: str | None = None,
) -> Identity:
    """Make the identity. Reads the files named in the config. Raises UserError if one cannot be read."""
    # a resume loads trained weights from the run's checkpoint, but frozen weights and a reference from the base model
    keeps_base = bool(
        config.model.lora_rank or config.model.freeze or "reference_logp" in algorithm.needs
    )
    return Identity(
        settings=config.model_dump(mode="json"),
        rows=rows,
        steps=steps,
        base=digest_base(config.model.path, config.model.revision, with_weights=keeps_base),
        code=_digest_code(config),
        rating=rating,
        order=_digest_order(config.data.order),
    )


def refuse_other_identity(before: Mapping[str, Any], now: Identity, checkpoint: Path) -> None:
    """Raises UserError that names what has changed if `now` is not the run of a checkpoint.

    before: `Identity.to_json` of the run that wrote it. Its rows are compared by `refuse_other_rows`.
    """
    refuse_other_settings(before["settings"], now.settings, f"{checkpoint}")

    schedule = now.settings["train"]["schedule"]
    if schedule != "constant" and before["steps"] != now.steps:
        raise UserError(
            f"The run in {checkpoint} has {before['steps']} steps, and would now have {now.steps} (train.steps, "
            f"train.epochs), but its learning rate depends on that number (train.schedule={schedule}): earlier steps "
            f"would have had another rate. Resume with train.steps={before['steps']}, or start a new run from "
            f"{checkpoint / 'model'}."
        )
    # earlier versions drew all rows and did not write this key
    if before.get("rating") != now.rating:
        raise UserError(
            f"The pass rates by which the run in {checkpoint} selected its rows (data.pass_rate) have changed: the rows "
            f"were rated again, with another number of answers or by another engine. Restore the old rates, or start a "
            f"new run in another output.folder."
        )
    if changed := _list_changed(before["base"], now.base):
        raise UserError(
            f"The model that the run in {checkpoint} was started with has changed: {', '.join(changed)} in "
            f"{now.settings['model']['path']}. Restore the old files, or start a new run."
        )

    # runs of earlier versions have no digest of it
    if before.get("order") != now.order:
        raise UserError(
            f"The order of the data that the run in {checkpoint} was started with has changed: "
            f"{now.settings['data']['order']} lists different rows now. Restore the old file, or start a new run."
        )

    rewards = _code_of(_rewards_of(now.settings))
    if changed := sorted(set(_list_changed(before["code"], now.code)) - set(rewards)):
        raise UserError(
            f"The code that the run in {checkpoint} was started with has changed: {', '.join(changed)}. Restore the old "
            f"file, or start a new run."
        )


def list_changed_rewards(before: Mapping[str, Any], now: Identity) -> list[str]:
    """Files of reward functions that have changed. This is allowed, so that a failed reward can be fixed, but it is
    reported."""
    rewards = _code_of(_rewards_of(now.settings))
    return sorted(set(_list_changed(before["code"], now.code)) & set(rewards))


def refuse_other_settings(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raises UserError if a setting has changed that must not.

    before: the config that the run was started with, as this or an earlier version has written it.
    """
    try:
        # read it with the current version: keys that an earlier version did not know get their defaults
        old = parse_config(before, where).model_dump(mode="json")
    except UserError as error:
        raise UserError(
            f"The run in {where} cannot be resumed: this version of gpg_vl cannot read its config. {error}\nContinue with "
            f"the version that started it, or start a new run in another output.folder."
        ) from None

    # without adapters the other LoRA keys have no effect
    has_adapters = now["model"]["lora_rank"] or old["model"]["lora_rank"]
    may_change = MAY_CHANGE if has_adapters else (*MAY_CHANGE, "model.lora_")
    changed = [
        f"{name} was {value!r}, is {new!r}"
        for name, value, new in list_changes(old, now)
        if not name.startswith(may_change)
    ]
    if changed:
        raise UserError(
            f"The run in {where} was started with other settings: {'; '.join(changed)}. "
            f"Resume with the same ones, or start a new run in another output.folder."
        )


def list_changes(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of every key of a config that has changed."""
    for section, keys in now.items():
        for key, value in keys.items():
            old = before.get(section, {}).get(key)
            if old != value:
                yield f"{section}.{key}", old, value


def _list_changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | now if before.get(name) != now.get(name))


def digest_base(path: str, revision: str | None, *, with_weights: bool) -> dict[str, str]:
    """SHA-256 of the checkpoint files that determine how text and images become tensors, and of its weights; for a hub checkpoint
    its commit. Raises UserError.
    """
    folder = Path(path)
    if not folder.is_dir():
        commit = getattr(read_config(path, revision), "_commit_hash", None)
        return {path: str(commit)}

    ends = (*_PROCESSING, _WEIGHTS) if with_weights else _PROCESSING
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    return _digest({file.name: file for file in files if file.name.endswith(ends)})


def _digest_code(config: Config) -> dict[str, str]:
    names = [config.algorithm.name, config.rollout.engine, config.train.sharding]
    files = [*_code_of(dict.fromkeys(names)), *_code_of(all_rewards(config))]
    return _digest({file: Path(file).expanduser() for file in files})


def digest_rewards(config: Config) -> dict[str, str]:
    """SHA-256 of the files of users' rewards. Raises UserError if one cannot be read."""
    return _digest({file: Path(file).expanduser() for file in _code_of(config.rewards.weights)})


def _digest_order(file: str | None) -> str | None:
    return None if file is None else _digest({file: Path(file)})[file]


def _rewards_of(settings: Mapping[str, Any]) -> dict[str, float]:
    """The rewards of all data sets of a run, from its settings."""
    own = [source["rewards"] for source in settings["data"]["sources"]]
    return {
        name: weight
        for weights in (settings["rewards"]["weights"], *own)
        for name, weight in weights.items()
    }


def _code_of(names: Mapping[str, Any]) -> list[str]:
    """The files in names such as `my_rewards.py:in_order`."""
    return sorted({name.rpartition(":")[0] for name in names if ".py:" in name})


def _digest(files: Mapping[str, Path]) -> dict[str, str]:
    try:
        return {name: digest_file(file).sha256 for name, file in files.items()}
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read: {error.strerror}. The run needs it. Check its permissions and its disk."
        ) from None
