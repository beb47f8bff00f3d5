"""Writes samples/ of a run folder: groups of a step as JSON lines, with their images.

A samples folder is self-contained: images that the data names by path are copied in a reduced size.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from gpg_vl.data.images import ImageError, load_image
from gpg_vl.errors import RunError
from gpg_vl.report.pictures import encode, shrink
from gpg_vl.rewards.reasons import Reason, Reasons
from gpg_vl.training.evaluation_files import question
from gpg_vl.types import Completion, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSource:
    """Where the images of examples are read from.

    Example: `PictureSource(root=Path("data"), max_pixels=100_000_000)`
    """

    root: Path | None
    """The folder that paths are relative to and may not leave."""
    max_pixels: int
    """The pixel limit for decoding a file."""
    roots: Mapping[str, Path | None] = field(default_factory=dict)
    """The folder of each source, if there are several."""

    def small(self, image: str | bytes, source: str = "") -> Image.Image | None:
        """The image with no side above 256 pixels; None if the file is missing or has changed since the data was
        checked."""
        root = self.roots.get(source, self.root)
        try:
            return shrink(load_image(image, root=root, max_pixels=self.max_pixels))
        except ImageError:
            return None


def dump_groups(
    folder: Path,
    groups: Sequence[Group],
    pictures: PictureSource,
    reasons: Sequence[Reasons] | None = None,
) -> None:
    """Write samples.jsonl and the images into `folder`. Raises RunError if the disk is full.

    reasons: for each group, the reasons of rewards that cannot be explained later.
    """
    lines = []
    for number, group in enumerate(groups):
        row = {
            "id": group.example.id,
            "task": group.example.task,
            **({"source": group.example.source} if group.example.source else {}),
            "question": question(group.example),
            "prompt": group.prompt.text,
            "images": _dump_images(folder, number, group, pictures),
            "answer": group.example.answer,
            "choices": group.example.choices,
            "meta": dict(group.example.meta),
            **_describe_answers(group, reasons[number] if reasons else {}),
        }
        lines.append(json.dumps(row) + "\n")
    write(folder / "samples.jsonl", "".join(lines).encode())


def _dump_images(folder: Path, number: int, group: Group, pictures: PictureSource) -> list[str]:
    """The names of the images in `folder`; for a file that cannot be read any more, its path in the data."""
    names = []
    for place, image in enumerate(group.example.images):
        if isinstance(image, bytes):
            name = f"{number}-{place}{_guess_suffix(image)}"
            write(folder / name, image)
        elif (small := pictures.small(image, group.example.source)) is not None:
            name = f"{number}-{place}.webp"
            write(folder / name, encode(small))
        else:
            name = image
        names.append(name)
    return names


def _describe_answers(group: Group, reasons: Reasons) -> dict[str, Any]:
    """The completions and the greedy answer, if any. reasons: those of all of them, the greedy answer's last."""
    completions = []
    scored = zip(group.completions, group.rewards, strict=True)
    for place, (completion, reward) in enumerate(scored):
        parts = {name: values[place] for name, values in group.reward_parts.items()}
        verdicts = {name: of_answers[place] for name, of_answers in reasons.items()}
        completions.append(_describe_answer(completion, reward, parts, verdicts))
    if group.greedy is None:
        return {"completions": completions}

    greedy = group.greedy
    verdicts = {name: of_answers[-1] for name, of_answers in reasons.items()}
    last = _describe_answer(greedy.completion, greedy.reward, greedy.reward_parts, verdicts)
    return {"completions": completions, "greedy": last}


def _describe_answer(
    completion: Completion,
    reward: float,
    parts: Mapping[str, float],
    verdicts: Mapping[str, Reason],
) -> dict[str, Any]:
    return {
        "text": completion.text,
        "prefill": completion.prefill,
        "finish_reason": completion.finish_reason,
        "tokens": len(completion.token_ids),
        "reward": reward,
        **{f"reward/{name}": value for name, value in parts.items()},
        **{f"verdict/{name}": verdict for name, verdict in verdicts.items()},
    }


def write(file: Path, data: bytes) -> None:
    """Write a file of the run folder. Raises RunError if the disk is full."""
    try:
        file.write_bytes(data)
    except OSError as error:
        raise RunError(
            f"{file} cannot be written: {error}. Free disk space and resume from the last checkpoint with --resume."
        ) from error


def _guess_suffix(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return ".png"
    if data.startswith(b"\xff\xd8"):
        return ".jpg"
    return ".img"
