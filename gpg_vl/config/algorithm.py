"""The algorithm section: a name, and the keys of the algorithm that has it.

The keys of what is built in are declared here, without torch. The keys of an algorithm of your own are the keyword
arguments of its factory.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, create_model, model_validator
from pydantic.errors import PydanticSchemaGenerationError

from gpg_vl.algorithms import algorithms
from gpg_vl.algorithms.choices import Age, Aggregation, FNorm
from gpg_vl.config.declaration import Section
from gpg_vl.errors import UserError

if TYPE_CHECKING:
    from gpg_vl.algorithms.algorithm import Algorithm


class AlgorithmConfig(Section):
    """How rewards become a gradient. The other keys of the section are those of the algorithm that is named."""

    name: str = "gpg"
    """`gpg`, `grpo`, `sft`, the name of a plug-in, or a factory of your own as `my_algorithm.py:factory`, whose keyword
    arguments are then the keys."""


class SampledConfig(AlgorithmConfig):
    """An algorithm that samples groups of answers."""

    beta_th: float = Field(0.0, ge=0.0, le=1.0)
    """Least share of groups with signal; below it more groups are sampled. 0 never resamples."""
    max_resample_attempts: int = Field(20, ge=1)
    """Cap on the rounds of sampling per step, the first included."""


class GpgConfig(SampledConfig):
    """Group Policy Gradient: the policy gradient itself, and nothing beside it (arXiv:2504.02546)."""

    name: Literal["gpg"] = "gpg"
    """Group Policy Gradient."""
    f_norm: FNorm = "one"
    """Divisor of the advantage: 1 (GPG), the group's standard deviation (GRPO), or that of the whole step."""
    age: Age = "inverse_valid_fraction"
    """Correction for groups without signal: the paper's alpha = B/(B-M); `token` counts tokens; `off` is 1;
    `valid_fraction` is the inverse of the paper's alpha and only here because one article names it."""
    aggregation: Aggregation = "token"
    """Mean over all tokens of the step; per sequence then over sequences; by the constant length limit; per group."""
    beta_th: float = Field(0.4, ge=0.0, le=1.0)
    """Least share of groups with signal; below it more groups are sampled. 0 never resamples, 1 is DAPO-like."""

    @model_validator(mode="after")
    def _token_age(self) -> "GpgConfig":
        if self.age == "token" and self.aggregation != "token":
            raise ValueError(
                f"age 'token' goes with aggregation 'token' only; aggregation is {self.aggregation!r}. "
                f"Use age 'inverse_valid_fraction', which is exact for {self.aggregation!r}."
            )
        return self


class GrpoConfig(SampledConfig):
    """Group Relative Policy Optimization: a clipped ratio, and a pull to the first weights (arXiv:2402.03300)."""

    name: Literal["grpo"] = "grpo"
    """Group Relative Policy Optimization."""
    aggregation: Aggregation = "sequence"
    """Mean per sequence then over sequences; over all tokens of the step (DAPO); by the length limit; per group."""
    clip_low: float = Field(0.2, ge=0.0, lt=1.0)
    """How far a token may become rarer than when it was sampled (0.2: to 0.8 times) before it has no more gradient."""
    clip_high: float = Field(0.2, ge=0.0)
    """How far a token may become likelier than when it was sampled before it has no more gradient. DAPO takes 0.28."""
    kl_beta: float = Field(0.04, ge=0.0)
    """Weight of the divergence (k3) from the weights the run began with. Above 0 those are kept in memory, and every
    answer costs one more forward pass; 0 needs neither."""
    updates: int = Field(1, ge=1)
    """Optimizer updates on the same answers; from the second on the ratio and its clip matter."""


class SftConfig(AlgorithmConfig):
    """Supervised fine-tuning: the gold answers are the completions, and nothing is sampled."""

    name: Literal["sft"] = "sft"
    """Supervised fine-tuning."""
    response: str = "{answer}"
    """The completion that is learned; `{answer}` stands for the gold answer."""

    @model_validator(mode="after")
    def _an_answer(self) -> "SftConfig":
        if "{answer}" not in self.response:
            raise ValueError(
                f"response is {self.response!r}, which has no {{answer}}: every example would teach the same text. "
                f"Write {{answer}} where the gold answer belongs, as in '<answer>{{answer}}</answer>'."
            )
        return self


