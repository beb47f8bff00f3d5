"""Tables of published and measured numbers in Markdown, from `protocols/` and `results/` in this folder.

    python eval/tables.py                         # print every table
    python eval/tables.py --write docs/published.md   # between the markers  <!-- table:NAME -->  and  <!-- end:NAME -->
    python eval/tables.py --write docs/digits.md
    python eval/tables.py --write eval/README.md
    python eval/tables.py --check docs/published.md   # exit code 1 if it is not up to date
    python eval/tables.py --add runs/eval-cvbench/results.json --protocol cvbench --row "GPG, seed 0"

A protocol says how a published number was measured; a result is what this program measured under one, by `--add` from the
results.json of a run. Published rows and our own never share a table. Nothing here is imported by the package.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
TABLES: dict[str, tuple[str, ...]] = {
    "cvbench": ("cvbench",),
    "lisa": ("lisa_test", "lisa_val", "lisa_masks"),
    "few_shot": ("flowers102", "pets37", "fgvc", "cars196"),
    "geoqa": ("geoqa",),
    "digits": ("digits",),
    "math": ("aime24", "math500", "amc23", "minerva", "olympiadbench"),
}
MEANS = ("few_shot", "math")
"""Tables that the paper sums up by the plain mean of their columns."""
_DECODING = ("temperature", "top_p", "max_new_tokens")


class TableError(ValueError):
    """What a user got wrong: a missing file, a name that nobody knows, a page without markers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a published number was measured, and the number.

    Example: `Protocol(name="geoqa", task="geoqa", prompt="r1v", scorer="r1v", headline="micro", tolerance=3.6, ...)`
    """

    name: str
    task: str
    title: str
    model: str
    data: Mapping[str, Any]
    """hub, revision, split and rows."""
    prompt: str
    decoding: Mapping[str, Any]
    scorer: str
    headline: str
    tolerance: float
    """Half-width of a 95 % interval of the headline, in points: a difference below it means nothing."""
    source: str
    published: Sequence[Mapping[str, Any]]
    """One mapping per row: `row`, the aggregates in per cent, and perhaps a `note`. Empty where nobody has published any."""

    @property
    def columns(self) -> list[str]:
        """The aggregates that are published, headline first."""
        if not self.published:
            return [self.headline]
        return [name for name in self.published[0] if name not in ("row", "note")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What this program measured under a protocol."""

    protocol: str
    row: str
    model: str
    n: int
    numbers: Mapping[str, Mapping[str, Sequence[float]]]
    """Scorer, then aggregate: value and the ends of its 95 % interval, in per cent."""
    deviations: Sequence[str] = field(default_factory=tuple)
    """Where the run differs from the protocol."""


def read_protocols(folder: Path = HERE / "protocols") -> dict[str, Protocol]:
    """Every protocol by the name of its file. Raises TableError for a key that is missing or unknown."""
    found = {}
    for file in sorted(folder.glob("*.yaml")):
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        try:
            found[file.stem] = Protocol(name=file.stem, **tree)
        except TypeError as error:
            raise TableError(
                f"{file}: {error}. The keys of a protocol are those of Protocol in {__file__}."
            ) from None
    return found


