"""The pass rates of a data set on disk: a file in the store next to the data. A rating appends to it and a run reads it.

    .gpg_vl/rates-9f86d0.jsonl
        line 1      what the rates depend on, answers per row, number of rows
        others      one row each, in no order, appended as they are rated (`gpg_vl.data.pass_rates.RowRate`)

The file name is a digest of the first line, so ratings of several models, prompts or numbers of answers can coexist.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpg_vl.config import Config
from gpg_vl.data.pass_rates import RowRate, parse_rate
from gpg_vl.data.read import folder_of
from gpg_vl.data.store import FOLDER, find_store
from gpg_vl.errors import UserError
from gpg_vl.eval.predictions import appending
from gpg_vl.training.identity import digest_base, digest_rewards
from gpg_vl.training.row_digests import WIDTH, RowDigests, describe_changes

FORMAT = 1
COMMAND = "gpg-vl data rate CONFIG"
_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "model": ("dtype",),
    "data": ("min_pixels", "max_pixels"),
    "prompt": ("template", "system", "chat", "prefill"),
    "rollout": ("temperature", "max_new_tokens"),
}
"""Keys of a config on which a pass rate depends. The engine is not among them: all engines sample the same distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """Everything that pass rates depend on.

    Example: `Basis(data="9f86...", model={"model.safetensors": "60303..."}, settings={"rollout.temperature": 1.0}, code={})`
    """

    data: str
    """The digest of all rows and their images."""
    model: Mapping[str, str]
    """SHA-256 of the checkpoint's files including weights; for a hub checkpoint its commit."""
    settings: Mapping[str, Any]
    code: Mapping[str, str]
    """SHA-256 of the files of users' rewards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """The rates of a data set, or of those of its rows that are rated.

    Example: `Rating(file=Path("data/.gpg_vl/rates-9f86d0.jsonl"), basis=basis, samples=8, rows=300, rates={7: rate})`
    """

    file: Path
    basis: Basis
    samples: int
    """Answers per row."""
    rows: int
    rates: Mapping[int, RowRate]
    """Rates by row number."""

    @property
    def is_complete(self) -> bool:
        return len(self.rates) == self.rows

    @property
    def digest(self) -> str:
        """A digest of everything that the selection of rows depends on."""
        counts = [(number, self.rates[number].right) for number in sorted(self.rates)]
        return hashlib.sha256(json.dumps([self.samples, counts]).encode()).hexdigest()


def make_basis(config: Config, rows: RowDigests) -> Basis:
    """Make the basis. Reads the weights of the model. Raises UserError if a file cannot be read."""
    tree = config.model_dump(mode="json")
    settings = {f"{s}.{key}": tree[s][key] for s, keys in _SETTINGS.items() for key in keys}

    # keep their order: the first reward decides which answers are right
    settings["rewards.weights"] = [list(named) for named in config.rewards.weights.items()]
    return Basis(
        data=rows.whole,
        model=digest_base(config.model.path, config.model.revision, with_weights=True),
        settings=settings,
        code=digest_rewards(config),
    )


def row_digest(rows: RowDigests, number: int) -> str:
    """The digest of a row's text and images, in hexadecimal digits."""
    at = slice(number * WIDTH, (number + 1) * WIDTH)
    return rows.texts[at].hex() + rows.pictures[at].hex()


def open_rating(config: Config, rows: RowDigests, samples: int) -> Rating:
    """The rating for a config, with the rows rated so far. Creates its file if needed.

    Raises UserError if there is no place for it, or if its file is damaged.
    """
    folder = folder_of(config.data.only)
    store = find_store(folder)
    if store is None:
        raise UserError(
            f"The pass rates of {config.data.only} cannot be saved: neither {folder and folder / FOLDER} nor the cache "
            f"folder can be written. Make one of them writable, or set XDG_CACHE_HOME to a folder with free space."
        )

    number = len(rows.texts) // WIDTH
    basis = make_basis(config, rows)
    first = {"format": FORMAT, "samples": samples, "rows": number, "basis": asdict(basis)}
    name = hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()
    file = store / f"rates-{name[:40]}.jsonl"
    found = read_rating(file)
    if found is not None:
        return found
    with appending(file) as append:
        append(first)
    return Rating(file=file, basis=basis, samples=samples, rows=number, rates={})


