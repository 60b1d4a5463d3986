"""Values of a configuration as objects of annotated types: a signature, or a dataclass, is a schema."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from vlp.strict_yaml import HIDDEN, ConfigError, is_secret


def unknown_key(where: str, key: Any, known: Iterable[str]) -> ConfigError:
    """The error for a key that is not known, naming the nearest one that is."""
    known = sorted(known)
    near = difflib.get_close_matches(str(key), known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known) or 'none'}"
    return ConfigError(f"{where}: unknown key {key!r}; {hint}")


def convert(value: Any, kind: Any, file: str, key: str) -> Any:
    """`value` as an object of the annotated type `kind`.

    Raises:
        ConfigError: it cannot be one.
    """
    where = f"{file}: {key}" if key else file
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(value, kind, file, key)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, file, key)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise ConfigError(f"{where} is {_shown(where, value)}, but must be one of {', '.join(map(str, arguments))}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, not {_shown(where, value)}")
        if origin is tuple and len(value) != len(arguments):
            raise ConfigError(f"{where} must have {len(arguments)} items, not {len(value)}")
        item_kinds = arguments if origin is tuple else arguments * len(value)
        items = [
            convert(item, k, file, f"{key}.{n}") for n, (item, k) in enumerate(zip(value, item_kinds, strict=True))
        ]
        return tuple(items) if origin is tuple else items
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be a mapping, not {_shown(where, value)}")
        return {str(name): convert(item, arguments[1], file, f"{key}.{name}") for name, item in value.items()}
    return _convert_scalar(value, kind, where)


def _convert_union(value: Any, kinds: tuple[Any, ...], file: str, key: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    choices = [kind for kind in kinds if kind is not type(None)]
    errors = []
    for choice in choices:
        try:
            return convert(value, choice, file, key)
        except ConfigError as error:
            errors.append(error)
    # a mapping was meant to be a choice with items, a plain value one without: those say best what is wrong
    items = [dataclasses.is_dataclass(choice) or typing.get_origin(choice) in (dict, list, tuple) for choice in choices]
    wanted = isinstance(value, dict | list)
    told = [str(error) for error, has in zip(errors, items, strict=True) if has == wanted] or [*map(str, errors)]
    raise ConfigError("; or ".join(told))


def _convert_scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is type(None) and value is None:
        return None
    if kind is float and not isinstance(value, bool):
        try:
            number = float(value) if isinstance(value, int | float | str) else math.nan
        except (ValueError, OverflowError):  # a number of hundreds of digits is no float
            number = math.nan
        if math.isfinite(number):
            return number
    elif type(value) is kind:
        return value
    name = "null" if kind is type(None) else kind.__name__
    raise ConfigError(f"{where} must be of type {name}, not {_shown(where, value)}")


def _shown(where: str, value: Any) -> str:
    """A value as an error shows it, unless it is a secret."""
    return HIDDEN if is_secret(where.rpartition(".")[2].rpartition(" ")[2]) else repr(value)


def _convert_dataclass(value: Any, kind: Any, file: str, key: str) -> Any:
    where = f"{file}: {key}" if key else file
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a mapping with keys {', '.join(f.name for f in dataclasses.fields(kind))}")
    annotations = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name in value:
        if name not in known:
            raise unknown_key(where, name, known)
    arguments = {}
    for name, f in known.items():
        inner = f"{key}.{name}" if key else name
        if name in value:
            arguments[f.name] = convert(value[name], annotations[f.name], file, inner)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{file}: the key {inner} is missing")
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def chosen(where: str, settings: dict[str, Any], choices: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The constructor that `settings["type"]` picks.

    Raises:
        ConfigError: it is missing, or picks none.
    """
    if "type" not in settings:
        raise ConfigError(f"{where}: the key type is missing; it is one of {', '.join(sorted(choices))}")
    if settings["type"] not in [*choices]:
        raise unknown_key(f"{where}.type", settings["type"], choices)
    return choices[settings["type"]]


def arguments(
    where: str, settings: dict[str, Any], choices: Mapping[str, Callable[..., Any]], given: Iterable[str]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The constructor that `settings["type"]` picks, and its other keys converted by its signature.

    given: names of arguments that do not come from the file. The fields of a dataclass with the mark `INLINE` stand
    among the other keys.

    Raises:
        ConfigError: unknown type, unknown or missing keys, or a value of another type.
    """
    constructor = chosen(where, settings, choices)
    parameters = inspect.signature(constructor).parameters
    annotations = typing.get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
    values = {key: value for key, value in settings.items() if key != "type"}
    own = [name for name in parameters if name not in set(given)]
    inline: dict[str, Any] = {name: kind for name in own if hasattr(kind := annotations.get(name), "INLINE")}
    fields = {name: [f.name for f in dataclasses.fields(kind)] for name, kind in inline.items()}
    known = [key for name in own for key in fields.get(name, [name])]
    for key in values:
        if key not in known:
            raise unknown_key(where, key, known)
    for name, kind in inline.items():
        values[name] = convert({key: values.pop(key) for key in fields[name] if key in values}, kind, where, "")
    for name in own:
        if name in values and name not in inline:
            values[name] = convert(values[name], annotations[name], where, name)
        elif name not in values and parameters[name].default is inspect.Parameter.empty:
            raise ConfigError(f"{where}: the key {name} is missing ({settings['type']} needs it)")
    return constructor, values


def construct(where: str, settings: dict[str, Any], choices: Mapping[str, Callable[..., Any]], **given: Any) -> Any:
    """Call the constructor that `settings["type"]` picks; see `arguments`.

    given: arguments that do not come from the file; those that the constructor does not have are left out.

    Raises:
        ConfigError: as `arguments`, or the constructor refuses a value.
    """
    constructor, values = arguments(where, settings, choices, given)
    known = inspect.signature(constructor).parameters
    try:
        return constructor(**values, **{name: value for name, value in given.items() if name in known})
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
