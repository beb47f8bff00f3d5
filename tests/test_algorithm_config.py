"""The algorithm section: each algorithm's own keys, those of a factory of your own, and the algorithm that comes of it."""

import inspect
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from gpg_vl.algorithms import BUILTIN, algorithms, option_types
from gpg_vl.config import (
    Config,
    GpgConfig,
    GrpoConfig,
    SampledConfig,
    SftConfig,
    allowed_values,
    describe_keys,
    documented_keys,
    dump_config,
    load_config,
    make_algorithm,
    parse_config,
)
from gpg_vl.config.algorithm_sections import BUILTIN_SECTIONS
from gpg_vl.errors import UserError

ROOT = Path(__file__).parents[1]
LEAST: dict[str, Any] = {
    "model": {"path": "m"},
    "data": {"train": "d.jsonl"},
    "rewards": {"weights": {"choice": 1.0}},
    "output": {"folder": "o"},
}
OWN = '''
from typing import Annotated, Literal

from pydantic import Field

from gpg_vl.algorithms.algorithm import Algorithm


def own(
    *,
    gamma: Annotated[float, Field(ge=0, description="How much of it.")] = 0.5,
    kind: Literal["a", "b"] = "a",
    steps: tuple[int, ...] = (1, 2),
    updates: int = 1,
) -> Algorithm:
    """An algorithm of one's own."""
    return Algorithm(credit=(gamma, kind, steps), token_loss=None, updates=updates)


def needy(*, gamma: float) -> Algorithm:
    return Algorithm(credit=gamma, token_loss=None)


def silent() -> Algorithm:
    return Algorithm(credit=None, token_loss=None, samples=False)
'''


def config(section: object = None, **others: Mapping[str, Any]) -> Config:
    return parse_config({**LEAST, **others, "algorithm": section or {}}, "run.yaml")


