"""YAML that is read strictly: plain values, no key twice, errors that name file and line."""

from __future__ import annotations

from typing import Any

import yaml


class ConfigError(ValueError):
    """The configuration is wrong; the message names file and key."""


class StrictLoader(yaml.SafeLoader):
    """YAML without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a ConfigError if it has a key twice, or one that is no text or number."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, str | int):
                raise ConfigError(
                    f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}: {key!r} can't be a key"
                )
            if key in seen:
                raise ConfigError(f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}: {key!r} repeated")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, name: str) -> dict[str, Any]:
    """A YAML mapping, safely and without repeated keys.

    Raises:
        ConfigError: not YAML, not a mapping, or a key twice.
    """
    try:
        loader = StrictLoader(text)
        loader.name = name
        value = loader.get_single_data()
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # as of a date in month 13, or a value within itself
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must hold a mapping of keys to values")
    return value
