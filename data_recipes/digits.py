"""Handwritten digits: 1,797 real ones that come with scikit-learn, to train and test on without any download.

    python data_recipes/digits.py --out data/digits                          # 1,438 to train on, 359 held out
    python data_recipes/digits.py --shots 4 --out data/digits_4shot          # 4 per digit to train on, the same 359 held out

Source: the test set of Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, UCI machine learning
repository), 8x8 pixels in 17 greys. A fifth of each digit is held out, drawn from the seed; few-shot sets are drawn from
the rest, and the held-out part does not depend on --shots. No picture occurs twice. Needs: pip install scikit-learn.
"""

import hashlib
import io
import random
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image

from gpg_vl.data.cells import CellError
from gpg_vl.data.json_rows import Cells
from gpg_vl.data.recipe import Option, RawRow, Recipe, Request, Source, main
from gpg_vl.errors import UserError
from gpg_vl.types import Example

THINK = (
    "This is an image containing a handwritten digit. Please identify the digit based on the image.\nOutput the thinking "
    "process in <think> </think> and final answer in <answer> </answer> tags.The output answer format should be as "
    "follows:\n<think> ... </think> <answer>digit</answer>\nPlease strictly follow the format."
)
PLAIN = "Which digit is this?"
CLASSES = [str(digit) for digit in range(10)]
HELD_OUT = 0.2


def convert(row: RawRow, *, prompt: str, shots: int, scale: int) -> Example:
    """One digit."""
    return Example(
        id=row.id,
        images=row.images("image"),
        prompt=THINK if prompt == "think" else PLAIN,
        answer=row.text("digit"),
        task="digits",
        meta={"classes": CLASSES, "index": row.cell("index")},
    )


def split_indices(digits: list[int], *, seed: int, shots: int) -> dict[str, list[int]]:
    """Places of the train and the test digits in the data. Each digit is divided for itself, so that shares are equal."""
    train, test = [], []
    for digit in range(10):
        places = [place for place, value in enumerate(digits) if value == digit]
        random.Random(f"{seed} held-out {digit}").shuffle(places)
        cut = round(len(places) * HELD_OUT)
        rest = places[cut:]
        if shots > len(rest):
            raise UserError(
                f"--shots {shots} is more than the {len(rest)} pictures of the digit {digit}. Lower it."
            )
        test += places[:cut]
        train += rest[:shots] if shots else rest
    return {"train": sorted(train), "test": sorted(test)}


def png(pixels: np.ndarray, scale: int) -> bytes:
    """White on black, each of the 8x8 pixels as a square of `scale` pixels."""
    grey = np.rint(pixels * (255 / 16)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.kron(grey, np.ones((scale, scale), dtype=np.uint8))).save(
        buffer, format="PNG"
    )
    return buffer.getvalue()


def opened(request: Request) -> list[Source]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "The digits come with scikit-learn, which is not installed. Run: pip install scikit-learn"
        ) from None
    data = load_digits()
    digits = [int(digit) for digit in data.target]
    shots, scale = request.options["shots"], request.options["scale"]
    if not 1 <= scale <= 128:
        raise UserError(f"--scale is {scale}. From 1 to 128 pixels per original pixel are allowed.")
    facts = {
        "scikit-learn": version("scikit-learn"),
        "sha256 of pixels and labels": hashlib.sha256(
            data.data.tobytes() + bytes(digits)
        ).hexdigest(),
    }

    def source(split: str, places: list[int]) -> Source:
        def read(start: int) -> Iterator[tuple[str, Cells | CellError]]:
            for place in places[start:]:
                picture = png(data.images[place], scale)
                yield (
                    f"load_digits()[{place}]",
                    {"image": picture, "digit": str(digits[place]), "index": place},
                )

        return Source(split=split, read=read, total=len(places), root=None, facts=facts)

    return [source(*item) for item in split_indices(digits, seed=request.seed, shots=shots).items()]


def settings(*, prompt: str, shots: int, scale: int) -> dict[str, Any]:
    weights = (
        {"classification": 1.0, "format": 1.0} if prompt == "think" else {"classification": 1.0}
    )
    return {"rewards": {"weights": weights}}


RECIPE = Recipe(
    name="digits",
    title="Handwritten digits",
    help=__doc__,
    licence="CC BY 4.0 (UCI machine learning repository); scikit-learn's copy is BSD-3-Clause",
    splits=("train", "test"),
    has_source=False,
    open=opened,
    convert=convert,
    options={
        "prompt": Option(
            default="think",
            choices=("think", "plain"),
            help="asks for reasoning and tags, or plainly",
        ),
        "shots": Option(
            default=0, help="pictures per digit in train; 0 means all that are not held out"
        ),
        "scale": Option(default=7, help="pixels per original pixel; 7 makes pictures of 56x56"),
    },
    settings=settings,
    notes=("`index` is the place in scikit-learn's load_digits().",),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
