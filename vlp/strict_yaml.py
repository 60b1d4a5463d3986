"""YAML that is read strictly: plain values, no key twice, no aliases, errors that name file and line."""

from __future__ import annotations

import re
from typing import Any

import yaml

HIDDEN = "***"  # stands where a secret was
SECRETS = {"token", "password", "passwd", "passphrase", "secret", "credential", "credentials", "apikey"}
KEYS = ("api_key", "access_key", "private_key", "secret_key", "auth_key")
SPECIAL = {"mask", "cls", "sep", "pad", "unk", "bos", "eos", "start", "end"}  # tokens of a vocabulary are no secrets


class ConfigError(ValueError):
    """The configuration is wrong; the message names file and key."""


def is_secret(key: Any) -> bool:
    """Whether a key is called as a password, a token of access or another secret is."""
    name = re.sub(r"[\W]", "_", re.sub(r"([a-z])([A-Z])", r"\1_\2", str(key))).lower()
    words = name.split("_")
    return (words[-1] in SECRETS or "secret" in words or name.endswith(KEYS)) and words[0] not in SPECIAL


def without_secrets(tree: Any) -> Any:
    """A copy of a tree of values, with `***` for each text or number whose key is called as a secret is."""
    if isinstance(tree, dict):
        return {
            key: HIDDEN if is_secret(key) and isinstance(item, str | int) and item != "" else without_secrets(item)
            for key, item in tree.items()
        }
    if isinstance(tree, list | tuple):
        return type(tree)(without_secrets(item) for item in tree)
    return tree


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
