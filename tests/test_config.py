"""The configuration: what it accepts, what it refuses and with which words, and that it survives being written."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gpg_vl import config as module
from gpg_vl.algorithms import BUILTIN
from gpg_vl.config import (
    Config,
    Section,
    SourceConfig,
    allowed_values,
    documented_keys,
    dump_config,
    load_config,
    parse_config,
)
from gpg_vl.errors import UserError
from gpg_vl.prompting import PixelLimits, PromptStyle

LEAST: dict[str, dict[str, Any]] = {
    "model": {"path": "m"},
    "data": {"train": "d.jsonl"},
    "rewards": {"weights": {"choice": 1.0}},
    "output": {"folder": "o"},
}
"""The least that a config must say."""
fixed = settings(max_examples=40, deadline=None, derandomize=True)


def tree(**sections: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {**LEAST.get(name, {}), **sections.get(name, {})} for name in {**LEAST, **sections}
    }


def written(folder: Path, **sections: Mapping[str, Any]) -> Path:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(tree(**sections)))
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for hypothesis, which does not start anew for every example."""
    return written(tmp_path_factory.mktemp("config"))


def leaves(config: Section, prefix: str = "") -> dict[str, Any]:
    """Dotted key to value."""
    found: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        found |= (
            leaves(value, f"{prefix}{name}.")
            if isinstance(value, Section)
            else {prefix + name: value}
        )
    return found


def refused(*texts: str, **sections: Mapping[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(tree(**sections), "run.yaml")
    for text in texts:
        assert text in str(caught.value), str(caught.value)


# ---- what is accepted


def test_the_least_config_takes_the_defaults(file: Path) -> None:
    config = load_config(file)
    assert config.model.path == "m"
    assert (config.rollout.group_size, config.rollout.temperature) == (8, 1.0)
    assert (config.algorithm.f_norm, config.algorithm.age) == ("one", "inverse_valid_fraction")
    assert (config.algorithm.beta_th, config.algorithm.aggregation) == (0.4, "token")


def test_overrides_win_over_the_file_and_later_ones_over_earlier(tmp_path: Path) -> None:
    file = written(tmp_path, train={"learning_rate": 1e-3, "seed": 5}, rollout={"group_size": 4})
    config = load_config(
        file, ["train.learning_rate=2e-6", "rollout.group_size=6", "rollout.group_size=16"]
    )
    assert (config.train.learning_rate, config.train.seed, config.rollout.group_size) == (
        2e-6,
        5,
        16,
    )


@pytest.mark.parametrize(
    "override,value",
    [
        ("train.learning_rate=1e-6", 1e-6),
        ("train.learning_rate=1E-06", 1e-6),
        ("train.learning_rate=2.5e-6", 2.5e-6),
        ("train.learning_rate=.5", 0.5),
        ("train.learning_rate=1", 1.0),
        ("train.steps=400", 400),
        ("train.steps=null", None),
        ("train.steps=", None),
        ("train.shared_prefix=false", False),
        ("train.betas=[0.9, 0.99]", (0.9, 0.99)),
        ("model.freeze=[vision, merger]", ("vision", "merger")),
        ("model.path=Qwen/Qwen2-VL-2B", "Qwen/Qwen2-VL-2B"),
        ("prompt.prefill=<think>", "<think>"),
        ("prompt.prefill=''", ""),
        ("prompt.template=a: {prompt} = b", "a: {prompt} = b"),
        ("prompt.template=[unclosed {prompt}", "[unclosed {prompt}"),
        ("data.columns.prompt=question", {"prompt": "question"}),
        (
            "rewards.weights.my_rewards.py:in_order=0.5",
            {"choice": 1.0, "my_rewards.py:in_order": 0.5},
        ),
        ("rewards.weights={format: 2}", {"format": 2.0}),
        ("train.learning_rates={vision: 1e-7}", {"vision": 1e-7}),
        ("train.learning_rates.merger=2e-7", {"merger": 2e-7}),
    ],
)
def test_an_override_is_read_as_yaml(file: Path, override: str, value: object) -> None:
    """An exponent without a dot is text to YAML, and a number to us; text that is no YAML is taken as it stands."""
    section, key = override.split("=")[0].split(".")[:2]
    assert getattr(getattr(load_config(file, [override]), section), key) == value


def test_an_exponent_without_a_dot_works_in_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree()) + "train: {learning_rate: 1e-6}\n")
    assert yaml.safe_load(file.read_text())["train"]["learning_rate"] == "1e-6", "PyYAML's reading"
    assert load_config(file).train.learning_rate == 1e-6


