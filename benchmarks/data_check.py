"""What the check of a data set costs: processor time per row, by part.

    python -m benchmarks.data_check my.yaml data.limit=2000

Times are those of the processor (user and system), so that other work on the machine counts less.
Each part is run by itself over the same rows; the last lines are the check as `gpg-vl data check`
makes it, and the digests, which training alone computes.
"""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gpg_vl.config import load_config
from gpg_vl.console import say
from gpg_vl.data.dataset_notes import DatasetNotes, Reader
from gpg_vl.data.images import examine_image
from gpg_vl.data.read import read_rows
from gpg_vl.data.unused_pictures import UnusedPictures
from gpg_vl.rewards.gold_readings import read_gold_of
from gpg_vl.training.data_check import check_data, load_data
from gpg_vl.training.prepare import make_encoder
from gpg_vl.training.row_digests import digest_rows
from gpg_vl.types import Example


def main(config_file: Path, overrides: list[str]) -> None:
    """Print one line for each part."""
    config = load_config(config_file, overrides)
    encoder, read_gold = make_encoder(config), read_gold_of(config.rewards.weights)
    tokenizer, data = encoder.processing.tokenizer, config.data
    examples = load_data(config)
    texts = [encoder.render(example) for example in examples]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]

    def look(example: Example) -> None:
        for image in example.images:
            examine_image(image, root=encoder.root, max_pixels=data.max_image_pixels)

    def read(unused: UnusedPictures | None = None) -> None:
        seen = None if unused is None else unused.add
        _each(id, read_rows(data.only, data.columns, limit=data.limit, on_example=seen))

    def note() -> None:
        notes = DatasetNotes(Reader(sees_images=True))
        for number, example in enumerate(examples):
            notes.add(number, example, example.place, tokens=1)

    parts: dict[str, Callable[[], object]] = {
        "rows of JSON or Parquet into examples": read,
        "the same, and pictures that no field takes": lambda: read(UnusedPictures(encoder.root)),
        "pictures: found, decoded to the last pixel, looked at": lambda: _each(look, examples),
        "prompt: template, marks, control tokens": lambda: _each(encoder.render, examples),
        "tokens of it": lambda: _each(lambda t: tokenizer(t, add_special_tokens=False), texts),
        "tokens back into text": lambda: _each(tokenizer.decode, ids),
        "notes on rows": note,
        "gold answers as the rewards read them": lambda: _each(read_gold, examples),
        "the whole check": lambda: check_data(config, encoder, None, read_gold=read_gold),
        "digests of rows and pictures (training)": lambda: digest_rows(examples, encoder.root),
    }
    for name, part in parts.items():
        started = time.process_time()
        part()
        say(f"| {name} | {1e6 * (time.process_time() - started) / len(examples):.0f} |")


def _each(function: Callable[[Any], object], items: Iterable[Any]) -> None:
    for item in items:
        function(item)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
