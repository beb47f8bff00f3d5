"""Few-shot fine-grained classification of Visual-RFT: flowers, pets, aircraft and cars; and digits, which need no download.

The test lists of Visual-RFT are read as they are published, `oxford_flowers.txt` (a class per line) beside
`oxford_flowers.pth` (image paths with labels, of which the file names count); or a table with `image` and `solution`,
whose classes are those of `classes.txt` next to it or of its own rows; or what our recipes write.

GPG's numbers are those of `visual_rft`, which is no classification accuracy: a constant such as an empty answer scores
100 %. `official` is top-1, the answer being the name of a class and nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from gpg_vl.answers.classes import plain_name
from gpg_vl.answers.extract import extract_answer
from gpg_vl.errors import UserError
from gpg_vl.eval.loading import Entry, Place, Row, rows_of, tables
from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.classes import official_class
from gpg_vl.eval.scorers.strict import strict_class
from gpg_vl.eval.scorers.visual_rft import visual_rft_class
from gpg_vl.eval.task import Doc, Loader, Task, TaskPrompt

_TEMPLATE = (
    "This is an image containing {thing}. Please identify the {question} based on the image.\nOutput the thinking process "
    "in <think> </think> and final answer in <answer> </answer> tags.The output answer format should be as follows:\n"
    "<think> ... </think> <answer>species name</answer>\nPlease strictly follow the format."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    """What differs between the data sets."""

    name: str
    title: str
    lists: str
    """Name of Visual-RFT's lists, without the ending."""
    folder: str
    """Where the published data set keeps its images."""
    size: int
    classes: int
    thing: str
    question: str


SETS = {
    "flowers102": _Set(
        name="flowers102",
        title="Oxford Flowers 102",
        lists="oxford_flowers",
        folder="oxford_flowers/jpg",
        size=2463,
        classes=102,
        thing="a plant",
        question="species of the plant",
    ),
    "pets37": _Set(
        name="pets37",
        title="Oxford-IIIT Pets: 37 breeds of cats and dogs",
        lists="pets",
        folder="pets/images",
        size=3669,
        classes=37,
        thing="a pet",
        question="species of the pet",
    ),
    "fgvc": _Set(
        name="fgvc",
        title="FGVC-Aircraft: 100 variants",
        lists="fgvc_aircraft",
        folder="fgvc-aircraft-2013b/data/images",
        size=3333,
        classes=100,
        thing="an aircraft",
        question="model of the aircraft",
    ),
    "cars196": _Set(
        name="cars196",
        title="Stanford Cars: 196 makes, models and years",
        lists="stanford_cars",
        folder="cars_test",
        size=8041,
        classes=196,
        thing="a car",
        question="model of the car",
    ),
}


def _task(one: _Set) -> Task:
    asked = _TEMPLATE.replace("{thing}", one.thing).replace("{question}", one.question)
    return Task(
        name=one.name,
        description=f"{one.title}, as Visual-RFT tests few-shot classification",
        source=f"https://github.com/Liuziyu77/Visual-RFT, classification/val_data/{one.lists}.pth and .txt (CC-BY-NC-4.0)",
        sizes={"test": one.size},
        metric="accuracy; `visual_rft` counts substrings in either direction and is none",
        blind=f"{100 / one.classes:.2g} %: 1/{one.classes}",
        files=lambda path: _files(path, one),
        load=_loader(one),
        prompts={
            "visual_rft": TaskPrompt(template=asked, max_new_tokens=1024),
            "plain": TaskPrompt(
                template=f"What is the {one.question} in the image?", max_new_tokens=64
            ),
        },
        default_prompt="visual_rft",
        scorers={
            "strict": strict_class,
            "official": official_class,
            "visual_rft": visual_rft_class,
        },
        default_scorers=("strict", "official", "visual_rft"),
        gold_responses=_golds,
    )


flowers102, pets37, fgvc, cars196 = (partial(_task, one) for one in SETS.values())


def digits() -> Task:
    """The task, for `python -m gpg_vl.eval digits`: the part that `data_recipes/digits.py` holds out."""
    one = _Set(
        name="digits",
        title="Handwritten digits of scikit-learn, the held-out fifth",
        lists="digits",
        folder="",
        size=359,
        classes=10,
        thing="a handwritten digit",
        question="digit",
    )
    return replace(
        _task(one),
        description=one.title,
        source="scikit-learn's load_digits (UCI machine learning repository, CC BY 4.0), by data_recipes/digits.py",
        metric="accuracy",
        # Recipes write the prompt that was trained with into each row.
        prompts={
            "own": TaskPrompt(template="{prompt}", max_new_tokens=256),
            "plain": TaskPrompt(template="Which digit is this?", max_new_tokens=64),
        },
        default_prompt="own",
    )


