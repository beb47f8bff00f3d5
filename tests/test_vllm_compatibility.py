"""Which vLLM is taken, and what is said where it is not: nothing here needs vLLM."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from runs import gpg_vl, write_config

from gpg_vl.config import load_config
from gpg_vl.doctor import packages
from gpg_vl.errors import UserError
from gpg_vl.models.families import families
from gpg_vl.rollout import engines, refuse_engine
from gpg_vl.rollout.engine import EngineOptions
from gpg_vl.rollout.vllm import compatibility
from gpg_vl.training.prepare import engine_options, prepare

ROOT = Path(__file__).parents[1]
FAMILY = families.get("qwen2_vl")
PLAIN = EngineOptions()


@pytest.fixture(autouse=True)
def on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None, *classes: str) -> None:
    monkeypatch.setattr(compatibility, "installed_version", lambda: version)
    monkeypatch.setattr(compatibility, "known_classes", lambda: classes)


def refusal(options: EngineOptions = PLAIN, processes: int = 1, engine: str = "vllm") -> str:
    with pytest.raises(UserError) as error:
        refuse_engine(engine, FAMILY, options, processes)
    return str(error.value)


# ---- versions


def test_the_window_is_that_of_the_extra_and_of_the_build_that_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extra,) = map(Requirement, project["optional-dependencies"]["vllm"])
    assert extra.name in compatibility.DISTRIBUTIONS
    assert extra.specifier == compatibility.TESTED

    pins = (ROOT / "constraints-vllm.txt").read_text().splitlines()
    (tested,) = [Requirement(line) for line in pins if line.startswith("vllm")]
    assert tested.name in compatibility.DISTRIBUTIONS
    (pin,) = tested.specifier
    assert compatibility.TESTED.contains(pin.version)


@pytest.mark.parametrize(
    "found,status", [("0.32.1", "ok"), ("0.31.9", "problem"), ("0.33.0", "problem"), (None, "")]
)
@pytest.mark.parametrize("distribution", compatibility.DISTRIBUTIONS)
def test_the_doctor_looks_at_the_window(
    monkeypatch: pytest.MonkeyPatch, distribution: str, found: str | None, status: str
) -> None:
    monkeypatch.setattr(
        packages, "find_version", lambda name: found if name == distribution else None
    )
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: object())
    ranges = {("vllm", "vllm"): Requirement(f"vllm{compatibility.TESTED}")}
    finding = packages.check_optional("vllm", ranges)
    assert finding.status == (status or "missing")
    wanted = f"pip install 'vllm{ranges['vllm', 'vllm'].specifier}'"
    assert wanted in (finding.remedy or wanted)
    if status == "problem":
        assert finding.detail == f"{found}; {compatibility.TESTED} is needed"
    assert "rollout.engine" in finding.needed_for


# ---- what is refused


def test_without_vllm_the_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None)
    said = refusal()
    assert said.startswith("rollout.engine names vllm, which is not installed.")
    assert "pip install 'gpg_vl[vllm]'" in said
    assert "make test-vllm" in said
    assert "set rollout.engine to native" in said


@pytest.mark.parametrize("found", ["0.31.2", "0.33.0", "1.0"])
def test_another_vllm_than_those_that_were_tested_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    installed(monkeypatch, found, FAMILY.model_class)
    said = refusal()
    assert said.startswith(
        f"vLLM {found} is installed; gpg_vl was tested with {compatibility.TESTED}."
    )
    assert f"pip install 'vllm{compatibility.TESTED}'" in said


def test_a_family_that_vllm_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "0.32.0", "SomeOtherModel")
    said = refusal()
    assert said.startswith(f"vLLM 0.32.0 does not know {FAMILY.model_class}")
    assert "Set rollout.engine to native" in said


@pytest.mark.parametrize("found", ["0.32.0", "0.32.4", "0.32.1.dev3+cpu"])
def test_a_tested_vllm_that_knows_the_family_is_taken(
    monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    installed(monkeypatch, found, FAMILY.model_class)
    refuse_engine("vllm", FAMILY, PLAIN, 1)


def test_a_distribution_that_cannot_be_imported_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a vLLM that was half removed."""
    monkeypatch.setattr(compatibility, "version", lambda name: "0.32.0")
    monkeypatch.setattr(compatibility.importlib.util, "find_spec", lambda name: None)
    assert compatibility.installed_version() is None