@pytest.mark.parametrize(
    "override,value", [("algorithm.age=off", "off"), ("output.folder=2024-10-01", "2024-10-01")]
)
def test_a_word_is_text_where_text_is_wanted(file: Path, override: str, value: str) -> None:
    """`off` is a value of algorithm.age, and a run may be named after its day."""
    section, key = override.split("=")[0].split(".")
    assert getattr(getattr(load_config(file, [override]), section), key) == value


@pytest.mark.parametrize("text", ["2024-13-45", "0x_"])
def test_what_looks_like_a_date_or_a_number_and_is_none_is_text(file: Path, text: str) -> None:
    assert load_config(file, [f"output.folder={text}"]).output.folder == text


def test_overrides_may_stand_behind_options(capsys: pytest.CaptureFixture[str]) -> None:
    from gpg_vl.cli import main

    assert main(["train", "nowhere.yaml", "--resume", "train.steps=100"]) == 2
    assert "There is no config file nowhere.yaml" in capsys.readouterr().err


# ---- what is refused


def test_an_unknown_key_names_the_nearest() -> None:
    refused(
        "train.learning_rat: there is no such key",
        "Did you mean 'learning_rate'?",
        train={"learning_rat": 1},
    )
    refused("trian: there is no such key", "Did you mean 'train'?", trian={"steps": 1})
    refused(
        "output.zzzzz: there is no such key", "Known: checkpoint_every, folder", output={"zzzzz": 1}
    )


@pytest.mark.parametrize("section", LEAST)
def test_a_missing_section_is_named_with_its_keys(section: str) -> None:
    without = {name: keys for name, keys in tree().items() if name != section}
    with pytest.raises(UserError, match=f"{section}: is required and missing.* Keys: ") as caught:
        parse_config(without, "run.yaml")
    assert next(iter(LEAST[section])) in str(caught.value)


def test_a_missing_key_is_named_with_its_meaning() -> None:
    with pytest.raises(
        UserError,
        match=r"data: neither train nor sources is given.* A \.jsonl, \.json or \.parquet file",
    ):
        parse_config({**tree(), "data": {"limit": 3}}, "run.yaml")