def read_results(folder: Path = HERE / "results") -> list[Result]:
    """Every measured result, by the name of its file."""
    return [
        Result(**json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(folder.glob("*.json"))
    ]


# --- tables -----------------------------------------------------------------------------------------------------------


def table(name: str, protocols: Mapping[str, Protocol], results: Sequence[Result]) -> str:
    """The Markdown of a table: what is published, and below it what is measured."""
    members = [protocols[one] for one in TABLES[name]]
    published = [_published(name, members)] if members[0].published else []
    return "\n\n".join([*published, _measured(members, results)]) + "\n"


def _published(name: str, members: Sequence[Protocol]) -> str:
    single = len(members) == 1
    names = members[0].columns if single else [member.title for member in members]
    places = max(
        _places(value) for member in members for row in member.published for value in row.values()
    )
    rows = []
    for number, row in enumerate(members[0].published):
        values = (
            [row[column] for column in members[0].columns]
            if single
            else [member.published[number][member.headline] for member in members]
        )
        mean = [f"{sum(values) / len(values):.1f}"] if name in MEANS else []
        rows.append([row["row"], *mean, *(f"{value:.{places}f}" for value in values)])
    header = ["published", *(["mean"] if name in MEANS else []), *names]
    return "\n\n".join([_introduction(members), _markdown(header, rows), *_notes(members)])


def _introduction(members: Sequence[Protocol]) -> str:
    models = ", ".join(dict.fromkeys(member.model for member in members))
    rules = " and ".join(f"`{rule}`" for rule in dict.fromkeys(member.scorer for member in members))
    widths = ", ".join(f"{member.tolerance:g}" for member in members)
    order = "" if len(members) == 1 else ", in the order of the columns"
    return (
        f"Published, in %. Model: {models}. Scored by {rules}; a 95 % interval reaches about {widths} points to either "
        f"side{order}. Source: {members[0].source}."
    )


def _notes(members: Sequence[Protocol]) -> list[str]:
    """What is to be known of single rows, below the table: in a cell it would push the numbers off the page."""
    notes = [
        f"{row['row']}: {row['note']}."
        for member in members
        for row in member.published
        if row.get("note")
    ]
    return [f"On the row {' '.join(notes)}"] if notes else []


def _places(value: object) -> int:
    """Decimal places that a number is given with; YAML drops zeros at the end, so a column is as wide as its longest."""
    return len(repr(value).partition(".")[2]) if isinstance(value, float) else 0


def _measured(members: Sequence[Protocol], results: Sequence[Result]) -> str:
    names = {member.name for member in members}
    mine = [result for result in results if result.protocol in names]
    if not mine:
        return "Measured with this program: nothing yet."
    has_rule = any(member.scorer != "strict" for member in members)
    rows = []
    for result in mine:
        (protocol,) = (member for member in members if member.name == result.protocol)
        scorers = ("strict", protocol.scorer) if has_rule else ("strict",)
        cells = [_cell(result, scorer, protocol.headline) for scorer in scorers]
        rows.append(
            [
                result.row,
                protocol.title,
                str(result.n),
                *cells,
                "; ".join(result.deviations) or "none",
            ]
        )
    rules = ["strict", "published rule"] if has_rule else ["strict"]
    header = ["measured with this program", "benchmark", "n", *rules, "differs from the protocol"]
    return "Measured with this program, in % with 95 % intervals:\n\n" + _markdown(header, rows)


def _cell(result: Result, scorer: str, aggregate: str) -> str:
    numbers = result.numbers.get(scorer, {}).get(aggregate)
    return "-" if numbers is None else "{:.2f} [{:.2f}, {:.2f}]".format(*numbers)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


# --- pages -----------------------------------------------------------------------------------------------------------


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- table:{name} -->\n)(.*?)(<!-- end:{name} -->)", re.DOTALL)


def written(text: str, tables: Mapping[str, str]) -> str:
    """The text with every table between its markers. Raises TableError if there is no marker, or half of one."""
    known = re.findall(r"<!-- (table|end):(\w+) -->", text)
    if not known:
        raise TableError(
            f"There is no marker such as <!-- table:cvbench --> <!-- end:cvbench -->. Known: {', '.join(tables)}."
        )
    for kind, name in known:
        if name not in tables:
            raise TableError(
                f"The marker {kind}:{name} names no table. Known: {', '.join(tables)}."
            )
        if len(_block(name).findall(text)) != 1:
            raise TableError(
                f"The markers of the table {name} must stand once each, <!-- table:{name} --> first."
            )
        text = _block(name).sub(
            lambda found, name=name: f"{found[1]}{tables[name]}{found[3]}", text
        )
    return text


