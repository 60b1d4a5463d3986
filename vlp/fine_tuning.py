"""A task's configuration with the model of another system: `vlp train TASK --system SYSTEM`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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
    if writes and system["type"] == "encoder_decoder":  # which writes beside what it reads
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


def for_system(task: dict[str, Any], system: dict[str, Any], task_name: Path, system_name: str) -> dict[str, Any]:
    """A task's configuration, as it stands in YAML, for another system.

    The model is the system's, see `model_for_task`; data, objectives, rates and steps are the task's. Where the task
    begins with the weights of a run, it is the run of the system's configuration, but for the heads of objectives and
    poolers. The run folder is `runs/TASK_SYSTEM`; TASK is the name of the task's configuration up to that of a system,
    or of the folder that it lies in.

    Args:
        task, system: the configurations. task_name: the task's file. system_name: the system's.
    """
    short = re.sub(r"(^|_)[a-z0-9]+_(small|base|large)$", "", task_name.stem)
    made = task | {
        "model": model_for_task(system["model"], task["model"]),
        "run_dir": f"runs/{short or task_name.parent.name}_{Path(system_name).stem}",
    }
    if "init" in task:
        made["init"] = {
            "path": system["run_dir"],
            "may_be_missing": ["^objectives", r"pooler\."],
            "may_be_unused": ["^objectives", r"pooler\."],
        }
    return made
