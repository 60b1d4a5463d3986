"""A task's configuration with the model of another system: `vlp train TASK --system SYSTEM`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlp.config import RunConfig, config_of, load_config, read_tree
from vlp.registry import MODELS
from vlp.shipped import config_file

TAGS = "tags"  # words about the image, which a system has or has not, whatever the task


def texts_of(model: dict[str, Any]) -> list[str]:
    """The texts that the layout of a `model` block shows, in order, tags left out."""
    return [item for item in model["layout"] if item in model["max_tokens"] and item != TAGS]


def stretch_of(model: dict[str, Any]) -> slice:
    """Where a layout has its texts: from the first to the last, with the separators that follow."""
    layout, texts = model["layout"], texts_of(model)
    start = layout.index(texts[0])
    stop = max(place for place, item in enumerate(layout) if item in texts) + 1
    while stop < len(layout) and layout[stop].startswith("SEP") and layout[stop] != f"SEP+{TAGS}":
        stop += 1
    return slice(start, stop)


def model_for_task(system: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """The `model` block of a system, with the texts and images of a task in the place of its own.

    The task's texts and their separators stand where the system's caption stood. What comes before the first separator
    has the type of the system's first text, what follows that of its second, if it has two. A second image comes
    behind the first, with its type. A task that writes captions brings what is hidden from them (`layout_causal`), if
    the system has nothing of the kind; another task needs the pooled vector. All else is the system's.

    Args:
        system, task: `model` blocks of configurations; a system without a `layout` stays as it is.
    """
    if "layout" not in system or "layout" not in task:
        return system
    writes = "layout_causal" in task
    if writes and getattr(MODELS.get(system["type"]), "writes_beside", False):
        return system | {"max_tokens": system["max_tokens"] | {k: task["max_tokens"][k] for k in texts_of(task)}}
    place = stretch_of(system)
    old = list(zip(system["layout"], system["layout_types"], strict=True))
    kinds = [kind for item, kind in old[place] if item in texts_of(system)]
    texts = task["layout"][stretch_of(task)]
    first = texts.index("SEP") + 1 if "SEP" in texts else len(texts)
    new = [(item, kinds[0]) for item in texts[:first]] + [(item, kinds[-1]) for item in texts[first:]]
    layout = [*old[: place.start], *new, *old[place.stop :]]
    if "regions_2" in task["layout"]:
        at = next((number for number, (item, _) in enumerate(layout) if item == "regions"), None)
        if at is not None:
            layout.insert(at + 1, ("regions_2", layout[at][1]))
    block = {key: value for key, value in system.items() if writes or not key.startswith("layout_causal")}
    if writes:
        block = {"layout_causal": task["layout_causal"], **block}
    elif block.get("pooler") is False:
        block |= {"pooler": True}
    lengths = {item: task["max_tokens"][item] for item in texts_of(task)}
    if TAGS in system["max_tokens"]:
        lengths[TAGS] = system["max_tokens"][TAGS]
    return block | {
        "layout": [item for item, _ in layout],
        "layout_types": [kind for _, kind in layout],
        "max_tokens": lengths,
    }


def load_for_system(path: str | Path, system: str, overrides: Iterable[str] = ()) -> RunConfig:
    """A task's configuration for another system.

    The model is the system's, see `model_for_task`; data, objectives, rates and steps are the task's. Where the task
    begins with the weights of a run, it is the run of the system's configuration, but for the heads of objectives and
    poolers. The run folder is `runs/TASK_SYSTEM`; TASK is the name of the task's configuration up to that of a system,
    or of the folder that it lies in.

    Args:
        path, system: the configurations of the task and of the system, as `vlp.config.load_config` takes them.
        overrides: as there; they come last.

    Raises:
        ConfigError: as there, of either.
    """
    task, path = load_config(path), config_file(path)
    theirs, tree = load_config(system), read_tree(path)
    short = re.sub(r"(^|_)[a-z0-9]+_(small|base|large)$", "", path.stem)
    tree["model"] = model_for_task(theirs.model, task.model)
    tree["run_dir"] = f"runs/{short or path.parent.name}_{config_file(system).stem}"
    if task.init is not None:
        heads = ["^objectives", r"pooler\."]
        tree["init"] = {"path": theirs.run_dir, "may_be_missing": heads, "may_be_unused": heads}
    return config_of(tree, overrides, path)
