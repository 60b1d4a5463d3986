"""All systems in a table, from the configs and the parity tests: python tools/list_systems.py > docs/systems.md."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vlp.commands.downstream import CELLS, TASKS
from vlp.config import load_config, ratios_of

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# The systems

A system is a configuration: a topology, an embedder (or two towers), a layout and objectives. Written by
`python tools/list_systems.py > docs/systems.md` from the configs and the parity tests; a test compares.

- **Objectives**: those of a group share one pass through the model; groups are set apart by a semicolon, and a step
  draws one of them, as often as the number in brackets says.
- **Equal to official code on**: weights, inputs, outputs, losses and gradients recorded from the original
  implementation, which a test in `tests/parity` reproduces. None where no code was published.
- **Results to aim at**: what the paper reports, after fine-tuning unless it says zero-shot. They are goals for a run on
  the paper's data, which the config names in a comment; they were not reached here.

| system | topology | embedder | objectives | config | equal to official code on | results to aim at |
|---|---|---|---|---|---|---|
"""


MATRIX = """
## What they were made for

The tasks that each paper tries its system on: what trains and measures it there with the benchmark's own files
([data](data.md)), and the published figure, in percent (of retrieval R@1). `vlp list tasks` shows the same. A test
trains and measures each pair on the embedded scenes. `--system` puts a system's model in the place of a recipe's
([fine-tune](fine-tune.md#another-system)); to begin with weights, `init.path=RUN` goes with it. Where no figure stands,
none could be checked.

| task | system | train | measure | published |
|---|---|---|---|---|
"""


def aim(config: Path) -> str:
    """What the comments at the top of a config aim at, up to the paper and its year; empty if they cite none."""
    lines = config.read_text(encoding="utf-8").splitlines()
    top = lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]
    text = " ".join(line.removeprefix("#").strip() for line in top)
    found = re.search(r"Aims at(?:, [\w-]+)?: (.*?\([^()]*\b(?:19|20)\d\d\b[^()]*\))", text)
    return found[1] if found else ""


def name_and_results(text: str, otherwise: str) -> tuple[str, str]:
    """The system's name, if the text begins with one, and the rest."""
    found = re.match(r"((?:\([^)]*\)|[^:,(]|,(?! ))+)[:,] (.*)", text)
    if found is None or re.search(r"\d\.\d", found[1]):
        return otherwise, text
    return found[1], found[2]


def parity_cases() -> dict[str, set[str]]:
    """By system: the recorded cases that some parity test names, with all their variants."""
    cases: dict[str, set[str]] = {}
    for test in sorted((ROOT / "tests" / "parity").glob("test_*.py")):
        tree = ast.parse(test.read_text(encoding="utf-8"))
        said = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        for path in (ROOT / "tests" / "parity" / "golden").glob("*/*.safetensors"):
            # the whole name, or what stands before its number or variant
            beginnings = {path.stem[:k] for k in range(1, len(path.stem)) if path.stem[k] in "_0123456789"}
            if path.parent.name in said and said & {path.stem, *beginnings}:
                cases.setdefault(path.parent.name, set()).add(path.stem)
    return cases


def parity_of(name: str, cases: dict[str, set[str]]) -> list[str]:
    """The cases of the system that a config's name begins with; if some are of the variant that follows, only those."""
    name = re.sub("^wenlan", "brivl", name)  # the name of its code
    name = re.sub("^siglip", "clip_losses", name)  # its loss was recorded beside CLIP's
    name = re.sub("^twelve_in_one", "vilbert_vl_tasks", name)  # its model, with heads of tasks
    systems = sorted((s for s in cases if name == s or name.startswith(f"{s}_")), key=len)
    if not systems:
        return []
    variant = name.removeprefix(systems[-1]).strip("_").split("_")[0]
    own = {case for case in cases[systems[-1]] if variant in case.split("_")}
    return [f"{systems[-1]}/{case}" for case in sorted(own or cases[systems[-1]])]


def _ratio(ratio: float | dict[str, float]) -> str:
    """How often a group is drawn, or for which sources."""
    return ", ".join(filter(None, ratios_of(ratio))) or f"{ratio:g}"


def page() -> str:
    """The whole page."""
    cases = parity_cases()
    rows, others = [], []
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        link = f"[{path.stem}](../configs/{path.name})"
        text = aim(path)
        if not text:
            others.append(link)
            continue
        name, results = name_and_results(text, path.stem)
        config = load_config(path)
        drawn = len(config.objectives) > 1
        groups = [
            " + ".join(str(listed["type"]) for listed in group.objectives)
            + (f" ({_ratio(group.sampling_ratio)})" if drawn else "")
            for group in config.objectives
        ]
        model = config.model
        parts = [model[key]["type"] for key in ("embedder", "image", "text") if key in model]
        cells = [name, model["type"], " + ".join(parts), "; ".join(groups), link]
        cells += [", ".join(parity_of(path.stem, cases)) or "-", results]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    tasks = [
        f"| {name} ({TASKS[name].about}) | {cell.system} | "
        + " | ".join(f"`{command}`" for command in cell.commands())
        + f" | {cell.figure} |\n"
        for name in TASKS
        for cell in CELLS
        if cell.task == name
    ]
    others_line = f"\nOther recipes, without a published number: {', '.join(others)}.\n"
    return HEADER + "".join(rows) + others_line + MATRIX + "".join(tasks)


if __name__ == "__main__":
    sys.stdout.write(page())
