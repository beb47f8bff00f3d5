"""What a row was when the data was checked: to the last byte of its text and pictures."""

from dataclasses import replace
from pathlib import Path

import pytest

from gpg_vl.data.images import ImageError
from gpg_vl.errors import UserError
from gpg_vl.models.encode import Encoder
from gpg_vl.models.load import load_processing
from gpg_vl.prompting import PixelLimits, PromptStyle
from gpg_vl.quickstart import scenes
from gpg_vl.training.prompt_source import PromptSource
from gpg_vl.training.row_digests import digest_rows, refuse_changed_row
from gpg_vl.types import Example


def pictured(folder: Path) -> list[Example]:
    """Two rows, one with a picture in a file and one with a picture in itself."""
    first, second = scenes.rows(3, 2)
    (folder / "a.png").write_bytes(first["image"]["bytes"])
    return [
        Example(id="a", images=("a.png",), prompt="?", answer="1", place="rows.jsonl:1"),
        Example(id="b", images=(second["image"]["bytes"],), prompt="?", answer="2"),
    ]


def test_rows_that_are_as_they_were_are_accepted(tmp_path: Path) -> None:
    rows = pictured(tmp_path)
    digests = digest_rows(rows, tmp_path)
    for number, row in enumerate(rows):
        refuse_changed_row(digests, number, row, tmp_path)
        with pytest.raises(UserError):
            refuse_changed_row(digests, 1 - number, row, tmp_path)


@pytest.mark.parametrize(
    "changes", [{"answer": "2"}, {"prompt": "? "}, {"id": "c"}, {"meta": {"x": 1}}, {"task": "t"}]
)
def test_a_row_that_says_something_else_is_refused(
    changes: dict[str, object], tmp_path: Path
) -> None:
    rows = pictured(tmp_path)
    digests = digest_rows(rows, tmp_path)
    with pytest.raises(UserError, match=r"Row 0 of the data \(id '.', rows\.jsonl:1\) says some.*"):
        refuse_changed_row(digests, 0, replace(rows[0], **changes), tmp_path)  # type: ignore[arg-type]


def test_a_picture_that_was_changed_in_its_place_is_noticed_when_the_row_is_drawn(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """One bit of its file, which may well decode to the same size."""
    encoder = Encoder(
        processing=load_processing(str(tiny_checkpoint)),
        style=PromptStyle(),
        limits=PixelLimits(),
        root=tmp_path,
    )
    rows = pictured(tmp_path)
    source = PromptSource(
        examples=rows,
        encoder=encoder,
        seed=0,
        rows=digest_rows(rows, tmp_path),
    )
    assert {source.group_at(draw).example.id for draw in range(2)} == {"a", "b"}

    content = bytearray((tmp_path / "a.png").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(
        UserError, match=r"shows another picture than when it was checked.*--resume"
    ):
        [source.group_at(draw) for draw in range(2)]

    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match="does not exist"):
        [source.group_at(draw) for draw in range(2)]
