"""A YAML file and `section.key=value` overrides into a config, and a config back into YAML."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gpg_vl.config.algorithm import AlgorithmConfig, section_for
from gpg_vl.config.documentation import explain
from gpg_vl.config.sections import Config
from gpg_vl.errors import UserError


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
    named = _named_algorithm(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        mistakes = dict.fromkeys(explain(e, named) for e in error.errors())
        lines = "\n".join(f"  {line}" for line in mistakes)
        raise UserError(
            f"The config {source} has {error.error_count()} mistake(s):\n{lines}"
        ) from None


def _named_algorithm(tree: Mapping[str, Any]) -> type[AlgorithmConfig]:
    """The section that the algorithm's keys belong to.

    Found before anything is validated, so that a file which fails to import does so with its own traceback; a name that
    means nothing is told together with the other mistakes.
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
    node = tree
    for part in parts[:-1]:
        below = node.setdefault(part, {})
        if not isinstance(below, dict):
            raise UserError(
                f"The override {override!r} goes into {part!r}, which is {below!r} and has no keys."
            )
        node = below
    node[parts[-1]] = value
