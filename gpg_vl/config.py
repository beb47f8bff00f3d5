"""The configuration of a run: two levels, every key documented where it is declared.

A YAML file, then `section.key=value` overrides from the command line. Unknown keys are errors that name the nearest key.
The entry point unpacks the sections into plain arguments: nothing below it receives a config.
"""

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from gpg_vl.errors import UserError
from gpg_vl.prompting import DEFAULT_LIMITS, DEFAULT_STYLE
from gpg_vl.registry import did_you_mean

FNorm = Literal["one", "group_std", "batch_std"]
Age = Literal["inverse_valid_fraction", "off", "token", "valid_fraction"]
Aggregation = Literal["token", "sequence", "constant", "group"]


class _Loader(yaml.SafeLoader):
    """YAML in which `off`, `no` and 2024-10-01 are the texts they look like, and a key given twice is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012  the base class declares it so
        first: [(tag, form) for tag, form in resolvers if not tag.endswith((":bool", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if repeated := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


class Section(BaseModel):
    """A frozen group of keys that rejects unknown ones. The text under a key is its documentation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        str_strip_whitespace=False,
    )


class ModelConfig(Section):
    """Which policy is trained, and which part of it."""

    path: str
    """A checkpoint folder in the Hugging Face format (or a hub name, where a network is to be had)."""
    revision: str | None = None
    """Branch, tag or commit of a hub checkpoint."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Numbers of the forward pass. Master weights stay float32; bfloat16 runs under autocast."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    freeze: tuple[Literal["vision", "merger", "language"], ...] = ()
    """Parts whose weights must not change: the vision tower, the merger behind it, the language model."""
    vision_cache_mb: int = Field(2048, ge=0)
    """Memory for the features of images while vision and merger are frozen: each image is encoded once per run. 0: none."""
    lora_rank: int = Field(0, ge=0)
    """Rank of low-rank adapters on the language model (peft). 0 trains the weights themselves."""
    lora_alpha: float = Field(32.0, gt=0)
    """Scale of the adapters: they add alpha/rank times their product."""
    lora_targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Names of the linear layers of the language model that get adapters."""
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Must be 0: dropout would make the log-probs of training differ from those that were sampled."""

    @model_validator(mode="after")
    def _no_dropout(self) -> "ModelConfig":
        if self.lora_dropout:
            raise ValueError(
                f"lora_dropout is {self.lora_dropout}; only 0 is allowed: GPG has no ratio that could correct "
                f"for a policy that samples and trains under different dropout masks. Set it to 0."
            )
        return self


class DataConfig(Section):
    """What the policy is trained on."""

    train: str
    """A .jsonl or .parquet file, a folder of them, or `datasets:NAME[:split]`."""
    root: str | None = None
    """The folder that image paths are relative to and may not leave. Default: the folder of `train`."""
    columns: dict[str, str] = {}
    """Our field to the source's column: id, images, prompt, answer, choices, task. Common names are found alone."""
    limit: int | None = Field(None, ge=1)
    """Use only the first N rows."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """A longer prompt, image tokens included, is refused by the data check. Nothing is ever cut."""
    min_pixels: int = Field(DEFAULT_LIMITS.min_pixels, ge=28 * 28)
    """Smaller images are enlarged to this many pixels."""
    max_pixels: int = Field(DEFAULT_LIMITS.max_pixels, ge=28 * 28)
    """Larger images are shrunk to this many pixels (401408 is 512 image tokens)."""
    max_image_pixels: int = Field(DEFAULT_LIMITS.max_image_pixels, ge=1)
    """An image file that declares more pixels than this is not decoded (decompression bomb)."""


class PromptConfig(Section):
    """How an example becomes the text the model reads."""

    template: str = DEFAULT_STYLE.template
    """The user's turn. `{prompt}` is the example's prompt; `{choices}` its options as `a, b or c`."""
    system: str | None = DEFAULT_STYLE.system
    """A system turn in front. None leaves it to the chat template."""
    chat: Literal["auto", "template", "plain"] = DEFAULT_STYLE.chat
    """`template`: the tokenizer's chat template. `plain`: the bare text, for base models. `auto`: whichever is there."""
    prefill: str = DEFAULT_STYLE.prefill
    """Text that already begins the answer, such as `<think>`."""


class RolloutConfig(Section):
    """How answers are sampled."""

    engine: str = "native"
    """`native` samples with the policy itself, in this process."""
    group_size: int = Field(8, ge=2)
    """G: answers per prompt."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest answer, end token included."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits, in sampling and in training alike. top_k, top_p and penalties are off by design."""
    prompts_per_batch: int = Field(32, ge=1)
    """Prompts whose image and text are computed together; affects memory and speed only."""
    slots: int = Field(128, ge=1)
    """Answers that are decoded together; one that ends makes room for the next. Affects memory and speed only."""