def refused(section: object, *texts: str, **others: Mapping[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        config(section, **others)
    for text in texts:
        assert text in str(caught.value), str(caught.value)


@pytest.fixture
def own(tmp_path: Path) -> str:
    """The name of an algorithm in a file, up to the function."""
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path / 'own.py'}:"


# ---- what is built in


def test_without_a_name_it_is_gpg() -> None:
    assert config({"f_norm": "group_std", "beta_th": 0}).algorithm == GpgConfig(
        f_norm="group_std", beta_th=0
    )
    assert config().algorithm.name == "gpg"


def test_each_algorithm_has_its_own_defaults() -> None:
    gpg, grpo = config({"name": "gpg"}).algorithm, config({"name": "grpo"}).algorithm
    assert (gpg.beta_th, gpg.max_resample_attempts, gpg.aggregation) == (0.4, 20, "token")
    assert (grpo.beta_th, grpo.max_resample_attempts, grpo.aggregation) == (0.0, 20, "sequence")
    assert config({"name": "sft"}).algorithm.model_dump() == {
        "name": "sft",
        "response": "{answer}",
        "aggregation": "token",
    }


@pytest.mark.parametrize("name", BUILTIN)
def test_the_keys_are_the_arguments_of_the_factory_with_the_same_defaults(name: str) -> None:
    """The section is written without torch, and must not drift from what it configures."""
    section = BUILTIN_SECTIONS[name]
    keys = {
        key: field.default
        for key, field in section.model_fields.items()
        if key not in SampledConfig.model_fields
    }
    parameters = inspect.signature(algorithms.get(name), eval_str=True).parameters
    assert keys == {key: parameter.default for key, parameter in parameters.items()}
    for key, parameter in parameters.items():
        assert section.model_fields[key].annotation == parameter.annotation
    assert section.model_fields["name"].default == name


def test_the_sections_are_those_of_the_registry() -> None:
    assert list(BUILTIN_SECTIONS) == list(BUILTIN)


def test_choices_are_those_of_the_algorithms() -> None:
    assert allowed_values("algorithm.f_norm") == get_args(option_types.FNorm)
    assert allowed_values("algorithm.age") == get_args(option_types.Age)
    assert allowed_values("algorithm.aggregation") == get_args(option_types.Aggregation)
    assert allowed_values("algorithm.name") == (), "a function of your own is allowed too"
    assert allowed_values("algorithm.kl_beta") == ()


def test_reading_a_config_does_not_import_torch(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**LEAST, "algorithm": {"name": "grpo"}}))
    code = (
        "import sys; from gpg_vl.config import load_config; "
        f"load_config({str(tmp_path / 'run.yaml')!r}, ['train.reuse_prefill=true']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


# ---- what is refused


def test_a_key_of_another_algorithm_is_refused_with_its_owner() -> None:
    refused(
        {"kl_beta": 0},
        "algorithm.kl_beta is a key of grpo, dr_grpo, reinforce_pp, ppo; name is gpg, whose keys are beta_th",
        "age, aggregation. Remove it, or set algorithm.name to grpo.",
    )
    refused({"name": "grpo", "age": "off"}, "algorithm.age is a key of gpg; name is grpo")
    refused(
        {"name": "sft", "beta_th": 0.2, "max_resample_attempts": 2, "f_norm": "one"},
        "3 mistake(s)",
        "algorithm.beta_th is a key of every algorithm that samples; name is sft, whose keys are response, aggregation.",
    )


def test_an_unknown_key_names_the_nearest_of_the_algorithm() -> None:
    refused({"bata_th": 1}, "algorithm.bata_th: gpg has no such key. Did you mean 'beta_th'?")
    refused({"name": "grpo", "clip_lo": 1}, "grpo has no such key. Did you mean 'clip_low'?")


def test_an_unknown_name_lists_the_known_and_the_nearest_beside_other_mistakes() -> None:
    refused(
        {"name": "grop", "clip_low": 0.1},
        "2 mistake(s)",
        "algorithm: There is no algorithm called 'grop'. Did you mean 'grpo'? Known: cispo, dapo, dr_grpo, gpg,",
        "train.stepz",
        train={"stepz": 1},
    )
    refused({"name": "no/such.py:own"}, "names the file", "which does not exist")
    refused(
        {"name": 7},
        "name is 7, which is not a text. Give the name of an algorithm: gpg, grpo, dr_grpo, dapo",
    )
    refused(["gpg"], "algorithm: ['gpg'] was given.")


@pytest.mark.parametrize(
    "key,value",
    [("clip_low", 1), ("clip_high", -0.1), ("kl_beta", -1), ("updates", 0), ("beta_th", 2)],
)
def test_a_wrong_value_of_grpo_is_refused_with_its_meaning(key: str, value: float) -> None:
    texts = [t for k, _, t in documented_keys() if k == f"algorithm.{key}"]
    (said,) = [t.partition(": ")[2] for t in texts if t.startswith(("grpo: ", "every "))]
    refused({"name": "grpo", key: value}, f"algorithm.{key}: {value!r} was given.", said)


def test_a_response_without_the_answer_is_refused() -> None:
    refused({"name": "sft", "response": "yes"}, "'yes', which has no {answer}", "Write {answer}")


@pytest.mark.parametrize(
    "section,reason",
    [
        ({"name": "grpo", "updates": 2}, "grpo updates the weights 2 times"),
        ({"name": "sft"}, "sft does not sample"),
    ],
)
def test_activations_are_kept_for_one_update_of_what_is_sampled(
    section: dict[str, Any], reason: str
) -> None:
    refused(section, reason, "Set train.reuse_prefill to false.", train={"reuse_prefill": True})
    assert config(section).algorithm.name == section["name"]
    for fine in ({}, {"name": "grpo"}):
        assert config(fine, train={"reuse_prefill": True}).train.reuse_prefill


# ---- overrides, written and read back


def test_overrides_name_an_algorithm_and_its_keys(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(LEAST))
    overrides = ["algorithm.name=grpo", "algorithm.kl_beta=0", "algorithm.clip_high=0.28"]
    assert load_config(tmp_path / "run.yaml", overrides).algorithm == GrpoConfig(
        kl_beta=0.0, clip_high=0.28
    )
    with pytest.raises(UserError, match=r"algorithm\.kl_beta is a key of grpo"):
        load_config(tmp_path / "run.yaml", ["algorithm.kl_beta=0"])


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"age": "off"},
        {"name": "grpo", "updates": 4},
        {"name": "sft", "response": "<answer>{answer}</answer>"},
    ],
)
def test_what_is_dumped_is_the_resolved_section_and_is_read_back(section: dict[str, Any]) -> None:
    made = config(section)
    written = yaml.safe_load(dump_config(made))
    assert set(written["algorithm"]) == set(type(made.algorithm).model_fields)
    again = parse_config(written, "again")
    assert again == made
    assert type(again.algorithm) is type(made.algorithm)


