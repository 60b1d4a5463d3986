"""The configurations that come with the package, by name: their path without ending, as `vqa/uniter_base`."""

from __future__ import annotations

import difflib
from pathlib import Path

from vlp.strict_yaml import ConfigError

STUDIES = "studies"  # folder of those that compare runs, and are none themselves


def folder() -> Path:
    """Where they are: in the package, or beside it in a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def list_configs() -> list[str]:
    """Names of the configurations that `vlp train` takes."""
    return [name for name in _names() if not name.startswith(f"{STUDIES}/")]


def config_file(name: str | Path) -> Path:
    """The file of that path, or the one that comes with the package under that name; `configs/NAME.yaml` is NAME too.

    Raises:
        ConfigError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    plain = Path(name).as_posix().removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
    if plain in _names():
        return folder() / f"{plain}.yaml"
    near = difflib.get_close_matches(plain, _names(), 3, 0.5)
    hint = f"do you mean {' or '.join(near)}?" if near else "`vlp list` shows those that come with vlp"
    raise ConfigError(f"no config file {name}, and no configuration of that name; {hint}")


def _names() -> list[str]:
    return sorted(path.relative_to(folder()).with_suffix("").as_posix() for path in folder().rglob("*.yaml"))
