"""No file of the golden folder is left unread: each is given to a test, as pytest collects them."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


class Given:
    """A plugin of pytest that notes the paths which the tests it collects are parametrized with."""

    def __init__(self) -> None:
        self.paths: set[Path] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        specs = [item.callspec for item in session.items if hasattr(item, "callspec")]
        self.paths = {value for spec in specs for value in spec.params.values() if isinstance(value, Path)}


def unread(folder: Path) -> list[str]:
    """The files below a golden folder that no parity test is given, as SYSTEM/CASE.safetensors."""
    given = Given()
    options = ["--collect-only", "--quiet", "-p", "no:xdist", "-p", "no:cacheprovider"]
    code = pytest.main([*options, f"--golden={folder}", str(HERE)], plugins=[given])
    assert code == pytest.ExitCode.OK, "a test can't be collected; see what is printed"
    assert given.paths
    there = {*folder.rglob("*.safetensors")}
    return sorted(path.relative_to(folder).as_posix() for path in there - given.paths)


def test_every_file_is_read(request: pytest.FixtureRequest) -> None:
    folder = Path(request.config.getoption("--golden"))
    assert unread(folder) == [], f"these files of {folder} are given to no parity test"


def test_an_unread_file_is_found(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """An unknown case, an unknown system, and a case that goes on with no underscore."""
    folder = Path(request.config.getoption("--golden"))
    for path in folder.rglob("*.safetensors"):
        copy = tmp_path / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(path.resolve())
    before = unread(tmp_path)
    known = next((tmp_path / "uniter").iterdir())
    added = ["nobody/pretraining", "uniter/pretraining2", "uniter/unheard_of", "dalle/unheard_of"]
    for name in added:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.safetensors").symlink_to(known.resolve())
    assert sorted({*unread(tmp_path)} - {*before}) == sorted(f"{name}.safetensors" for name in added)