def _golds(doc: Doc) -> tuple[Response, ...]:
    return Response(text=doc.gold), Response(
        text=f"<think>petals</think> <answer>{doc.gold}</answer>"
    )


# --- data -------------------------------------------------------------------------------------------------------------


def _files(path: Path, one: _Set) -> tuple[Path, ...]:
    if path.suffix == ".pth" and path.is_file():
        return (path, path.with_suffix(".txt"))
    if (path / f"{one.lists}.pth").is_file():
        return (path / f"{one.lists}.pth", path / f"{one.lists}.txt")
    return tables(path, name=one.name, split="test")


def _loader(one: _Set) -> Loader:
    def load(path: Path, *, images: bool = True, root: Path | None = None) -> list[Doc]:
        """The pictures in the order of the list, each with all classes as options. Raises UserError."""
        files = _files(path, one)
        listed = files[0].suffix == ".pth"
        rows = list(
            _read_list(files[0], files[1], one, root) if listed else _read_tables(files, root)
        )
        classes = _classes(files, [gold for _, _, gold in rows], [row for row, _, _ in rows])
        return [
            _doc(Entry(doc_id=number, row=row, place=place, images=images), gold, one, classes)
            for number, (row, place, gold) in enumerate(rows)
        ]

    return load


def _doc(entry: Entry, gold: str, one: _Set, classes: Sequence[str]) -> Doc:
    return entry.doc(
        prompt=entry.get("prompt") or entry.get("problem") or one.title,
        gold=gold,
        images=entry.pictures("images" if entry.get("images") else "image"),
        choices=classes,
        without=("image", "images", "classes"),
    )


def _read_tables(files: Sequence[Path], root: Path | None) -> Iterator[tuple[Row, Place, str]]:
    """Rows with the gold in `solution`, tags or not, or in `answer`."""
    for row, place in rows_of(files, required=(), root=root):
        column = "solution" if "solution" in row else "answer"
        solution = Entry(doc_id=place.number, row=row, place=place, images=False).text(column)
        yield row, place, extract_answer(solution).candidate or ""


def _classes(files: Sequence[Path], golds: Sequence[str], rows: Sequence[Row]) -> tuple[str, ...]:
    """All classes, in the order of the list where there is one. Raises UserError if a gold is not among them."""
    beside = files[-1] if files[-1].suffix == ".txt" else files[0].parent / "classes.txt"
    classes = (
        _lines(beside) if beside.is_file() else tuple(rows[0].get("classes") or sorted(set(golds)))
    )
    known = {plain_name(name) for name in classes}
    if len(known) < max(2, len(classes)):
        raise UserError(
            f"{beside} names {len(classes)} classes, of which some are the same. Each needs a name of its own."
        )
    if unknown_class := next((gold for gold in golds if plain_name(gold) not in known), None):
        raise UserError(
            f"{files[0]}: the class {unknown_class!r} is not among the {len(classes)} classes. List all of them in {beside}, one "
            "per line."
        )
    return classes


def _lines(file: Path) -> tuple[str, ...]:
    return tuple(
        line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()
    )


def _read_list(
    pth: Path, txt: Path, one: _Set, root: Path | None
) -> Iterator[tuple[Row, Place, str]]:
    """Visual-RFT's list: {path: {"label": number of a line of the names, ...}} per image."""
    if not txt.is_file():
        raise UserError(
            f"{pth} needs the class names next to it, in {txt}, one per line. Fetch that file, too."
        )
    classes = _lines(txt)
    folder = root or next(
        (at for at in (pth.parent / one.folder, pth.parent.parent / one.folder) if at.is_dir()),
        pth.parent,
    )
    for number, entry in enumerate(_entries(pth)):
        place = Place(pth, number, folder)
        for path, facts in entry.items():
            label = int(facts["label"]) if isinstance(facts, Mapping) and "label" in facts else -1
            if not 0 <= label < len(classes):
                raise place.wrong(
                    "label", label, f"a number from 0 to {len(classes) - 1}, a line of {txt.name}"
                )
            yield {"image": PurePath(str(path)).name, "label": label}, place, classes[label]


def _entries(pth: Path) -> list[dict[str, Any]]:
    """The list that torch saved. Nothing in it is run: tensors and plain values only."""
    import torch  # this layout alone needs it

    try:
        entries = torch.load(pth, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  torch raises whatever the bytes lead it to
        raise UserError(
            f"{pth} cannot be read as a list of images: {error}. Fetch it again."
        ) from None
    if not (
        isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries)
    ):
        raise UserError(f"{pth} holds no list of images. Give Visual-RFT's file.")
    return entries
