"""The config's documentation: the list of keys, their allowed values, and messages for wrong values."""

import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic_core import ErrorDetails

from gpg_vl.config.algorithm_sections import BUILTIN_SECTIONS, AlgorithmConfig, SampledConfig
from gpg_vl.config.declaration import Section
from gpg_vl.config.sections import Config
from gpg_vl.registry import did_you_mean

# ---- keys


def documented_keys(
    section: type[Section] = Config, prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, documentation) of every key, in the order of declaration.

    The key of a list of sections is followed by the keys of its items, where N is the number of an item.

    `algorithm.name` comes first, then the keys of all algorithms that sample, then the keys of each algorithm; their texts begin
    with its name. A key for which an algorithm has its own default, such as `algorithm.beta_th`, is listed again.
    """
    for name, field in section.model_fields.items():
        kind = field.annotation
        if _is_inherited(name, section):
            continue
        if name == "algorithm" and section is Config:
            yield from _keys_of_algorithms(f"{prefix}{name}.")
        elif isinstance(kind, type) and issubclass(kind, Section):
            yield from documented_keys(kind, f"{prefix}{name}.")
        else:
            default = "(required)" if field.is_required() else repr(field.default)
            yield f"{prefix}{name}", default, _flat(field.description)
            if item := _item_section(kind):
                yield from documented_keys(item, f"{prefix}{name}.N.")


def _is_inherited(name: str, section: type[Section]) -> bool:
    """Whether it is a key of all algorithms that sample, and this algorithm has the same default."""
    if section is SampledConfig or not issubclass(section, SampledConfig):
        return False
    return name in SampledConfig.model_fields and name not in vars(section)["__annotations__"]


def _keys_of_algorithms(prefix: str) -> Iterator[tuple[str, str, str]]:
    yield from documented_keys(AlgorithmConfig, prefix)
    owned: dict[str, type[Section]] = {
        "every algorithm that samples": SampledConfig,
        **BUILTIN_SECTIONS,
    }
    for name, section in owned.items():
        for key, default, text in documented_keys(section, prefix):
            if key != f"{prefix}name":
                yield key, default, f"{name}: {text}"


def describe_keys() -> str:
    """Every key with its default, meaning and choices, section by section and algorithm by algorithm."""
    blocks: list[str] = []
    for name in Config.model_fields:
        kind = _section_at([name], AlgorithmConfig)
        assert kind is not None, name
        blocks.append(_block(f"{name}: {_flat(kind.__doc__)}", kind, name))
        if name == "algorithm":
            sampled = f"{name} of every kind that samples: {_flat(SampledConfig.__doc__)}"
            blocks.append(_block(sampled, SampledConfig, name))
            for owner, section in BUILTIN_SECTIONS.items():
                blocks.append(
                    _block(f"{name} with name {owner}: {_flat(section.__doc__)}", section, name)
                )
    return "\n\n".join(blocks)


def _block(heading: str, section: type[Section], prefix: str) -> str:
    lines = [heading]
    for key, default, text in documented_keys(section, f"{prefix}."):
        if key == "algorithm.name" and section is not AlgorithmConfig:
            continue  # the heading has it already
        choices = allowed_values(key)
        more = f" One of: {', '.join(choices)}." if choices else ""
        lines += [f"  {key} = {default}", f"      {text}{more}"]
    return "\n".join(lines)


def allowed_values(key: str) -> tuple[str, ...]:
    """The values of a choice key such as `algorithm.age`, or () if the key takes any value of its type."""
    section_name, _, name = key.partition(".")
    if "." in name:
        return ()  # list items have no keys with choices
    sections = [_section_at([section_name], AlgorithmConfig)]
    if section_name == "algorithm":
        sections += [SampledConfig, *BUILTIN_SECTIONS.values()]

    owners = [section for section in sections if section and name in section.model_fields]
    kind = owners[0].model_fields[name].annotation if owners else None
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next((k for k in typing.get_args(kind) if typing.get_origin(k) is Literal), kind)
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


# ---- mistakes


def explain(error: ErrorDetails, algorithm: type[AlgorithmConfig]) -> str:
    """One line that says what was given, what is allowed and what to do. `algorithm`: the section of the named
    algorithm."""
    loc = error["loc"]
    where = ".".join(str(part) for part in loc if part != "[key]")
    match error["type"]:
        case "extra_forbidden":
            return f"{where}{_no_such_key(loc, algorithm)}"
        case "missing":
            return f"{where}: is required and missing. {_documentation(loc, algorithm)}"
        case "value_error":
            message = str(error["ctx"]["error"])
            return f"{where}: {message}" if where else message
        case _:
            given = f"{error['input']!r} was given. {error['msg']}."
            return f"{where}: {given} {_documentation(loc, algorithm)}"


def _no_such_key(loc: Sequence[int | str], algorithm: type[AlgorithmConfig]) -> str:
    section, key = _section_at(loc[:-1], algorithm), str(loc[-1])
    known = (
        list(section.model_fields) if section else []
    )  # for an algorithm the first key is its name
    if section is not algorithm:
        return f": there is no such key. {did_you_mean(key, known)}"

    name = algorithm.model_fields["name"].default
    owners = [n for n, s in BUILTIN_SECTIONS.items() if key in s.model_fields]
    if not owners:
        return f": {name} has no such key. {did_you_mean(key, known)}"
    whose = ", ".join(owners)
    if key in SampledConfig.model_fields:
        whose = "every algorithm that samples"
    return (
        f" is a key of {whose}; name is {name}, whose keys are {', '.join(known[1:])}. "
        f"Remove it, or set algorithm.name to {owners[0]}."
    )


def _section_at(loc: Sequence[int | str], algorithm: type[AlgorithmConfig]) -> type[Section] | None:
    section: type[Section] | None = Config
    for part in loc:
        # a number selects an item of the list named before it
        if isinstance(part, int):
            continue
        field = section.model_fields.get(str(part)) if section else None
        kind: Any = field.annotation if field else None
        if section is Config and part == "algorithm":
            kind = algorithm
        section = kind if _is_section(kind) else _item_section(kind)
    return section


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _item_section(kind: Any) -> type[Section] | None:
    """The section of the items, if a key takes a list of sections."""
    items = [item for item in typing.get_args(kind) if _is_section(item)]
    return items[0] if typing.get_origin(kind) is tuple and items else None


def _documentation(loc: Sequence[int | str], algorithm: type[AlgorithmConfig]) -> str:
    """The text of the innermost key that has one; for a section its text and keys."""
    for end in range(len(loc), 0, -1):
        section = _section_at(loc[: end - 1], algorithm)
        field = section.model_fields.get(str(loc[end - 1])) if section else None
        if field is not None and field.description:
            return _flat(field.description)
        if field is not None and (inner := _section_at(loc[:end], algorithm)):
            return f"{_flat(inner.__doc__)} Keys: {', '.join(inner.model_fields)}."
    return ""


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())
