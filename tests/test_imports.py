"""The layers of the design and the security rules, read from the syntax trees of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("vlp", "data_pipelines", "tools")

CONTRACTS = {"contracts", "picture_contracts", "task_contracts", "token_contracts"}
LEVEL_0 = {"interfaces", "needs", "distributed", "text", "writing"} | CONTRACTS
PARTS = LEVEL_0 | {"nn", "metrics", "checkpoints", "models", "objectives", "tasks", "evaluation", "convert", "config"}
# what each part of vlp may import from vlp, itself apart
MAY_IMPORT: dict[str, set[str]] = {
    "interfaces": set(),
    "needs": {"interfaces"},
    "contracts": {"interfaces", "needs", "writing"},
    "picture_contracts": {"interfaces", "contracts"},
    "task_contracts": {"interfaces", "contracts", "writing"},
    "token_contracts": {"interfaces", "contracts", "picture_contracts", "writing"},
    "distributed": set(),
    "writing": {"distributed"},
    "text": {"interfaces"},
    "strict_yaml": set(),
    "nn": LEVEL_0,
    "metrics": {"text"},
    "checkpoints": set(),
    "models": LEVEL_0 | {"nn"},
    "objectives": LEVEL_0 | {"nn", "metrics"},
    "evaluation": LEVEL_0 | {"metrics", "strict_yaml"},
    "tasks": LEVEL_0 | {"nn", "metrics", "objectives", "evaluation"},
    "convert": {"strict_yaml"},
    "shipped": {"strict_yaml"},
    "assets": {"strict_yaml"},
    "config": {"strict_yaml", "convert", "shipped"},
    "registry": LEVEL_0 | {"nn", "models", "objectives", "tasks", "checkpoints"},
    "fine_tuning": {"config", "registry", "shipped"},
    "build": PARTS | {"registry"},
    "run_folder": PARTS | {"build"},
    "initial_weights": PARTS | {"registry", "run_folder"},
    "use": LEVEL_0 | {"evaluation", "strict_yaml", "convert", "checkpoints"},
    "inference": PARTS | {"registry", "build", "run_folder", "use"},
    "training": LEVEL_0 | {"strict_yaml", "convert", "checkpoints", "config", "build", "run_folder"},
    "create": LEVEL_0 | {"config", "build"},
    "__main__": {"commands"},
}
# on top of all: nothing but `python -m vlp` imports them
MAY_IMPORT["commands"] = {"", *MAY_IMPORT} - {"__main__"}  # "": vlp itself
DATA_MAY_IMPORT = {"vlp.interfaces", "vlp.text", "vlp.distributed", "data_pipelines"}
# what each room of data_pipelines may import from data_pipelines, itself apart
ROOMS: dict[str, set[str]] = {
    "shards": {"doing"},
    "sources": {"shards", "doing"},
    "scenes": {"shards"},
    "annotations": {"shards"},
    "features": {"shards", "pickles"},
    "pickles": set(),
    "inspection": {"shards"},
    "batches": {"shards", "sources"},
    "codes": {"shards", "sources"},
    "written_captions": {"shards"},
    "vocabulary_texts": {"shards", "sources"},
    "datamodule": {"doing"},
    "doing": set(),
    "prepare": {"shards", "sources", "scenes", "batches"},
}
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
# the one file that may import pickle: it reads a pickle's instructions first, and refuses what could run code
READS_PICKLES = "data_pipelines/pickles.py"
# imports commands by name, out of a table of its own
COMMANDS = "vlp/commands/main.py"
# an extra: one tower, and the tools that compare with it
MAY_IMPORT_TRANSFORMERS = {"vlp/nn/towers/transformers_text.py", "tools/benchmark.py", "tools/benchmark_write.py"}
UNSAFE_YAML = {"unsafe_load", "unsafe_load_all", "full_load", "full_load_all", "load_all"}
UNSAFE_LOADERS = {"UnsafeLoader", "FullLoader", "Loader", "CLoader", "CUnsafeLoader", "CFullLoader", "BaseLoader"}


def python_files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names that a tree imports, and their lines; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{'.' * node.level}{node.module or ''}.{a.name}", node.lineno) for a in node.names)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def layer_faults(path: str, source: str) -> list[str]:
    """What a file imports but may not."""
    tree = ast.parse(source)
    parts = Path(path).with_suffix("").parts
    faults = []
    for name, line in imported(tree):
        where = f"{path}:{line} imports {name}"
        if name.startswith("."):
            faults.append(f"{where}: imports are absolute")
        if within(name, "lightning") or within(name, "pytorch_lightning"):
            allowed = (
                path.startswith(("vlp/training/", "vlp/commands/", "tools/")) or path == "data_pipelines/datamodule.py"
            )
            if not allowed:
                faults.append(where)
        if within(name, "transformers") and path not in MAY_IMPORT_TRANSFORMERS:
            faults.append(where)
        if within(name, "tests") or (within(name, "tools") and parts[0] != "tools"):
            faults.append(where)
        if within(name, "data_pipelines") and parts[0] == "vlp" and parts[1] != "commands":
            inside = parts[1] == "use" and name not in eager_imports(tree)
            if not inside:
                faults.append(where)
        if within(name, "vlp") and parts[0] == "data_pipelines" and not any(within(name, m) for m in DATA_MAY_IMPORT):
            faults.append(where)
        for package, may_import in (("vlp", MAY_IMPORT), ("data_pipelines", ROOMS)):
            if within(name, package) and parts[0] == package and path != "vlp/__init__.py":
                theirs = name.split(".")[1] if "." in name else ""
                if theirs != parts[1] and theirs not in may_import[parts[1]]:
                    faults.append(where)
    if path == "vlp/__init__.py":
        faults += [f"{path}: a top-level import of {name}" for name in eager_imports(tree) if within(name, "vlp")]
    return faults


def eager_imports(tree: ast.Module) -> list[str]:
    """Names imported when the module is, those for the type checker alone left out."""
    names = []
    for node in tree.body:
        checked = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not checked and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            names += [name for name, _ in imported(node)]
    return names


def is_true(call: ast.Call, keyword: str) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is True for k in call.keywords)


def safety_faults(path: str, source: str) -> list[str]:
    """Calls and imports that could run code from a file."""
    tree = ast.parse(source)
    found = [(n, line) for n, line in imported(tree) if n.split(".")[0] in UNSAFE_MODULES]
    faults = [f"{path}:{line} imports {n}" for n, line in found if path != READS_PICKLES or n != "pickle"]
    faults += [f"{path}:{line} imports {n}" for n, line in imported(tree) if n in ("torch.load", "yaml.load")]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    safe = {c.name for c in classes if [ast.unparse(b) for b in c.bases] in (["yaml.SafeLoader"], ["yaml.CSafeLoader"])}
    safe |= {"yaml.SafeLoader", "yaml.CSafeLoader"}
    for node in ast.walk(tree):
        unsafe = isinstance(node, ast.Attribute) and node.attr in UNSAFE_YAML | UNSAFE_LOADERS
        if unsafe and ast.unparse(node).startswith("yaml."):
            faults.append(f"{path}:{node.lineno} uses {ast.unparse(node)}")
        if not isinstance(node, ast.Call):
            continue
        called, where = ast.unparse(node.func), f"{path}:{node.lineno}"
        if called == "torch.load" and not is_true(node, "weights_only"):
            faults.append(f"{where} calls torch.load without weights_only=True")
        if any(k.arg == "ckpt_path" for k in node.keywords) and not is_true(node, "weights_only"):
            faults.append(f"{where} reads a checkpoint without weights_only=True")
        if called in ("pickle.load", "pickle.loads"):
            faults.append(f"{where} calls {called}")
        of_the_table = path == COMMANDS and called == "importlib.import_module"
        if called in ("eval", "exec", "compile", "__import__", "importlib.import_module") and not of_the_table:
            faults.append(f"{where} calls {called}")
        if called == "yaml.load":
            loader = node.args[1] if len(node.args) > 1 else next((k.value for k in node.keywords), None)
            if loader is None or ast.unparse(loader) not in safe:
                faults.append(f"{where} calls yaml.load without a safe loader")
        if any(
            k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
            for k in node.keywords
        ):
            faults.append(f"{where} allows pickle")
    return faults


def test_the_files_are_found() -> None:
    """The tests below would pass on an empty list."""
    assert len(python_files("vlp")) >= 25
    assert len(python_files("data_pipelines")) >= 5
    assert len(python_files("tests")) >= 15


@pytest.mark.parametrize("path", python_files(*PACKAGES), ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    assert layer_faults(name_of(path), path.read_text()) == []


@pytest.mark.parametrize("path", python_files(*PACKAGES), ids=name_of)
def test_no_file_can_run_code_from_data(path: Path) -> None:
    assert safety_faults(name_of(path), path.read_text()) == []


@pytest.mark.parametrize(("package", "table"), [("vlp", MAY_IMPORT), ("data_pipelines", ROOMS)])
def test_every_part_has_a_level(package: str, table: dict[str, set[str]]) -> None:
    folder = ROOT / package
    parts = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert parts - {"__init__"} == set(table), "each part stands in the table above, at its level, and no other does"


@pytest.mark.parametrize("table", [MAY_IMPORT, ROOMS])
def test_levels_have_no_circle(table: dict[str, set[str]]) -> None:
    """The table itself goes one way."""
    left = dict(table)
    while left:
        free = [part for part, below in left.items() if not below & left.keys() - {part}]
        assert free, f"a circle among {sorted(left)}"
        for part in free:
            del left[part]


def test_init_files_are_empty() -> None:
    inits = [path for path in python_files("vlp", "data_pipelines") if path.name == "__init__.py"]
    assert len(inits) >= 8
    assert [name_of(p) for p in inits if p.read_text().strip()] == ["vlp/__init__.py"]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vlp/nn/x.py", "from vlp.models.single_stream import SingleStream"),
        ("vlp/models/x.py", "from vlp.objectives import matching"),
        ("vlp/objectives/x.py", "import vlp.models.single_stream"),
        ("vlp/interfaces.py", "def f():\n    from vlp.text.wordpiece import WordPiece"),
        ("vlp/config.py", "import vlp.build"),
        ("vlp/build.py", "import vlp.training.fit"),
        ("vlp/checkpoints/x.py", "from vlp import config"),
        ("vlp/nn/x.py", "from ..models import x"),
        ("vlp/build.py", "import lightning"),
        ("vlp/models/x.py", "from lightning.pytorch import Trainer"),
        ("data_pipelines/sources/plan.py", "import lightning"),
        ("data_pipelines/sources/plan.py", "from vlp.config import RunConfig"),
        ("data_pipelines/sources/plan.py", "from data_pipelines.batches import MicroBatchLoader"),
        ("data_pipelines/shards/x.py", "from data_pipelines.sources.plan import Plan"),
        ("data_pipelines/scenes/x.py", "from data_pipelines.sources.source import Source"),
        ("data_pipelines/datamodule.py", "from data_pipelines.prepare import open_sources"),
        ("vlp/training/x.py", "from data_pipelines.sources.plan import Plan"),
        ("vlp/training/x.py", "def f():\n    from data_pipelines.sources.plan import Plan"),
        ("vlp/training/x.py", "from vlp.commands import train"),
        ("vlp/use/x.py", "from data_pipelines.sources.plan import Plan"),
        ("data_pipelines/sources/x.py", "import tools.train"),
        ("vlp/text/x.py", "from transformers import BertTokenizer"),
        ("tools/train.py", "import transformers"),
        ("vlp/nn/towers/bert_text.py", "def f():\n    from transformers import AutoModel"),
        ("vlp/checkpoints/x.py", "import transformers"),
        ("vlp/__init__.py", "from vlp.run_folder import RunFolder"),
        ("vlp/__init__.py", "try:\n    import vlp.build\nexcept ImportError:\n    pass"),
    ],
)
def test_the_layer_check_can_fail(path: str, source: str) -> None:
    assert layer_faults(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vlp/__init__.py", "def load():\n    from vlp.run_folder import RunFolder"),
        ("vlp/__init__.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vlp.inference import load"),
        ("vlp/training/x.py", "import lightning\nfrom vlp.build import build_model"),
        ("data_pipelines/datamodule.py", "import lightning\nfrom vlp.interfaces import Batch"),
        ("vlp/use/x.py", "def f():\n    from data_pipelines.shards.reader import ShardReader"),
        ("vlp/commands/x.py", "import lightning\nfrom data_pipelines.sources.plan import Plan"),
        ("vlp/nn/towers/transformers_text.py", "def f():\n    import transformers"),
        ("tools/benchmark.py", "import transformers, lightning\nfrom data_pipelines.sources.plan import Plan"),
    ],
)
def test_the_layer_check_lets_pass(path: str, source: str) -> None:
    assert layer_faults(path, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load",
        "trainer.fit(module, ckpt_path=path)",
        "import pickle",
        "def f():\n    from pickle import loads",
        "eval(text)",
        "importlib.import_module(name)",
        "exec(text)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text, _Loader)",
        "class _Loader(yaml.UnsafeLoader): ...\nyaml.load(text, _Loader)",
        "yaml.unsafe_load(text)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_the_safety_check_can_fail(source: str) -> None:
    assert safety_faults("x.py", source)


def test_one_file_may_import_pickle_and_may_not_load_with_it() -> None:
    assert safety_faults(READS_PICKLES, "import pickle") == []
    for source in ("import pickle\npickle.loads(data)", "from pickle import loads", "import joblib"):
        assert safety_faults(READS_PICKLES, source)
    assert safety_faults("tools/convert_other.py", "import pickle")


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "model.eval()",
        "class _Loader(yaml.SafeLoader): ...\nyaml.load(text, _Loader)",
        "yaml.safe_load(text)",
        "numpy.load(path, allow_pickle=False)",
    ],
)
def test_the_safety_check_lets_pass(source: str) -> None:
    assert safety_faults("x.py", source) == []
