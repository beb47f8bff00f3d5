"""ViRFT few-shot classification: flowers, pets, aircraft and cars, four pictures per class, with the class as the answer.

    python data_recipes/virft_classification.py flowers --out data/flowers                  # laolao77/ViRFT_CLS_flower_4_shot
    python data_recipes/virft_classification.py cars --source ~/ViRFT_CLS_car196_4shot --out data/cars
    python data_recipes/virft_classification.py pets --source ~/pets/by_class --shots 4 --seed 1 --out data/my_pets

The published sets are Parquet with `image`, `problem` and `solution` (`<answer>2010 Chevrolet Malibu Hybrid
Sedan</answer>`). A folder with one subfolder of pictures per class, as torchvision reads it, makes a few-shot set of one's
own: --shots pictures of each class, drawn from the seed.

The prompt is the published one. `meta` lists all classes, which a strict reward needs: those of the set, found in a first
pass, or those of --classes FILE, one name per line, such as Visual-RFT's val_data/oxford_flowers.txt.
"""

import hashlib
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpg_vl.data.cells import CellError
from gpg_vl.data.json_rows import Cells
from gpg_vl.data.recipe import (
    BrokenRowError,
    Option,
    RawRow,
    Recipe,
    Request,
    Source,
    main,
    untagged,
)
from gpg_vl.data.recipe.origin import checksum, open_source
from gpg_vl.errors import UserError
from gpg_vl.types import Example

PROMPT = (
    "This is an image containing {thing}. Please identify the {question} based on the image.\nOutput the thinking process "
    "in <think> </think> and final answer in <answer> </answer> tags.The output answer format should be as follows:\n"
    "<think> ... </think> <answer>species name</answer>\nPlease strictly follow the format."
)
QUESTIONS = {
    "flowers": ("a plant", "species of the plant"),
    "pets": ("a pet", "species of the pet"),
    "aircraft": ("an aircraft", "model of the aircraft"),
    "cars": ("a car", "model of the car"),
}
COLUMNS = ("image", "problem", "solution")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def converter(name: str) -> Any:
    """The convert function of one set."""
    thing, question = QUESTIONS[name]
    published = PROMPT.replace("{thing}", thing).replace("{question}", question)

    def convert(row: RawRow, *, prompt: str, shots: int, classes: str) -> Example:
        answer, known = untagged(row.text("solution")), row.cell("classes")
        if plain(answer) not in map(plain, known):
            raise BrokenRowError(f"The class {answer!r:.80} is not in {classes}.")
        return Example(
            id=row.id,
            images=row.images("image"),
            prompt=row.text("problem") if prompt == "row" else published,
            answer=answer,
            task=name,
            meta={"classes": known},
        )

    return convert


def plain(name: str) -> str:
    """A class name without case, blanks, `_` and `-`, in which lists and data differ."""
    return "".join(name.casefold().replace("_", " ").replace("-", " ").split())


def opened(request: Request) -> list[Source]:
    """The source with the list of all classes in every row."""
    assert request.source is not None
    path, splits = Path(request.source), request.splits or ("train",)
    if path.is_dir() and (folders := class_folders(path)):
        sources = [_folder_source(path, folders, splits[0], request)]
    else:
        sources = open_source(
            request.source,
            splits,
            columns=COLUMNS,
            patterns={},
            revision=request.revision,
            images=request.images,
        )
    return [_with_classes(source, request) for source in sources]


def class_folders(path: Path) -> list[Path]:
    """The subfolders that hold pictures themselves."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [
        folder
        for folder in folders
        if any(file.suffix.lower() in _PICTURES for file in folder.iterdir())
    ]


def _folder_source(path: Path, folders: list[Path], split: str, request: Request) -> Source:
    """`shots` pictures of each class folder, in the order of their names."""
    shots = request.options["shots"]
    chosen: list[Path] = []
    for folder in folders:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _PICTURES)
        if shots > len(files):
            raise UserError(
                f"{folder} holds {len(files)} pictures and {shots} were asked for. Lower --shots."
            )
        chosen += (
            sorted(random.Random(f"{request.seed} {folder.name}").sample(files, shots))
            if shots
            else files
        )
    names = [file.relative_to(path).as_posix() for file in chosen]

    def read(start: int) -> Iterator[tuple[str, Cells | CellError]]:
        for name, file in zip(names[start:], chosen[start:], strict=True):
            yield name, {"image": name, "solution": file.parent.name}

    facts = {
        "files": {
            f"{len(names)} pictures by class": hashlib.sha256("\n".join(names).encode()).hexdigest()
        }
    }
    return Source(split=split, read=read, total=len(names), root=path, facts=facts)


def _with_classes(source: Source, request: Request) -> Source:
    given = request.options["classes"]
    facts = {**source.facts, **({"classes": checksum(Path(given))} if given else {})}
    classes = listed_classes(Path(given)) if given else _found_classes(source)

    def read(start: int) -> Iterator[tuple[str, Cells | CellError]]:
        for place, cells in source.read(start):
            yield place, cells if isinstance(cells, CellError) else {**cells, "classes": classes}

    return replace(source, read=read, facts=facts)


def listed_classes(file: Path) -> list[str]:
    """One class per line. Raises UserError if two lines are the same class."""
    classes = [
        line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    if len(set(map(plain, classes))) < max(len(classes), 2):
        raise UserError(
            f"{file} is no list of classes. At least two different names, one per line, are needed."
        )
    return classes


def _found_classes(source: Source) -> list[str]:
    """The classes that the solutions name, in the order of the alphabet; what cannot be read is reported later."""
    found = set()
    for _, cells in source.read(0):
        if not isinstance(cells, CellError) and isinstance(cells.get("solution"), str):
            try:
                found.add(untagged(cells["solution"]))
            except BrokenRowError:
                continue
    return sorted(found)


def settings(**_: Any) -> dict[str, Any]:
    return {"rewards": {"weights": {"classification": 1.0, "format": 1.0}}}


def recipe(name: str, title: str, hub: str, rows: int) -> Recipe:
    return Recipe(
        name=f"virft_{name}",
        title=f"ViRFT few-shot classification: {title}",
        help=__doc__ or "",
        licence="apache-2.0 on the hub's card, CC-BY-NC-4.0 in Visual-RFT's README: take the stricter one",
        hub=hub,
        columns=COLUMNS,
        documented={"train": rows},
        convert=converter(name),
        open=opened,
        options={
            "prompt": Option(
                default="published",
                choices=("published", "row"),
                help="the published text, or `problem`",
            ),
            "shots": Option(
                default=4, help="pictures per class out of a folder of class folders; 0 means all"
            ),
            "classes": Option(default="", help="a file with all class names, one per line"),
        },
        settings=settings,
    )


RECIPES = {
    "flowers": recipe("flowers", "Flowers102", "laolao77/ViRFT_CLS_flower_4_shot", 408),
    "pets": recipe("pets", "Pets37", "laolao77/ViRFT_CLS_pets37_4shot", 148),
    "aircraft": recipe("aircraft", "FGVC-Aircraft", "laolao77/ViRFT_CLS_fgvc_aircraft_4_shot", 400),
    "cars": recipe("cars", "Cars196", "laolao77/ViRFT_CLS_car196_4shot", 784),
}

if __name__ == "__main__":
    sys.exit(main(RECIPES))
