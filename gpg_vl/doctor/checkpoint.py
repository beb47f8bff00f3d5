"""`gpg-vl doctor --model PATH`: whether a checkpoint can be trained, and what is missing if not. It reads no weights."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from gpg_vl.doctor.findings import Finding, Report
from gpg_vl.errors import UserError
from gpg_vl.models.families import Family

Value = TypeVar("Value")


def examine_checkpoint(path: str) -> Report:
    """Check config, layers, files of weights, tokenizer and images of a checkpoint, in this order, up to the first problem.

    path: a folder written by save_pretrained, or a hub name.
    """
    findings: list[Finding] = []
    try:
        for finding in _check(path):
            findings.append(finding)
    except _Failed as failed:
        findings.append(failed.finding)
    return Report(findings=tuple(findings))


class _Failed(Exception):
    """A check has failed; those after it need what it checked."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.name)
        self.finding = finding


def _check(path: str) -> Iterator[Finding]:
    from gpg_vl.models.load import load_processing

    family, weights = _try("model", lambda: _read_model(path))
    yield Finding(
        name="model",
        status="ok",
        detail=f"{family.model_type}, {'images and text' if family.has_vision else 'text only'}, "
        f"{_count(weights, 'M', 'B')} weights",
    )

    yield _try("weights", lambda: _find_weights(path))

    processing = _try("tokenizer", lambda: load_processing(path))
    template = "with a chat template" if processing.chat_template else "without a chat template"
    context = processing.tokens.context
    yield Finding(
        name="tokenizer",
        status="ok",
        detail=f"{template}, {context or 'any number of'} tokens of context",
    )

    yield from _optional(processing.family)


def _try(name: str, look: Callable[[], Value]) -> Value:
    """What `look` returns. Its UserError, which says what to do, becomes the finding."""
    try:
        return look()
    except UserError as error:
        raise _Failed(
            Finding(name=name, status="problem", detail="not supported", remedy=str(error))
        ) from None


def _read_model(path: str) -> tuple[Family, int]:
    """The family and the number of weights. Raises UserError for layers that cannot be computed exactly."""
    import torch

    from gpg_vl.models.families import family_of
    from gpg_vl.models.load import read_config
    from gpg_vl.models.unsupported import refuse_unsupported
    from gpg_vl.training.meta_model import build_model

    config = read_config(path)
    registered = family_of(config.model_type, path)
    family = registered.fit(registered, config)
    with torch.device("meta"):
        model = build_model(path, family, config)
    refuse_unsupported(model)
    return family, sum(parameter.numel() for parameter in model.parameters())


def _find_weights(path: str) -> Finding:
    """The files of weights. Raises UserError if there are none that are read."""
    folder = Path(path)
    if not folder.is_dir():
        return Finding(name="weights", status="ok", detail="on the hub, not looked at")

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = [file.name for pattern in ("*.bin", "*.pt*") for file in folder.glob(pattern)]
        found = f"only {', '.join(sorted(others))}" if others else "none"
        raise UserError(
            f"The weights of {path}: {found}. Only safetensors files are read, because other formats may run code. Save the "
            f"model again with save_pretrained(safe_serialization=True)."
        )
    size = sum(file.stat().st_size for file in files)
    return Finding(
        name="weights", status="ok", detail=f"{len(files)} file(s), {_count(size, 'MB', 'GB')}"
    )


def _optional(family: Family) -> Iterator[Finding]:
    """What some runs need."""
    if family.boxes is not None:
        yield Finding(
            name="boxes",
            status="ok",
            detail=f"written as {family.boxes.coordinates}",
            required=False,
        )
    else:
        yield Finding(
            name="boxes",
            status="missing",
            detail=f"how {family.model_type} writes boxes is not known",
            needed_for="grounding",
            remedy="in an evaluation, say it with --coordinates",
            required=False,
        )

    if family.sampled_by_vllm:
        yield Finding(name="vLLM", status="ok", detail="samples it", required=False)
    else:
        yield Finding(
            name="vLLM",
            status="missing",
            detail=f"does not sample {family.model_type} yet",
            needed_for="rollout.engine vllm, vllm_server",
            remedy="use rollout.engine: native",
            required=False,
        )


def _count(number: int, millions: str, billions: str) -> str:
    return f"{number / 1e9:.3g} {billions}" if number >= 1e9 else f"{number / 1e6:.3g} {millions}"
