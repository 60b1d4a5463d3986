"""Secrets of a configuration are written nowhere and shown nowhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from vlp.config import ConfigError, dump_config, read_yaml
from vlp.convert import convert
from vlp.strict_yaml import is_secret


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "hf_token",
        "wandb_api_key",
        "apiKey",
        "password",
        "db-password",
        "client_secret",
        "secret_name",
        "PASSWD",
    ],
)
def test_names_of_secrets(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize(
    "key",
    ["tokenizer", "max_tokens", "micro_batch_tokens", "mask_token", "keys", "token_region", "key", 3, "secretary"],
)
def test_other_names(key: Any) -> None:
    assert not is_secret(key)


@dataclass
class Logger:
    password: str
    retries: int = 3


@dataclass
class Config:
    logger: Logger
    parts: list[dict[str, Any]] = field(default_factory=list)


def test_a_configuration_is_written_without_them() -> None:
    config = Config(Logger("hunter2"), [{"type": "x", "options": {"api_key": "abc", "token": 12345, "size": 4}}])
    text = dump_config(config)
    assert not any(secret in text for secret in ("hunter2", "abc", "12345"))
    written = convert(read_yaml(text, "x"), Config, "x", "")
    assert written == Config(Logger("***"), [{"type": "x", "options": {"api_key": "***", "token": "***", "size": 4}}])
    assert config.logger.password == "hunter2"


def test_errors_do_not_show_them() -> None:
    with pytest.raises(ConfigError, match=r"x: logger.password must be of type str, not \*\*\*$"):
        convert({"logger": {"password": 12345}}, Config, "x", "")
    with pytest.raises(ConfigError, match="retries must be of type int, not 'three'"):
        convert({"logger": {"password": "a", "retries": "three"}}, Config, "x", "")