# --- results ----------------------------------------------------------------------------------------------------------


def make_result(tree: Mapping[str, Any], protocol: Protocol, row: str) -> Result:
    """A result of a run's results.json. Raises TableError if it is of another benchmark or lacks a scorer."""
    if protocol.task not in tree["results"]:
        raise TableError(
            f"The results are of {', '.join(tree['results'])}, the protocol is of {protocol.task}."
        )
    numbers, config = tree["results"][protocol.task], tree["config"]
    found: dict[str, dict[str, list[float]]] = {}
    for scorer in dict.fromkeys(("strict", protocol.scorer)):
        for aggregate in protocol.columns:
            value, ends = (numbers.get(f"acc_{aggregate}{part},{scorer}") for part in ("", "_ci95"))
            if value is None:
                raise TableError(
                    f"The results have no {aggregate} under {scorer}. Score the run again with --scorer strict,{protocol.scorer}."
                )
            found.setdefault(scorer, {})[aggregate] = [
                round(100 * one, 4) for one in (value, *ends)
            ]
    return Result(
        protocol=protocol.name,
        row=row,
        model=str(config.get("model") or config.get("predictions")),
        n=numbers["n"],
        numbers=found,
        deviations=_deviations(protocol, numbers, config),
    )


def _deviations(
    protocol: Protocol, numbers: Mapping[str, Any], config: Mapping[str, Any]
) -> list[str]:
    wanted = {
        "prompt": protocol.prompt,
        **{key: protocol.decoding[key] for key in _DECODING if key in protocol.decoding},
    }
    found = [
        f"{key} {config.get(key)} instead of {value}"
        for key, value in wanted.items()
        if config.get(key) != value
    ]
    if numbers["n"] != protocol.data["rows"]:
        found.append(f"{numbers['n']} of {protocol.data['rows']} rows")
    if numbers["errors"]:
        found.append(f"{numbers['errors']} rows with errors")
    return found


def add(file: Path, protocol: Protocol, row: str, folder: Path = HERE / "results") -> Path:
    """Keep a run's numbers as `results/PROTOCOL-ROW.json` and return that path."""
    result = make_result(json.loads(file.read_text(encoding="utf-8")), protocol, row)
    folder.mkdir(exist_ok=True)
    target = folder / f"{protocol.name}-{re.sub(r'[^a-z0-9]+', '-', row.lower()).strip('-')}.json"
    tree = {name: getattr(result, name) for name in Result.__dataclass_fields__}
    target.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--write", type=Path, metavar="PAGE", help="write the tables between their markers"
    )
    what.add_argument(
        "--check",
        type=Path,
        metavar="PAGE",
        help="exit code 1 if a table there is not up to date",
    )
    what.add_argument(
        "--add", type=Path, metavar="RESULTS", help="keep the numbers of a run's results.json"
    )
    parser.add_argument("--protocol", help="with --add: the protocol that the run followed")
    parser.add_argument("--row", help="with --add: what the row is called")
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments)
    except (TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    protocols = read_protocols()
    if arguments.add:
        if arguments.protocol not in protocols or not arguments.row:
            raise TableError(
                f"--add needs --row NAME and --protocol, one of {', '.join(protocols)}."
            )
        print(f"wrote {add(arguments.add, protocols[arguments.protocol], arguments.row)}")
        return 0
    results = read_results()
    tables = {name: table(name, protocols, results) for name in TABLES}
    if not (arguments.write or arguments.check):
        print("\n".join(f"## {name}\n\n{text}" for name, text in tables.items()))
        return 0
    file = arguments.write or arguments.check
    text = file.read_text(encoding="utf-8")
    new = written(text, tables)
    if arguments.check and new != text:
        print(
            f"{file} is not up to date. Run: python eval/tables.py --write {file}", file=sys.stderr
        )
        return 1
    if arguments.write:
        file.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
