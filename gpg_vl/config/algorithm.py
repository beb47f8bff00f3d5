"""The algorithm section: from a name to the keys of the algorithm that has it, and to the algorithm.

The keys of what is built in are declared in `algorithm_sections.py`. The keys of an algorithm of your own are the keyword
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
