"""A system is a configuration: no code knows one by its name, but its embedder, its importer and the table of types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = ("uniter", "visualbert", "oscar", "vinvl", "vlbert", "vl_bert", "vl-bert", "unicoder", "imagebert", "b2t2")
NAMES += ("vilbert", "12-in-1", "lxmert", "vilt", "volta", "wenlan", "brivl", "xgpt")
HOMES = ("vlp/nn/embedders/", "vlp/nn/towers/", "vlp/checkpoints/importers/")
TABLES = ("EMBEDDERS", "IMAGE_TOWERS", "TEXT_TOWERS", "IMPORTERS")  # of vlp/registry.py
# commands name systems to their users, in examples, and layouts that are other people's
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "vlp").rglob("*.py")
    if not path.is_relative_to(ROOT / "vlp" / "commands")
)


def docstrings(tree: ast.AST) -> set[int]:
    """Identities of the nodes that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(id(first.value))
    return found


def of_the_table(statement: ast.stmt) -> bool:
    """Whether a statement of vlp/registry.py is a table of embedders or importers, or brings in what it holds."""
    if isinstance(statement, ast.ImportFrom):
        return f"{statement.module}/".replace(".", "/").startswith(HOMES)
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return any(isinstance(target, ast.Name) and target.id in TABLES for target in targets)


def words(node: ast.AST) -> Iterator[str]:
    """Identifiers and text of one node."""
    for _, value in ast.iter_fields(node):
        yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))


def name_faults(path: str, source: str) -> list[str]:
    """Where a file names a system."""
    if path.startswith(HOMES):
        return []
    tree = ast.parse(source)
    if path == "vlp/registry.py":
        tree.body = [statement for statement in tree.body if not of_the_table(statement)]
    documentation = docstrings(tree)
    faults = [f"the path {path} names {name}" for name in NAMES if name in path.lower()]
    for node in ast.walk(tree):
        if id(node) in documentation:
            continue
        for word in words(node):
            named = [name for name in NAMES if name in word.lower()]
            faults += [f"{path}:{getattr(node, 'lineno', '?')} {word[:60]!r} names {name}" for name in named]
    return faults


@pytest.mark.parametrize("path", FILES)
def test_no_system_is_named(path: str) -> None:
    assert name_faults(path, (ROOT / path).read_text()) == []


def test_the_files_are_found() -> None:
    """The test above would pass on none; and the table is where the rule expects it."""
    assert len(FILES) > 50
    body = ast.parse((ROOT / "vlp/registry.py").read_text()).body
    tables = [s for s in body if of_the_table(s) and not isinstance(s, ast.ImportFrom)]
    assert len(tables) == len(TABLES)


@pytest.mark.parametrize(
    "source",
    [
        "class UniterModel: ...",
        "def f(lxmert): ...",
        "def vilbert_step(): ...",
        "model.is_oscar = True",
        "if kind == 'visualbert': ...",
        "f(vilt=1)",
        "from vlp.nn.embedders.vlbert import VLBertEmbedder",
        "import a as volta",
        "raise ValueError(f'as VL-BERT does: {x}')",
        "x = 1\n'b2t2 is no docstring here'",
    ],
)
def test_the_check_can_fail(source: str) -> None:
    assert name_faults("vlp/models/x.py", source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "vlp/models/x.py",
            '"""As UNITER does."""\n# LXMERT\nclass A:\n    """Oscar."""\n    def f(self):\n        """B2T2."""',
        ),
        ("vlp/nn/embedders/x.py", "class UniterEmbedder: ..."),
        ("vlp/checkpoints/importers/x.py", "LXMERT = 'lxmert'"),
        (
            "vlp/registry.py",
            "from vlp.checkpoints.importers import lxmert\nIMPORTERS: dict = {'lxmert': lxmert.KEY_MAP}",
        ),
        (
            "vlp/registry.py",
            "from vlp.nn.embedders.uniter import UniterEmbedder\nEMBEDDERS = {'uniter': UniterEmbedder}",
        ),
    ],
)
def test_the_check_lets_pass(path: str, source: str) -> None:
    assert name_faults(path, source) == []


def test_the_table_is_no_excuse_for_the_rest_of_the_file() -> None:
    assert name_faults("vlp/registry.py", "EMBEDDERS = {}\nif kind == 'uniter': ...")
    assert name_faults("vlp/registry.py", "from vlp.models.uniter import Uniter")
