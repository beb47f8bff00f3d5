"""What a model of the quickstart can see: linear classifiers on its frozen features, and what it says itself.

    python -m benchmarks.sight runs/quickstart/base

A cell of a scene is one visual token. From the features that the vision tower and the merger make of it, a logistic
regression (scikit-learn) tells what is in the cell, its colour and the colour of its box; it is fitted on the cells of one
set of scenes and asked about those of another. Beside it stands what the most frequent answer gets, and how much of its own
description of the same scenes is right, word for word, a description being a thing with its row, column, box, colour and name.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpg_vl.console import say
from gpg_vl.model import Model
from gpg_vl.models.layout import pack
from gpg_vl.models.requests import Features
from gpg_vl.quickstart import scenes
from gpg_vl.quickstart.lessons import DESCRIBE, SEED, describe
from gpg_vl.quickstart.run import TEST_SEED
from gpg_vl.rollout.engine import RolloutRequest
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.types import Example

BATCH = 50
TASKS = ("Relation", "Depth", "Distance")
"""Those whose scenes have boxes; each scene has two to five things in 16 to 20 cells."""


class Cell(NamedTuple):
    """What there is to be known of a cell of a scene."""

    thing: str
    colour: str
    box: str


class Finding(NamedTuple):
    """How often a linear classifier is right about held-out cells, and how often the most frequent answer is."""

    what: str
    right: float
    frequent: float
    cells: int


def cells(scene: scenes.Scene) -> list[Cell]:
    """By row and then column, as visual tokens are."""
    things = {(thing.row, thing.column): thing for thing in scene.things}
    places = [(row, column) for row in range(scene.rows) for column in range(scene.columns)]
    return [
        Cell(thing.shape, thing.colour, thing.box or "none")
        if (thing := things.get(place))
        else Cell("empty", "none", "none")
        for place in places
    ]


def probe(model: Model, number: int) -> list[Finding]:
    """Fit on the cells of `number` scenes that training may show, ask about those of as many held-out ones."""
    fitted, asked = (_scenes(seed, number) for seed in (SEED, TEST_SEED))
    x, y = _features(model, fitted, SEED), [cell for scene in fitted for cell in cells(scene)]
    x_asked = _features(model, asked, TEST_SEED)
    y_asked = [cell for scene in asked for cell in cells(scene)]

    # colours and boxes are asked of cells with something in them: emptiness would be most of the answers
    full = [i for i, cell in enumerate(y) if cell.thing != "empty"]
    full_asked = [i for i, cell in enumerate(y_asked) if cell.thing != "empty"]
    everywhere, everywhere_asked = range(len(y)), range(len(y_asked))
    return [
        _fit(what, x, y, chosen, x_asked, y_asked, chosen_asked)
        for what, chosen, chosen_asked in (
            ("thing", everywhere, everywhere_asked),
            ("colour", full, full_asked),
            ("box", full, full_asked),
        )
    ]


def _scenes(seed: int, number: int) -> list[scenes.Scene]:
    numbers = (i for i in range(4 * number) if scenes.TASKS[i % 4] in TASKS)
    return [scenes.scene(seed, i) for i, _ in zip(numbers, range(number), strict=False)]


def _fit(
    what: str,
    x: np.ndarray,
    y: Sequence[Cell],
    chosen: Iterable[int],
    x_asked: np.ndarray,
    y_asked: Sequence[Cell],
    chosen_asked: Iterable[int],
) -> Finding:
    known, wanted = list(chosen), list(chosen_asked)
    labels = [getattr(y[i], what) for i in known]
    right = [getattr(y_asked[i], what) for i in wanted]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    classifier.fit(x[known], labels)
    said = classifier.predict(x_asked[wanted])

    frequent = Counter(labels).most_common(1)[0][0]
    return Finding(
        what=what,
        right=float(np.mean([a == b for a, b in zip(said, right, strict=True)])),
        frequent=right.count(frequent) / len(right),
        cells=len(wanted),
    )


@torch.no_grad()
def _features(model: Model, drawn: Sequence[scenes.Scene], seed: int) -> np.ndarray:
    """[cells, H], scene by scene."""
    encoder = model.encoder()
    rows = []
    for batch in _batches(drawn):
        prompts = [encoder.encode(_example(scene, seed)) for scene in batch]
        packed = pack(prompts, [[] for _ in prompts])
        rows += [features.float().numpy() for features in model.policy(Features(packed=packed))]
    return np.concatenate(rows)


def described(model: Model, number: int) -> float:
    """The share of things in held-out scenes that the model describes right, greedily, in every word."""
    drawn = _scenes(TEST_SEED, number)
    encoder, engine = model.encoder(), model.engine()
    sampling = Sampling(group_size=1, max_new_tokens=160, temperature=0.0, seed=0)
    named, things = 0, 0
    for batch in _batches(drawn):
        requests = [
            RolloutRequest(prompt=encoder.encode(_example(scene, TEST_SEED)), draw=draw)
            for draw, scene in enumerate(batch)
        ]
        for scene, group in zip(batch, engine.generate(requests, sampling), strict=True):
            right = set(describe(scene).split("; "))
            named += len(right & set(group[0].text.strip().split("; ")))
            things += len(right)
    return named / things


def _batches(drawn: Sequence[scenes.Scene]) -> Iterator[Sequence[scenes.Scene]]:
    return (drawn[start : start + BATCH] for start in range(0, len(drawn), BATCH))


def _example(scene: scenes.Scene, seed: int) -> Example:
    picture = scenes.png(scenes.draw(scene, seed))
    return Example(id="", images=(picture,), prompt=DESCRIBE, answer="")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a checkpoint folder")
    parser.add_argument("--scenes", type=int, default=600, help="to fit on, and to ask about")
    arguments = parser.parse_args()

    model = Model.load(arguments.model, device="cpu")
    for found in probe(model, arguments.scenes):
        say(
            f"{found.what}: {100 * found.right:.1f} % of {found.cells} held-out cells right by a linear classifier on "
            f"frozen features; the most frequent answer gets {100 * found.frequent:.1f} %"
        )
    share = described(model, arguments.scenes)
    say(f"described: {100 * share:.1f} % of the things in {arguments.scenes} held-out scenes")


if __name__ == "__main__":
    main()