def find_rating(config: Config, rows: RowDigests) -> Rating:
    """The complete rating for exactly this data, model, prompt, rewards and sampling; of several the one with most answers.

    Raises UserError if there is none. If there is a rating for other settings, the message says what has changed.
    """
    store, basis = find_store(folder_of(config.data.only)), make_basis(config, rows)
    files = sorted(store.glob("rates-*.jsonl")) if store else []
    found = [rating for rating in map(read_rating, files) if rating is not None]
    same = [rating for rating in found if rating.basis == basis]
    complete = [rating for rating in same if rating.is_complete]
    if complete:
        return max(complete, key=lambda rating: rating.samples)

    bounds = f"data.pass_rate is {list(config.data.pass_rate or ())}, but "
    if same:
        most = max(same, key=lambda rating: len(rating.rates))
        raise UserError(
            f"{bounds}only {len(most.rates)} of the {most.rows} rows of {config.data.only} are rated ({most.file}). Rate the "
            f"others with the same command: {COMMAND} -k {most.samples}; or leave data.pass_rate out."
        )
    if not found:
        raise UserError(
            f"{bounds}the rows of {config.data.only} have no pass rates. Rate them with {COMMAND}, or leave data.pass_rate out."
        )

    # report the difference to the most similar rating
    changes = min((describe_difference(rating, basis, rows) for rating in found), key=len)
    raise UserError(
        f"{bounds}the pass rates of {config.data.only} were made with other settings: {'; '.join(changes)}. Rates are "
        f"valid only for the data, the model, the prompt, the rewards and the sampling that they were made with. Rate the "
        f"rows again with {COMMAND}, or leave data.pass_rate out."
    )


def describe_difference(rating: Rating, now: Basis, rows: RowDigests) -> list[str]:
    """What has changed since a rating, as messages; empty if nothing has."""
    before = rating.basis
    changes = []
    if before.data != now.data:
        changes += describe_changes(_rows_of(rating), rows) if rating.is_complete else []
        changes = changes or [f"the data had other rows ({rating.rows} of them)"]
    for name in sorted(before.model.keys() | now.model):
        if before.model.get(name) != now.model.get(name):
            changes.append(f"{name} of the model has changed")
    for key, value in now.settings.items():
        if (old := before.settings.get(key)) != value:
            changes.append(f"{key} was {old!r}, is {value!r}")
    for name in sorted(before.code.keys() | now.code):
        if before.code.get(name) != now.code.get(name):
            changes.append(f"the reward file {name} has changed")
    return changes


def read_rating(file: Path) -> Rating | None:
    """Read the rating in a file; None if there is none, or if it has another format. An incomplete last line is ignored.

    If a row has two lines, the later one counts. Raises UserError for an invalid line.
    """
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"The pass rates {file} cannot be read: {error.strerror}. Check the permissions of the file, or remove it and rate "
            f"the rows again."
        ) from None
    if not lines or not lines[0].endswith(b"\n"):
        return None

    first = _parse_first(lines[0])
    if first is None:
        return None
    rates: dict[int, RowRate] = {}
    for number, record in _whole_lines(lines):
        rate = parse_rate(record, rows=first["rows"], samples=first["samples"])
        if rate is None:
            raise UserError(
                f"{file}, line {number}: the line is not the record of a rated row, as {COMMAND} writes it. Remove this "
                f"line, and rate its row again with the same command."
            )
        rates[rate.number] = rate
    return Rating(
        file=file,
        basis=Basis(**first["basis"]),
        samples=first["samples"],
        rows=first["rows"],
        rates=rates,
    )


def _parse_first(line: bytes) -> dict[str, Any] | None:
    """The first line; None if it is of another format."""
    first = _parse(line)
    if not isinstance(first, dict) or first.get("format") != FORMAT:
        return None
    basis = first.get("basis")
    has_counts = all(type(first.get(name)) is int for name in ("samples", "rows"))
    if not has_counts or not isinstance(basis, dict):
        return None
    return first if basis.keys() == Basis.__dataclass_fields__.keys() else None


def _whole_lines(lines: list[bytes]) -> Iterator[tuple[int, object]]:
    """Number (from 1) and content of every line except the first one and an incomplete last one."""
    for number, line in enumerate(lines[1:], 2):
        if line.endswith(b"\n"):
            yield number, _parse(line)


def _parse(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _rows_of(rating: Rating) -> RowDigests:
    """The digests of the rows of a complete rating."""
    both = [bytes.fromhex(rating.rates[number].digest) for number in range(rating.rows)]
    return RowDigests(
        texts=b"".join(one[:WIDTH] for one in both), pictures=b"".join(one[WIDTH:] for one in both)
    )