# ---- one's own


def test_the_keys_of_a_function_of_ones_own_are_its_arguments(own: str, tmp_path: Path) -> None:
    section = config({"name": f"{own}own", "gamma": 2, "steps": [3], "beta_th": 0.5}).algorithm
    assert (section.gamma, section.kind, section.steps, section.updates) == (2.0, "a", (3,), 1)
    assert (section.beta_th, section.max_resample_attempts) == (0.5, 20)
    assert type(section).__doc__ == "An algorithm of one's own."
    assert make_algorithm(section).credit == (2.0, "a", (3,))

    (tmp_path / "run.yaml").write_text(yaml.safe_dump(LEAST))
    overrides = [f"algorithm.name={own}own", "algorithm.gamma=2", "algorithm.steps=[3]"]
    read = load_config(tmp_path / "run.yaml", [*overrides, "algorithm.beta_th=0.5"])
    assert read.algorithm == section
    assert parse_config(yaml.safe_load(dump_config(read)), "again") == read


def test_the_keys_of_a_function_of_ones_own_are_checked(own: str) -> None:
    name = f"{own}own"
    refused({"name": name, "gama": 1}, "has no such key. Did you mean 'gamma'? Known: beta_th")
    refused({"name": name, "gamma": -1}, "algorithm.gamma: -1 was given.", "How much of it.")
    refused({"name": name, "kind": "c"}, "algorithm.kind: 'c' was given.", "'a' or 'b'")
    refused({"name": name, "steps": "x"}, "An algorithm of one's own.", "Keys: name, beta_th")
    refused({"name": name, "aggregation": "token"}, "is a key of gpg, grpo, opo, sft")
    refused({"name": f"{own}needy"}, "algorithm.gamma: is required and missing.")
    refused({"name": f"{own}nothing"}, "where there is no such function")


def test_activations_are_kept_for_ones_own_algorithm_as_it_says(own: str) -> None:
    kept = {"train": {"reuse_prefill": True}}
    assert config({"name": f"{own}own"}, **kept).train.reuse_prefill
    refused({"name": f"{own}own", "updates": 2}, "updates the weights 2 times", **kept)
    refused({"name": f"{own}silent"}, "does not sample", **kept)


