"""What was saved of an optimizer is compared with what it keeps, before a fused step is handed any of it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gpg_vl.training.adamw import NarrowAdamW
from gpg_vl.training.sharding.moments import check_state
from gpg_vl.training.sharding.sharded_checkpoint import load_parts, save_parts
from gpg_vl.training.tensor_file import DamagedFileError, load_tensors


def make(seed: int = 0, **options: Any) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    """A matrix and a bias with an optimizer that has made one step."""
    torch.manual_seed(seed)
    names = {"a.weight": nn.Parameter(torch.randn(64, 96)), "a.bias": nn.Parameter(torch.randn(64))}
    groups: Any = [{"params": [names["a.weight"]]}, {"params": [names["a.bias"]]}]
    if options:
        optimizer: Any = NarrowAdamW(groups, betas=(0.9, 0.99), **options)
    else:
        optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    for parameter in names.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return names, optimizer


def save(names: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {**optimizer.state_dict(), "names": list(names)}


@pytest.mark.parametrize("options", [{}, {"bytes_of_moments": 1}, {"bytes_of_moments": 4}])
def test_what_is_as_it_was_is_taken(options: dict[str, Any]) -> None:
    """Moments only: rates and decay are those of this run."""
    pytest.importorskip("torchao")
    names, optimizer = make(**options)
    other, fresh = make(seed=1, **options)
    saved = save(names, optimizer)
    saved["param_groups"][0]["betas"] = (0.0, 0.0)
    fresh.load_state_dict(check_state(saved, other, fresh))
    assert fresh.param_groups[0]["betas"] != (0.0, 0.0)
    for name, parameter in names.items():
        for kind, value in optimizer.state[parameter].items():
            assert torch.equal(fresh.state[other[name]][kind], value)


def test_an_optimizer_that_has_not_stepped_keeps_nothing() -> None:
    names, optimizer = make()
    untouched = torch.optim.AdamW(names.values())
    empty = {"state": {}, "param_groups": optimizer.state_dict()["param_groups"]}
    assert check_state(empty, names, optimizer)["state"] == {}
    assert not untouched.state


def change(
    number: int, kind: str, make_other: Callable[[torch.Tensor], Any]
) -> Callable[[Any], None]:
    def apply(saved: Any) -> None:
        saved["state"][number][kind] = make_other(saved["state"][number][kind])

    return apply


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "smaller": (
        change(0, "exp_avg", lambda t: t[:1]),
        r"exp_avg of a\.weight is .* of shape \[1, 96\]",
    ),
    "transposed": (change(0, "exp_avg_sq", lambda t: t.T), r"exp_avg_sq of a\.weight"),
    "flat": (change(0, "exp_avg", lambda t: t.flatten()), r"of shape \[6144\], not .*\[64, 96\]"),
    "half": (
        change(1, "exp_avg", lambda t: t.half()),
        r"is torch\.float16 of .*not torch\.float32",
    ),
    "double": (change(1, "exp_avg_sq", lambda t: t.double()), "torch.float64"),
    "whole numbers": (change(1, "exp_avg", lambda t: t.int()), "torch.int32"),
    "long step": (change(0, "step", lambda t: t.repeat(3)), r"step of a\.weight"),
    "a number": (change(0, "step", lambda t: 3), "something else than tensors"),
    "another name": (lambda s: s["state"][0].update(max_exp_avg_sq=torch.zeros(1)), "has exp_avg"),
    "a moment less": (
        lambda s: s["state"][1].pop("exp_avg"),
        r"of a\.bias the optimizer's state has",
    ),
    "a weight less": (lambda s: s["state"].pop(1), "of some weights, not of all"),
    "a weight more": (lambda s: s["state"].update({7: {}}), "of some weights, not of all"),
    "other names": (lambda s: s.update(names=["b.weight", "a.bias"]), "of other weights"),
    "other order": (lambda s: s.update(names=["a.bias", "a.weight"]), "of other weights"),
    "other groups": (lambda s: s["param_groups"].pop(), "of other weights"),
    "no groups": (lambda s: s.pop("param_groups"), "no state of an optimizer"),
    "groups of nothing": (lambda s: s.update(param_groups=[1, 2]), "of other weights"),
    "no state": (lambda s: s.update(state=[1]), "no state of an optimizer"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_anything_else_is_refused_before_it_is_taken(name: str, tmp_path: Path) -> None:
    """Through a file, as `optimizer.pt` comes."""
    names, optimizer = make()
    alter, told = CHANGES[name]
    saved = save(names, optimizer)
    alter(saved)
    torch.save(saved, tmp_path / "optimizer.pt")
    with pytest.raises(DamagedFileError, match=told):
        check_state(load_tensors(tmp_path / "optimizer.pt"), names, optimizer)


def test_codes_are_no_moments_of_another_optimizer() -> None:
    pytest.importorskip("torchao")
    names, optimizer = make(bytes_of_moments=1)
    saved = save(names, optimizer)
    plain_names, plain = make()
    with pytest.raises(
        DamagedFileError, match=r"of a\.weight the optimizer's state has exp_avg, exp_avg_scale"
    ):
        check_state(saved, plain_names, plain)


@pytest.mark.parametrize("saved", [None, [], 3, "text", {}])
def test_a_file_of_something_else_is_refused(saved: Any) -> None:
    names, optimizer = make()
    with pytest.raises(DamagedFileError):
        check_state(saved, names, optimizer)


class Code:
    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 no archive",
        b"\x80\x02" + bytes(range(256)),
        b"(lp0\n.",
        pickle.dumps(Code()),
    ],
)
def test_what_is_no_file_of_tensors_is_one_error(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"x\.pt cannot be read"):
        load_tensors(tmp_path / "x.pt")
    assert capsys.readouterr().out == ""


# ---- spread over processes


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process is enough here
@pytest.mark.parametrize(
    ("key", "make_other", "told"),
    [
        ("weight/a.weight", lambda t: t.T.contiguous(), r"the saved a\.weight is"),
        ("weight/a.weight", lambda t: t.half(), r"the saved a\.weight is torch\.float16"),
        (
            "moment/exp_avg/a.weight",
            lambda t: t[:8].contiguous(),
            r"exp_avg of a\.weight is .*\[8, 96\]",
        ),
        ("moment/exp_avg_sq/a.bias", lambda t: t.double(), r"torch\.float64"),
        ("number/step/a.bias", lambda t: t.repeat(2), r"step of a\.bias"),
        ("moment/exp_avg/a.bias", None, r"of a\.bias the optimizer's state has exp_avg_sq, step"),
    ],
)
def test_parts_are_compared_too(
    tmp_path: Path, key: str, make_other: Callable[[torch.Tensor], Any] | None, told: str
) -> None:
    names, optimizer = make()
    save_parts(names, optimizer, tmp_path / "whole")
    [file] = (tmp_path / "whole").glob("*.safetensors")
    tensors = load_file(file)
    tensor = tensors.pop(key)
    if make_other is not None:
        tensors[key] = make_other(tensor)
    (tmp_path / "parts").mkdir()
    save_file(tensors, tmp_path / "parts" / file.name)

    other, fresh = make(seed=1)
    before = {name: parameter.clone() for name, parameter in other.items()}
    load_parts(other, fresh, tmp_path / "whole")
    assert torch.equal(other["a.weight"], names["a.weight"])
    with torch.no_grad():
        for name, value in before.items():
            other[name].copy_(value)
    with pytest.raises(DamagedFileError, match=told):
        load_parts(other, fresh, tmp_path / "parts")
    assert all(torch.equal(other[name], value) for name, value in before.items())
