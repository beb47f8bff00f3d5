"""Read a config from a YAML file and `section.key=value` overrides, and write a config as YAML."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gpg_vl.config.algorithm import section_for
from gpg_vl.config.algorithm_sections import AlgorithmConfig
from gpg_vl.config.documentation import explain
from gpg_vl.config.sections import Config
from gpg_vl.errors import UserError
from gpg_vl.shipped import shipped_folder


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads `off`, `no` and 2024-10-01 as texts and refuses a key that is given twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012  the base class declares it so
        first: [(tag, form) for tag, form in resolvers if not tag.endswith((":bool", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if repeated := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated!r} appears twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def load_config(file: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The config in `file` with `section.key=value` overrides (values are YAML). Raises UserError."""
    tree = _read_tree(Path(file))
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, str(file))


def make_config(
    given: Config | Path | str | Mapping[str, Any], overrides: Mapping[str, Any]
) -> Config:
    """Make a config from Python: from a config, the path of a file, or nested sections; with overrides.

    overrides: `{"train": {"steps": 5}}` or `{"train.steps": 5}`; other keys keep their values.
    Raises UserError.

    Example: `make_config("my.yaml", {"train": {"steps": 5}, "output.folder": Path("runs/try")})`
    """
    if isinstance(given, Config):
        tree, source = given.model_dump(mode="json"), "given"
    elif isinstance(given, Mapping):
        tree, source = {name: _copy(section) for name, section in given.items()}, "given"
    else:
        tree, source = _read_tree(Path(given)), str(given)

    for name, value in overrides.items():
        if "." in name:
            _set(tree, name, value)
        elif isinstance(value, Mapping):
            for key, part in value.items():
                _set(tree, f"{name}.{key}", part)
        else:
            raise UserError(
                f"The override {name}={value!r} has no key. Give a section with its keys, as in train={{'learning_rate': "
                f"1e-6}}, or **{{'train.learning_rate': 1e-6}}."
            )
    return parse_config(tree, source)


def _copy(section: Any) -> Any:
    """A copy of a section, and of lists of sections in it, that overrides may change."""
    return deepcopy(dict(section)) if isinstance(section, Mapping) else section


def _read_tree(path: Path) -> dict[str, Any]:
    """Read the sections of a file. Raises UserError."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(
            f"There is no config file {path}. Give the path of a YAML file; the ones that come with "
            f"gpg_vl are in {shipped_folder('configs')}."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The config file {path} cannot be read: {error}.") from None
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # ValueError: something that looks like a number but is not, such as 0x_
        raise UserError(f"The config file {path} is not YAML: {error}.") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"The config file {path} holds {type(tree).__name__}, not sections. Start with `model:`."
        )
    return tree


def parse_config(tree: Mapping[str, Any], source: str) -> Config:
    """Make a config from nested dictionaries. Raises a UserError that lists every mistake and how to correct it."""
    named = _find_algorithm(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        mistakes = dict.fromkeys(explain(e, named) for e in error.errors())
        lines = "\n".join(f"  {line}" for line in mistakes)
        raise UserError(
            f"The config {source} has {error.error_count()} mistake(s):\n{lines}"
        ) from None


def _find_algorithm(tree: Mapping[str, Any]) -> type[AlgorithmConfig]:
    """The section class for the keys of the named algorithm.

    It is looked up before validation, so that a file that fails to import raises its own traceback. An unknown name is reported
    together with the other mistakes.
    """
    section = tree.get("algorithm")
    name = section.get("name", "gpg") if isinstance(section, Mapping) else "gpg"
    try:
        return section_for(name)
    except UserError:
        return AlgorithmConfig


def dump_config(config: Config) -> str:
    """The resolved config as YAML: every key, defaults included. `load_config` reads it back unchanged."""
    text: str = yaml.safe_dump(
        config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120
    )
    return text


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
    _set(tree, key, value)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set `section.key`, or `section.key.name` in a key that holds a dictionary, or `section.key.0.name` in one that holds
    a list."""
    parts = key.split(".", 2)
    node = tree
    for place, part in enumerate(parts[:-1]):
        below = node.setdefault(part, {})
        if isinstance(below, list) and place == 1:
            _set(_item(below, key, parts), f"_.{parts[2].partition('.')[2]}", value)
            return
        if not isinstance(below, dict):
            raise UserError(
                f"The override of {key!r} sets a key of {part!r}, which is {below!r} and has no keys."
            )
        node = below
    node[parts[-1]] = str(value) if isinstance(value, Path) else value


def _item(items: list[Any], key: str, parts: Sequence[str]) -> dict[str, Any]:
    """The list item that an override selects by its number, as the section `_` of a tree. Raises UserError."""
    number, _, name = parts[2].partition(".")
    listed = ".".join(parts[:2])
    if not number.isdecimal() or int(number) >= len(items) or not name:
        raise UserError(
            f"The override of {key!r} sets a key of {listed!r}, a list of {len(items)}. Select an item by its number, "
            f"from 0 to {len(items) - 1}, followed by the key, as in {listed}.0.{name or 'path'}, or give the whole list."
        )
    if not isinstance(items[int(number)], dict):
        raise UserError(
            f"The override of {key!r} sets a key of item {number} of {listed!r}, which is {items[int(number)]!r} and has "
            f"no keys."
        )
    return {"_": items[int(number)]}