@pytest.mark.parametrize(
    "signature,message",
    [
        ("**keys", "takes **keys, which cannot be a config key. Use keyword arguments"),
        ("*values", "takes *values, which cannot be a config key"),
        ("gamma, /", "takes gamma, which cannot be a config key"),
        ("*, gamma=1", "has no type. Annotate it, as in gamma: float = 0.2."),
        ("*, copy: int = 1", "takes an argument copy, a name that the section itself uses"),
        ("*, beta_th: float = 1.0", "takes an argument beta_th, a name that the section"),
        ("*, name: str = 'x'", "takes an argument name, a name that the section"),
        ("*, _x: int = 1", "takes an argument _x, a name that the section"),
        (
            "*, x: Path2",
            "cannot be read: name 'Path2' is not defined. Import the names that they use.",
        ),
        ("*, x: Odd", "has an argument that cannot be written in YAML"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_function_whose_arguments_cannot_be_keys_is_refused(
    tmp_path: Path, signature: str, message: str
) -> None:
    file = tmp_path / "odd.py"
    file.write_text(
        "from __future__ import annotations\nclass Odd: ...\n"
        f"def odd({signature}):\n    return None\n"
    )
    refused({"name": f"{file}:odd"}, f"{file}:odd", message)


def test_what_is_no_algorithm_is_refused(tmp_path: Path) -> None:
    (tmp_path / "seven.py").write_text("def seven():\n    return 7\n")
    section = config({"name": f"{tmp_path / 'seven.py'}:seven"}).algorithm
    with pytest.raises(UserError, match=r"returned 7\. Return gpg_vl\.algorithms\.algorithm\.Alg"):
        make_algorithm(section)


def test_a_file_that_fails_to_import_says_so_itself(tmp_path: Path) -> None:
    """Also where it fails with what elsewhere is a mistake in a config."""
    (tmp_path / "broken.py").write_text("raise ValueError('of its own')\n")
    with pytest.raises(ValueError, match=r"^of its own$") as caught:
        config({"name": f"{tmp_path / 'broken.py'}:own"})
    assert not isinstance(caught.value, UserError)


def test_an_installed_algorithm_is_named_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "installed_algorithm.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("theirs", "installed_algorithm:own", "gpg_vl.algorithms")
    monkeypatch.setattr("gpg_vl.registry.entry_points", lambda group: [point])
    section = config({"name": "theirs", "gamma": 3}).algorithm
    assert make_algorithm(section).credit == (3.0, "a", (1, 2))
    refused({"name": "thiers"}, "Did you mean 'theirs'?")


# ---- the algorithm


def test_an_algorithm_is_made_of_its_keys() -> None:
    grpo = make_algorithm(config({"name": "grpo", "kl_beta": 0, "updates": 3}).algorithm)
    assert (grpo.updates, grpo.needs, grpo.samples) == (3, {"old_logp"}, True)
    sft = make_algorithm(SftConfig(response="= {answer}"))
    assert (sft.samples, sft.response) == (False, "= {answer}")
    assert make_algorithm(GpgConfig()).needs == frozenset()


# ---- documentation


def test_the_keys_of_each_algorithm_stand_under_its_name() -> None:
    blocks = {block.partition(":")[0]: block for block in describe_keys().split("\n\n")}
    for name, section in BUILTIN_SECTIONS.items():
        block = blocks[f"algorithm with name {name}"]
        assert (section.__doc__ or "").split()[0] in block
        keys = [line.split()[0] for line in block.splitlines() if line.startswith("  algorithm.")]
        declared = set(vars(section)["__annotations__"]) - {"name"}
        assert sorted(keys) == sorted(f"algorithm.{key}" for key in declared)
    assert "  algorithm.beta_th = 0.4" in blocks["algorithm with name gpg"]
    assert "  algorithm.beta_th = 1.0" in blocks["algorithm with name dapo"]
    assert "algorithm.beta_th" not in blocks["algorithm with name grpo"]
    assert describe_keys().count("  algorithm.correction = 'none'") == 1
    assert "my_algorithm.py:factory" in blocks["algorithm"]
    assert "One of: one, group_std, batch_std." in blocks["algorithm with name gpg"]
    assert next(iter(blocks)) == "model"


def test_a_key_of_two_algorithms_is_documented_for_each() -> None:
    found = [
        (default, text) for key, default, text in documented_keys() if key == "algorithm.beta_th"
    ]
    assert [default for default, _ in found] == ["0.0", "0.4", "1.0"]
    owners = [text.split(":")[0] for _, text in found]
    assert owners == ["every algorithm that samples", "gpg", "dapo"]
