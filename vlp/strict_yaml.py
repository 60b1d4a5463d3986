"""YAML that is read strictly: plain values, no key twice, no aliases, errors that name file and line."""

from __future__ import annotations

from typing import Any

import yaml


class ConfigError(ValueError):
    """The configuration is wrong; the message names file and key."""


class StrictLoader(yaml.SafeLoader):
    """YAML without repeated keys and aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node; a ConfigError if it is an alias: ten lines of them can stand for more than a machine can hold."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ConfigError(
                f"{event.start_mark.name}, line {event.start_mark.line + 1}: aliases (*{event.anchor}) are not read;"
                " write the value out"
            )
        return super().compose_node(parent, index)

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
        ConfigError: not YAML, not a mapping, a key twice, or an alias.
    """
    try:
        loader = StrictLoader(text)
        loader.name = name
        value = loader.get_single_data()
    except ConfigError:
        raise
    except Exception as error:  # of many kinds: a date in month 13, a value within itself, !!bool of what is none
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must hold a mapping of keys to values")
    return value