@pytest.mark.parametrize(
    "size,processes,of_node,fits",
    [
        (2, 4, None, True),
        (2, 3, None, False),
        (2, 1, None, False),
        (4, 8, "2", False),
        (2, 8, "2", True),
    ],
)
def test_processes_that_share_an_engine_are_of_one_node(
    monkeypatch: pytest.MonkeyPatch, size: int, processes: int, of_node: str | None, fits: bool
) -> None:
    installed(monkeypatch, "0.32.0", FAMILY.model_class)
    if of_node is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", of_node)
    options = EngineOptions(vllm_tensor_parallel=size)
    if fits:
        refuse_engine("vllm", FAMILY, options, processes)
        return
    said = refusal(options, processes)
    assert said.startswith(
        f"rollout.vllm_tensor_parallel is {size}, but {of_node or processes} process(es)"
    )
    assert f"Set it to a divisor of {of_node or processes}" in said
    assert f"torchrun --nproc-per-node {size}" in said


def test_heads_that_cannot_be_dealt_out_are_refused(tiny_checkpoint: Path) -> None:
    """The checkpoint has two."""
    compatibility.refuse_heads(2, str(tiny_checkpoint), None)
    with pytest.raises(UserError) as error:
        compatibility.refuse_heads(3, str(tiny_checkpoint), None)
    said = str(error.value)
    assert said.startswith("rollout.vllm_tensor_parallel is 3, but the text tower of")
    assert "has 2 attention heads" in said
    assert "Set it to a divisor of 2." in said


def test_the_native_engine_takes_no_features() -> None:
    said = refusal(EngineOptions(images="features"), engine="native")
    assert said.startswith("rollout.images is features, but rollout.engine is native")
    assert "Set rollout.images to pixels, or rollout.engine to vllm" in said


@pytest.mark.parametrize("engine", ["vllm", "vllm_server", "mine.py:engine"])
def test_only_the_policy_itself_keeps_what_training_goes_on_from(
    tiny_checkpoint: Path, tmp_path: Path, engine: str
) -> None:
    file = write_config(
        tmp_path, tiny_checkpoint, train={"reuse_prefill": True}, rollout={"engine": engine}
    )
    with pytest.raises(UserError) as error:
        load_config(file)
    said = str(error.value)
    assert f"rollout.engine is {engine}, which samples with a copy of the weights" in said
    assert "Set train.reuse_prefill to false, or rollout.engine to native" in said


# ---- and when


def test_a_config_says_to_engines_what_it_has(tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = EngineOptions(
        prompts_per_batch=3,
        slots=5,
        images="features",
        vllm_memory=0.5,
        vllm_sleep=False,
        vllm_tensor_parallel=2,
    )
    section = {name: getattr(other, name) for name in EngineOptions.__dataclass_fields__}
    file = write_config(tmp_path, tiny_checkpoint, rollout=section)
    assert engine_options(load_config(file)) == other
    plain = load_config(write_config(tmp_path, tiny_checkpoint))
    assert engine_options(plain) == PLAIN, "the defaults of Python are those of the config"


@pytest.mark.parametrize(
    "engine,options,processes,said",
    [
        ("vllm", {}, 1, "not installed"),
        ("vllm", {"vllm_tensor_parallel": 2}, 1, r"vllm_tensor_parallel is 2"),
        ("native", {"images": "features"}, 1, "rollout.images is features"),
    ],
)
def test_it_is_said_before_any_data_is_read(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    options: dict[str, object],
    processes: int,
    said: str,
) -> None:
    installed(monkeypatch, None)
    file = write_config(tmp_path, tiny_checkpoint, rollout={"engine": engine, **options})
    (tmp_path / "train.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match=said):
        prepare(load_config(file), processes=processes, console=None)


def test_the_command_line_says_it_in_one_message(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint)
    result = gpg_vl("train", config, "rollout.images=features", "--dry-run")
    assert result.returncode == 2
    assert result.stderr.startswith("gpg-vl: rollout.images is features"), result.stderr
    assert "Traceback" not in result.stderr


def test_every_engine_that_checks_is_asked_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def engine(setup: object) -> None: ...

    engine.check = lambda *given: asked.append(given)  # type: ignore[attr-defined]
    monkeypatch.setattr(engines, "get", lambda name: engine)
    refuse_engine("of my own", FAMILY, PLAIN, 4)
    assert asked == [(FAMILY, PLAIN, 4)]
