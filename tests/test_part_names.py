"""Nobody asks for the name or the class of an objective, a task or a model but the registry and its own file."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
from test_system_names import docstrings

from vlp.registry import MODELS, OBJECTIVES

ROOT = Path(__file__).parent.parent
PARTS = {**OBJECTIVES, **MODELS}
HOMES = {name: Path(str(inspect.getsourcefile(part))).relative_to(ROOT).as_posix() for name, part in PARTS.items()}
CLASSES = {part.__name__: name for name, part in PARTS.items()}
# tables from published parameters to those of objectives, by name; and what times one system against another's code
EXCUSED = ("vlp/registry.py", "vlp/checkpoints/importers/", "tools/benchmark")
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("vlp", "data_pipelines", "tools")
    for path in (ROOT / package).rglob("*.py")
)


def name_faults(path: str, source: str) -> list[str]:
    """Where a file says what a part is called, or names its class."""
    tree = ast.parse(source)
    documentation, faults = docstrings(tree), []
    for node in ast.walk(tree):
        said = node.value if isinstance(node, ast.Constant) and id(node) not in documentation else None
        named = CLASSES.get(node.id) if isinstance(node, ast.Name) else said if isinstance(said, str) else None
        if named in PARTS and HOMES[named] != path:
            faults.append(f"{path}:{node.lineno} names {named}")  # type: ignore[attr-defined]
    return faults


@pytest.mark.parametrize("path", [path for path in FILES if not path.startswith(EXCUSED)])
def test_no_part_is_named(path: str) -> None:
    assert name_faults(path, (ROOT / path).read_text()) == []


def test_the_files_and_the_parts_are_found() -> None:
    """The test above would pass on none."""
    assert len(FILES) > 150
    assert {"matching", "captioning", "dual_encoder"} <= PARTS.keys()
    assert HOMES["matching"] == "vlp/objectives/matching.py"
    assert all(any(path.startswith(excused) for path in FILES) for excused in EXCUSED)


@pytest.mark.parametrize(
    "source",
    [
        "if kind == 'matching': ...",
        "ANSWERED = {'captioning'}",
        "isinstance(model, DualEncoder)",
        "f(type='two_stream')",
    ],
)
def test_the_check_can_fail(source: str) -> None:
    assert name_faults("vlp/build.py", source)
    assert name_faults("vlp/objectives/other.py", source)


def test_the_check_lets_a_part_name_itself() -> None:
    assert name_faults("vlp/objectives/matching.py", "return {'matching': loss}") == []
    assert name_faults("vlp/build.py", '"""Of matching."""\nprint("matching_accuracy")') == []
