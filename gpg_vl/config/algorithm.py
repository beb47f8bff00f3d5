"""The algorithm section: which keys the named algorithm has, and how the algorithm is built from them.

The keys of built-in algorithms are declared in `algorithm_sections.py`. The keys of your own algorithm are the keyword
arguments of its factory.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, SerializeAsAny, create_model
from pydantic.errors import PydanticSchemaGenerationError

from gpg_vl.algorithms import algorithms
from gpg_vl.config.algorithm_sections import BUILTIN_SECTIONS, AlgorithmConfig, SampledConfig
from gpg_vl.errors import UserError

if TYPE_CHECKING:
    from gpg_vl.algorithms.algorithm import Algorithm


def section_for(name: object) -> type[AlgorithmConfig]:
    """The section class of the algorithm `name`. Raises UserError if there is no such algorithm, or if the arguments of its
    factory cannot be config keys.

    An algorithm that is not built in is imported; errors of the import are passed on.
    """
    if not isinstance(name, str):
        raise UserError(
            f"name is {name!r}, which is not a text. Give the name of an algorithm: {', '.join(BUILTIN_SECTIONS)}."
        )
    if name in BUILTIN_SECTIONS:
        return BUILTIN_SECTIONS[name]
    return _section_of(name, algorithms.get(name))


@cache  # one class per algorithm, so that a config is equal to itself after it is dumped and read again
def _section_of(name: str, factory: Callable[..., "Algorithm"]) -> type[AlgorithmConfig]:
    """A section class whose keys are the keyword arguments of a factory."""
    try:
        signature = inspect.signature(factory, eval_str=True)
    except NameError as error:
        raise UserError(
            f"The annotations of the algorithm {name!r} cannot be read: {error}. Import the names that they use."
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
            f"The algorithm {name!r} has an argument that cannot be written in YAML. "
            f"{error.message.partition('. Set ')[0]}. Take numbers, texts, or lists and dictionaries of them."
        ) from None


def _key(name: str, parameter: inspect.Parameter) -> tuple[Any, Any]:
    """(type, default) of the key for a parameter, in pydantic's form."""
    if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
        raise UserError(
            f"The algorithm {name!r} takes {parameter}, which cannot be a config key. Use keyword arguments, as in (*, "
            f"clip: float = 0.2)."
        )
    key = parameter.name
    if parameter.annotation is parameter.empty:
        raise UserError(
            f"The argument {key} of the algorithm {name!r} has no type. Annotate it, as in {key}: float = 0.2."
        )
    if key.startswith("_") or hasattr(SampledConfig, key) or key in SampledConfig.model_fields:
        raise UserError(
            f"The algorithm {name!r} takes an argument {key}, a name that the section itself uses. Rename it."
        )
    return parameter.annotation, ... if parameter.default is parameter.empty else parameter.default


def _chosen(section: Any) -> Any:
    """The section, validated with the keys of the algorithm that it names; gpg if it names none."""
    if not isinstance(section, Mapping):
        return section
    return section_for(section.get("name", "gpg")).model_validate(section)


AnyAlgorithm = Annotated[SerializeAsAny[AlgorithmConfig], BeforeValidator(_chosen)]
"""The type of the algorithm section: the class depends on the algorithm's name."""


def make_algorithm(section: AlgorithmConfig) -> "Algorithm":
    """Build the algorithm of a section. Imports torch. Raises UserError if a user's factory returns something else."""
    from gpg_vl.algorithms.algorithm import (
        Algorithm,
    )  # imported late: reading a config must not need torch
    from gpg_vl.algorithms.correction import correct

    keys = {
        key: getattr(section, key)
        for key in type(section).model_fields
        if key not in SampledConfig.model_fields
    }
    result: object = algorithms.get(section.name)(**keys)
    if not isinstance(result, Algorithm):
        raise UserError(
            f"The algorithm {section.name!r} returned {result!r}. Return gpg_vl.algorithms.algorithm.Algorithm(...)."
        )
    if isinstance(section, SampledConfig):
        bounds = {"low": section.correction_low, "high": section.correction_high}
        return correct(result, section.correction, **bounds)
    return result


def why_not_reusable(section: AlgorithmConfig) -> str | None:
    """The reason why the prompts' activations cannot be kept from sampling to training; None if they can."""
    if section.name in BUILTIN_SECTIONS:
        samples, updates = isinstance(section, SampledConfig), getattr(section, "updates", 1)
    else:
        algorithm = make_algorithm(section)
        samples, updates = algorithm.samples, algorithm.updates

    if not samples:
        return f"algorithm {section.name} does not sample, so there are no activations to keep"
    if updates > 1:
        return f"algorithm {section.name} updates the weights {updates} times per step, and the activations can be used only once"
    return None