class AlgorithmConfig(Section):
    """Group Policy Gradient and its switches (arXiv:2504.02546)."""

    f_norm: FNorm = "one"
    """Divisor of the advantage: 1 (GPG), the group's standard deviation (GRPO), or that of the whole step."""
    age: Age = "inverse_valid_fraction"
    """Correction for groups without signal: the paper's alpha = B/(B-M); `token` counts tokens; `off` is 1;
    `valid_fraction` is the inverse of the paper's alpha and only here because one article names it."""
    beta_th: float = Field(0.4, ge=0.0, le=1.0)
    """Least share of groups with signal; below it more groups are sampled. 0 never resamples, 1 is DAPO-like."""
    max_resample_attempts: int = Field(20, ge=1)
    """Cap on the rounds of sampling per step, the first included."""
    aggregation: Aggregation = "token"
    """Mean over all tokens of the step; per sequence then over sequences; by the constant length limit; per group."""

    @model_validator(mode="after")
    def _token_age(self) -> "AlgorithmConfig":
        if self.age == "token" and self.aggregation != "token":
            raise ValueError(
                f"age 'token' goes with aggregation 'token' only; aggregation is {self.aggregation!r}. "
                f"Use age 'inverse_valid_fraction', which is exact for {self.aggregation!r}."
            )
        return self


class RewardsConfig(Section):
    """How rewards are computed and what happens when one breaks."""

    weights: dict[str, float]
    """Reward name to weight: `{choice: 1.0, format: 0.2, my_rewards.py:in_order: 1.0}`."""
    time_limit: float = Field(10.0, gt=0)
    """Seconds that one completion may take."""
    workers: int = Field(1, ge=1)
    """Processes that compute rewards."""
    on_error: Literal["stop", "drop_group"] = "stop"
    """What a reward that hangs, crashes or returns no number does: stop the run, or lose its group (reported, counted)."""

    @model_validator(mode="after")
    def _some(self) -> "RewardsConfig":
        if not self.weights or not any(self.weights.values()):
            raise ValueError(
                "weights names no reward with a weight other than 0. Name at least one: weights: {choice: 1.0}."
            )
        return self


class TrainConfig(Section):
    """The optimizer steps."""

    prompts_per_step: int = Field(32, ge=1)
    """P: groups per optimizer step, over all processes."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps. Leave it out to train for `epochs`."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data, if `steps` is not given (resampling draws from the same passes)."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: flat, or down to `final_lr_fraction` on a line or a cosine."""
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the learning rate rises from 0."""
    final_lr_fraction: float = Field(0.0, ge=0.0, le=1.0)
    """Where linear and cosine schedules end, as a share of the peak."""
    weight_decay: float = Field(0.0, ge=0.0)
    """Decoupled decay on matrices; never on norms and biases."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm."""
    tokens_per_pass: int = Field(16384, ge=1)
    """Most tokens in one forward and backward pass; a larger group is computed in pieces, its prompt still once."""
    shared_prefix: bool = True
    """Encode image and prompt once per group. False gives every completion its own row (same gradient, slower)."""
    reuse_prefill: bool = False
    """Train on from what the rollout computed of image and prompt instead of computing it again: the same gradient, a forward
    pass less. Holds the activations of all prompts of a step while they are answered."""
    attention: Literal["auto", "split", "varlen", "dense"] = "auto"
    """How completions attend to their shared prompt. `split` runs anywhere, `varlen` needs CUDA and bfloat16, `dense` is
    quadratic in the tokens of a pass and there to compare with. `auto` takes the fastest that was measured."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seeds data order and sampling."""
    deterministic: bool = True
    """Use operations that repeat themselves bit for bit; on a GPU those that cannot are named in a warning."""


class EvalConfig(Section):
    """Evaluation while training."""

    task: str | None = None
    """An eval task, such as cvbench. None evaluates nothing."""
    data: str | None = None
    """Its data set."""
    every: int = Field(0, ge=0)
    """Steps between evaluations; 0 only at the end."""
    limit: int | None = Field(None, ge=1)
    """Rows per evaluation, drawn evenly over the task's strata."""
    prompt: str | None = None
    """The task's prompt style; None uses this run's own `prompt` section."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer; None takes `rollout.max_new_tokens`."""