@pytest.mark.parametrize(
    "section,key,value",
    [
        ("train", "steps", "many"),
        ("train", "steps", 1.5),
        ("train", "steps", -1),
        ("train", "learning_rate", "fast"),
        ("train", "learning_rate", 0),
        ("train", "learning_rate", float("nan")),
        ("train", "learning_rate", float("inf")),
        ("train", "betas", [0.9, 0.99, 0.999]),
        ("train", "schedule", "step"),
        ("train", "shared_prefix", "perhaps"),
        ("train", "learning_rates", {"head": 1e-6}),
        ("train", "learning_rates", {"vision": 0}),
        ("train", "sharding", 2),
        ("rollout", "group_size", 1),
        ("rollout", "temperature", 0),
        ("algorithm", "beta_th", 1.1),
        ("algorithm", "age", "on"),
        ("algorithm", "max_resample_attempts", 0),
        ("model", "path", 7),
        ("model", "freeze", ["head"]),
        ("data", "columns", ["prompt"]),
        ("rewards", "weights", {"choice": "much"}),
        ("output", "trackers", ["mlflow"]),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_given_and_what_it_means(
    section: str, key: str, value: object
) -> None:
    texts = [text for dotted, _, text in documented_keys() if dotted == f"{section}.{key}"]
    # of a key that several algorithms have, the text of gpg's own, or else of all that sample
    own = [text for text in texts if text.startswith("gpg: ")]
    documentation = (own or texts)[0].removeprefix("gpg: ")
    documentation = documentation.removeprefix("every algorithm that samples: ")
    refused(f"{section}.{key}", " was given. ", documentation, **{section: {key: value}})


def test_every_mistake_is_listed_at_once() -> None:
    refused(
        "2 mistake(s)",
        "train.stepz",
        "rollout.group_size: 1 was given",
        train={"stepz": 1},
        rollout={"group_size": 1},
    )


def test_dropout_is_refused_with_its_reason() -> None:
    refused(
        "lora_dropout is 0.1; only 0 is allowed",
        "dropout masks",
        "Set it to 0.",
        model={"lora_dropout": 0.1},
    )
    assert parse_config(tree(model={"lora_dropout": 0.0}), "run.yaml").model.lora_dropout == 0.0


@pytest.mark.parametrize(
    "template, advice",
    [
        ("{Question} First think, then answer.", "Write {prompt} instead of {Question}"),
        ("{problem}", "Write {prompt} instead of {problem}"),
        ("{{question}}", "Write {prompt} instead of {question}"),
        ("{Prompt}", "Write {prompt} instead of {Prompt}"),
        ("{ prompt }", "Put it in"),
        ("{}", "Write {prompt} instead of {}"),
        ("Answer in JSON.", "Put it in"),
        ("", "Put it in"),
        ("{choices}", "Write {prompt} instead of {choices}"),
    ],
)
def test_a_template_that_asks_no_question_is_refused(template: str, advice: str) -> None:
    refused(
        "prompt",
        "the model would never see the question of a row",
        advice,
        prompt={"template": template},
    )


@pytest.mark.parametrize(
    "template",
    [
        "{prompt}",
        "{prompt} Answer with {choices}.",
        'Answer as {"answer": ...}: {prompt}',
        "{{prompt}}",
        r"{prompt} Put it in \boxed{answer}.",
    ],
)
def test_a_template_with_the_question_is_taken(template: str) -> None:
    assert parse_config(tree(prompt={"template": template}), "run.yaml").prompt.template == template


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant", "group"])
def test_age_token_goes_with_the_token_mean_only(aggregation: str) -> None:
    algorithm = {"age": "token", "aggregation": aggregation}
    if aggregation == "token":
        assert parse_config(tree(algorithm=algorithm), "run.yaml").algorithm.age == "token"
    else:
        refused(
            "age 'token' works only with aggregation 'token'",
            f"aggregation is '{aggregation}'",
            algorithm=algorithm,
        )


def test_some_reward_must_count() -> None:
    for weights in ({}, {"choice": 0.0, "format": 0}):
        with pytest.raises(UserError, match="names no reward with a weight other than 0"):
            parse_config({**tree(), "rewards": {"weights": weights}}, "run.yaml")


@pytest.mark.parametrize(
    "override",
    ["steps=3", "train.steps", "train=3", "=3", ".steps=3", "train.=3", "", "train..x=3"],
)
def test_an_override_of_another_form_is_refused(file: Path, override: str) -> None:
    with pytest.raises(UserError, match=r"is not of the form section\.key=value"):
        load_config(file, [override])


def test_an_override_below_a_value_is_refused(file: Path) -> None:
    with pytest.raises(UserError, match="sets a key of 'path', which is 'm' and has no keys"):
        load_config(file, ["model.path.x=3"])
    with pytest.raises(
        UserError, match=r"train\.learning_rat: there is no such key\. Did you mean 'learning_rate'"
    ):
        load_config(file, ["train.learning_rat=3"])


@pytest.mark.parametrize(
    "content,message",
    [
        (b"model: [", "is not YAML"),
        (b"model:\n\tpath: m", "is not YAML"),
        (b"a: &x [*x]\nb: !!python/object/apply:os.getcwd []", "is not YAML"),
        (b"- model", "holds list, not sections"),
        (b"", "holds NoneType, not sections"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_config(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no config file .*nowhere\.yaml.*/configs\."):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)


def test_a_config_cannot_be_changed(file: Path) -> None:
    config = load_config(file)
    with pytest.raises(ValidationError):
        config.train.steps = 3  # type: ignore[misc]  # frozen: that is the test


# ---- what is written


def test_what_is_dumped_is_read_back(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path),
        ["algorithm.age=valid_fraction", "train.betas=[0.9, 0.95]", "train.steps=3"],
    )
    (tmp_path / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == config
    assert set(yaml.safe_load(dump_config(config))) == set(Config.model_fields), "defaults included"


numbers = st.floats(1e-12, 1e6, exclude_min=True)
texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029"), min_size=1, max_size=30
)
"""Without the three exotic line breaks that PyYAML itself does not read back as it wrote them."""


@fixed
@given(
    texts,
    numbers,
    st.dictionaries(texts, numbers, min_size=1, max_size=3),
    st.sampled_from(["off", "token"]),
)
def test_whatever_a_config_says_survives_being_written(
    text: str, rate: float, names: dict[str, float], age: str
) -> None:
    prompt = {"prefill": text, "template": f"{text} {{prompt}}", "system": text * 2}
    sections = {
        "prompt": prompt,
        "train": {"learning_rate": rate},
        "rewards": {"weights": names},
        "algorithm": {"age": age},
    }
    config = parse_config(tree(**sections), "run.yaml")
    assert parse_config(yaml.safe_load(dump_config(config)), "again") == config


@pytest.mark.parametrize(
    "text",
    ["off", "1e-6", "null", "2024-10-01", "0x_", "~", " x ", "a\n\tb", "{prompt}", "'", "# x", "-"],
)
def test_text_that_looks_like_something_else_survives_being_written(text: str) -> None:
    config = parse_config(
        tree(prompt={"prefill": text}, data={"columns": {"prompt": text}}), "run.yaml"
    )
    assert parse_config(yaml.safe_load(dump_config(config)), "again") == config


# ---- overrides in general


@fixed
@given(numbers)
def test_any_number_arrives_in_any_spelling(one_file: Path, number: float) -> None:
    spellings = (repr(number), f"{number:.17e}", f"{number:.17E}", f" {number!r} ", f"'{number!r}'")
    for text in spellings:
        assert load_config(one_file, [f"train.learning_rate={text}"]).train.learning_rate == number


@fixed
@given(texts)
def test_any_text_arrives_once_it_is_quoted(one_file: Path, text: str) -> None:
    assert (
        load_config(
            one_file, [f"prompt.prefill={yaml.safe_dump(text, width=10**6)}"]
        ).prompt.prefill
        == text
    )


@fixed
@given(texts)
def test_any_override_ends_in_a_config_or_in_a_message(one_file: Path, text: str) -> None:
    for override in (
        text,
        f"prompt.prefill={text}",
        f"train.{text}=1",
        f"{text}.steps=1",
        f"rewards.weights.{text}=1",
    ):
        with suppress(UserError):
            assert isinstance(load_config(one_file, [override]), Config)


@pytest.mark.parametrize(
    "override",
    [
        "model.path=other",
        "model.dtype=bfloat16",
        "model.gradient_checkpointing=true",
        "data.columns={prompt: question}",
        "data.max_pixels=100352",
        "prompt.chat=plain",
        "rollout.temperature=0.7",
        "algorithm.beta_th=1",
        "rewards.weights={format: 1}",
        "train.epochs=2",
        "train.deterministic=false",
        "eval.task=cvbench",
        "output.trackers=[wandb]",
    ],
)
def test_an_override_changes_its_key_and_nothing_else(file: Path, override: str) -> None:
    before, after = leaves(load_config(file)), leaves(load_config(file, [override]))
    assert {name for name in before if before[name] != after[name]} == {override.partition("=")[0]}


# ---- documentation


def test_every_key_is_documented() -> None:
    documented = list(documented_keys())
    written: set[str] = set()
    for name in BUILTIN:
        written |= leaves(parse_config(tree(algorithm={"name": name}), "run.yaml")).keys()
    of_items = {key for key, _, _ in documented if ".N." in key}
    assert {key for key, _, _ in documented} - of_items == written
    assert {key.split(".")[3] for key in of_items} == SourceConfig.model_fields.keys()
    assert [key for key, _, text in documented if len(text) < 10 or not text.endswith(".")] == []
    for section in vars(module).values():
        if isinstance(section, type) and issubclass(section, Section):
            assert (section.__doc__ or "").strip()


def test_keys_have_two_levels_and_there_are_not_too_many() -> None:
    """Items of a list are sections of their own."""
    keys = [key for key, _, _ in documented_keys() if ".N." not in key]
    assert all(key.count(".") == 1 for key in keys)
    assert len([key for key in keys if not key.startswith("algorithm.")]) <= 90
    assert len({key for key in keys if key.startswith("algorithm.")}) <= 23


@pytest.mark.parametrize(
    "limits",
    [{"max_pixels": 784}, {"min_pixels": 500_000}, {"min_pixels": 5000, "max_pixels": 4999}],
)
def test_limits_that_no_picture_fits(limits: dict[str, int]) -> None:
    """One mistake that names both keys, whichever of them was given."""
    given = {"min_pixels": 3136, "max_pixels": 401408, **limits}
    told = rf"data: max_pixels is {given['max_pixels']}, below min_pixels, {given['min_pixels']}: .*data\.min_pixels"
    with pytest.raises(UserError, match=told):
        parse_config(tree(data={"train": "d.jsonl", **limits}), "run.yaml")


def test_choices_are_listed() -> None:
    assert allowed_values("algorithm.f_norm") == ("one", "group_std", "batch_std")
    assert allowed_values("train.schedule") == ("constant", "linear", "cosine")
    assert (
        allowed_values("train.steps")
        == allowed_values("eval.task")
        == allowed_values("no.such")
        == ()
    )


def test_defaults_are_those_of_the_parts_they_configure() -> None:
    config = parse_config(tree(), "run.yaml")
    for part, section in ((PromptStyle(), config.prompt), (PixelLimits(), config.data)):
        assert {f.name: getattr(part, f.name) for f in fields(part)} == {
            f.name: getattr(section, f.name) for f in fields(part)
        }