BUILTIN_SECTIONS: Mapping[str, type[AlgorithmConfig]] = {
    "gpg": GpgConfig,
    "grpo": GrpoConfig,
    "sft": SftConfig,
}


def section_for(name: object) -> type[AlgorithmConfig]:
    """The section of the algorithm called `name`. Raises UserError if there is none, or if its factory has no keys.

    What is not built in is imported, and raises whatever it raises.
    """
    if not isinstance(name, str):
        raise UserError(
            f"name is {name!r}, which is no text. Name an algorithm: {', '.join(BUILTIN_SECTIONS)}."
        )
    if name in BUILTIN_SECTIONS:
        return BUILTIN_SECTIONS[name]
    return _section_of(name, algorithms.get(name))


@cache  # a section read twice is of one class, so that what is dumped is equal to what is read back
def _section_of(name: str, factory: Callable[..., "Algorithm"]) -> type[AlgorithmConfig]:
    """The keyword arguments of a factory, as keys."""
    try:
        signature = inspect.signature(factory, eval_str=True)
    except NameError as error:
        raise UserError(
            f"The annotations of the algorithm {name!r} cannot be read: {error}. Import what they name."
        ) from None

    keys = {key: _key(name, parameter) for key, parameter in signature.parameters.items()}
    fields: dict[str, Any] = {"name": (Literal[name], name), **keys}
    document = inspect.getdoc(factory) or f"The algorithm {name}."
    try:
        return create_model(
            "OwnAlgorithmConfig", __base__=SampledConfig, __doc__=document, **fields
        )
    except PydanticSchemaGenerationError as error:
        raise UserError(
            f"The algorithm {name!r} has an argument that YAML cannot hold. "
            f"{error.message.partition('. Set ')[0]}. Take numbers, texts, or lists and dictionaries of them."
        ) from None


def _key(name: str, parameter: inspect.Parameter) -> tuple[Any, Any]:
    """(type, default) of a key, as pydantic has it."""
    if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
        raise UserError(
            f"The algorithm {name!r} takes {parameter}, which no key can stand for. "
            f"Let it take keyword arguments, as in (*, clip: float = 0.2)."
        )
    key = parameter.name
    if parameter.annotation is parameter.empty:
        raise UserError(
            f"The algorithm {name!r} does not say what {key} is. Annotate it, as in {key}: float = 0.2."
        )
    if key.startswith("_") or hasattr(SampledConfig, key) or key in SampledConfig.model_fields:
        raise UserError(
            f"The algorithm {name!r} takes an argument {key}, a name that the section itself uses. Rename it."
        )
    return parameter.annotation, ... if parameter.default is parameter.empty else parameter.default


def _chosen(section: Any) -> Any:
    """The keys of the section, read as those of the algorithm that is named. No name is gpg."""
    if not isinstance(section, Mapping):
        return section
    return section_for(section.get("name", "gpg")).model_validate(section)


AnyAlgorithm = Annotated[SerializeAsAny[AlgorithmConfig], BeforeValidator(_chosen)]
"""The section of whichever algorithm is named."""


def make_algorithm(section: AlgorithmConfig) -> "Algorithm":
    """The algorithm of a section. Imports torch. Raises UserError if a factory of your own returns something else."""
    from gpg_vl.algorithms.algorithm import Algorithm  # late: reading a config needs no torch

    keys = {
        key: getattr(section, key)
        for key in type(section).model_fields
        if key not in SampledConfig.model_fields
    }
    made: object = algorithms.get(section.name)(**keys)
    if not isinstance(made, Algorithm):
        raise UserError(
            f"The algorithm {section.name!r} returned {made!r}. Return gpg_vl.algorithms.algorithm.Algorithm(...)."
        )
    return made


def why_not_reusable(section: AlgorithmConfig) -> str | None:
    """Why the activations of prompts cannot be kept from sampling until training, or None if they can."""
    if section.name in BUILTIN_SECTIONS:
        samples, updates = isinstance(section, SampledConfig), getattr(section, "updates", 1)
    else:
        algorithm = make_algorithm(section)
        samples, updates = algorithm.samples, algorithm.updates

    if not samples:
        return f"algorithm {section.name} samples nothing, so there is nothing to keep"
    if updates > 1:
        return f"algorithm {section.name} updates the weights {updates} times, and the first update uses them up"
    return None