class OutputConfig(Section):
    """The run folder."""

    folder: str
    """Where config.yaml, metrics.jsonl, samples/ and checkpoints/ are written."""
    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints; 0 only at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """Older checkpoints are deleted once newer ones are complete."""
    samples_every: int = Field(10, ge=0)
    """Steps between dumps of prompts, images, completions and rewards to samples/; 0 never."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides metrics.jsonl."""


class Config(Section):
    """A whole run."""

    model: ModelConfig
    data: DataConfig
    rewards: RewardsConfig
    output: OutputConfig
    prompt: PromptConfig = PromptConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _something_to_reuse(self) -> "Config":
        if self.train.reuse_prefill and (
            self.model.gradient_checkpointing or not self.train.shared_prefix
        ):
            raise ValueError(
                "train.reuse_prefill keeps the activations of prompts: model.gradient_checkpointing would give them up, and "
                "without train.shared_prefix no prompt stands for its group. Set reuse_prefill to false, or the other."
            )
        return self


def load_config(file: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The config in `file` with `section.key=value` overrides (values are YAML). Raises UserError."""
    path = Path(file)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(
            f"There is no config file {path}. Give the path of a YAML file; the ones that come with the "
            f"project are in configs/."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The config file {path} cannot be read: {error}.") from None
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # ValueError: what looks like a number and is none, such as 0x_
        raise UserError(f"The config file {path} is not YAML: {error}.") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"The config file {path} holds {type(tree).__name__}, not sections. Start with `model:`."
        )
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, str(path))


def parse_config(tree: Mapping[str, Any], source: str) -> Config:
    """A config from nested dictionaries. Raises UserError that lists every mistake, each with its remedy."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = "\n".join(
            f"  {line}" for line in dict.fromkeys(_explain(e) for e in error.errors())
        )
        raise UserError(
            f"The config {source} has {error.error_count()} mistake(s):\n{lines}"
        ) from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML: every key, defaults included. `load_config` reads it back unchanged."""
    text: str = yaml.safe_dump(
        config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120
    )
    return text


def documented_keys(
    section: type[Section] = Config, prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, documentation) of every key, in the order of declaration."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from documented_keys(kind, f"{prefix}{name}.")
        else:
            default = "(required)" if field.is_required() else repr(field.default)
            yield f"{prefix}{name}", default, " ".join((field.description or "").split())


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".", 2)
    if not equals or len(parts) < 2 or not all(parts):
        raise UserError(
            f"The override {override!r} is not of the form section.key=value, as in train.learning_rate=1e-6."
        )
    try:
        value = yaml.load(text, _Loader) if text else None
    except (yaml.YAMLError, ValueError):
        value = text
    node = tree
    for part in parts[:-1]:
        below = node.setdefault(part, {})
        if not isinstance(below, dict):
            raise UserError(
                f"The override {override!r} goes into {part!r}, which is {below!r} and has no keys."
            )
        node = below
    node[parts[-1]] = value


def _explain(error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"])
    given = error["input"]
    match error["type"]:
        case "extra_forbidden":
            return f"{where}: there is no such key. {did_you_mean(str(error['loc'][-1]), _siblings(error['loc']))}"
        case "missing":
            return f"{where}: is required and missing. {_documentation(error['loc'])}"
        case "value_error":
            return f"{where}: {error['ctx']['error']!s}"
        case _:
            return f"{where}: {given!r} was given. {error['msg']}. {_documentation(error['loc'])}"


def _section_at(loc: Sequence[int | str]) -> type[Section] | None:
    section: type[Section] | None = Config
    for part in loc:
        field = section.model_fields.get(str(part)) if section else None
        kind = field.annotation if field else None
        section = kind if isinstance(kind, type) and issubclass(kind, Section) else None
    return section


def _siblings(loc: Sequence[int | str]) -> list[str]:
    section = _section_at(loc[:-1])
    return list(section.model_fields) if section else []


def _documentation(loc: Sequence[int | str]) -> str:
    for end in range(len(loc), 0, -1):
        section = _section_at(loc[: end - 1])
        field = section.model_fields.get(str(loc[end - 1])) if section else None
        if field is not None and field.description:
            return " ".join(field.description.split())
        if field is not None and (inner := _section_at(loc[:end])):
            return f"{inner.__doc__} Keys: {', '.join(inner.model_fields)}."
    return ""


def allowed_values(key: str) -> tuple[str, ...]:
    """The values of a choice key such as `algorithm.age`, or () if the key takes any value of its type."""
    section_name, _, name = key.partition(".")
    section = _section_at([section_name])
    field = section.model_fields.get(name) if section else None
    kind = field.annotation if field else None
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next((k for k in typing.get_args(kind) if typing.get_origin(k) is Literal), kind)
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
