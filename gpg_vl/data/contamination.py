"""Contamination: finds training rows that are also in the evaluation, which would then measure memorisation."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

from gpg_vl.data.images import read_image
from gpg_vl.data.prompts import IMAGE_MARK, texts_of
from gpg_vl.types import Example


class EvaluationRows:
    """The images and questions of an evaluation, as digests.

    Example: `EvaluationRows([(doc.example, doc.root) for doc in docs], root=Path("data"))`
    """

    def __init__(
        self, examples: Iterable[tuple[Example, Path | None]], *, root: Path | None
    ) -> None:
        """examples: the evaluation's examples, each with the folder of its image paths. root: the folder of training
        images. Raises ImageError."""
        self._root = root
        self._pictures: set[bytes] = set()
        self._rows: set[tuple[bytes, ...]] = set()
        for example, folder in examples:
            pictures = tuple(_digests(example, folder))
            self._pictures.update(pictures)
            self._rows.add((*pictures, _question(example)))

    def find(self, example: Example) -> str | None:
        """The note on a training row whose images can be read; None if it shares nothing with the evaluation."""
        pictures = tuple(_digests(example, self._root))
        if (*pictures, _question(example)) in self._rows:
            return "it is a row of the evaluation too, with its images and its question. Remove such rows from one of the two"
        if not self._pictures.isdisjoint(pictures):
            return "it has an image that the evaluation has too. Remove such rows, if the images are to be new to the model"
        return None


def _digests(example: Example, root: Path | None) -> Iterator[bytes]:
    for image in example.images:
        yield blake2b(read_image(image, root=root), digest_size=16).digest()


def _question(example: Example) -> bytes:
    """The texts of all turns, without marks, case and blanks."""
    text = " ".join(texts_of(example.prompt))
    text = " ".join(text.replace(IMAGE_MARK, " ").casefold().split())
    return blake2b(text.encode(), digest_size=16).digest()
