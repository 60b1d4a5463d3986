"""Are new objects named? python tools/eval_novel_objects.py RUN [--split unseen] [--most 500] [--beams 5]

RUN was trained on captioning of the embedded scenes. Captions of the first scenes of the split `unseen`, each of which
has an object of a colour and a shape that no scene of the training has together, are written by beam search; by
constrained beam search that is to name two of three shapes, as the regions' classes say (`vlp evaluate --search
constrained`); and by one that is to name a new combination, as "red triangle", which a detector would have to know.
Told are CIDEr, and of all scenes which share of their shapes and of their new combinations the caption names, and which
share of the objects that it names is there.

The numbers and the first captions are written to RUN/novel-objects-SPLIT.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vlp
from data_pipelines.batches import collate
from data_pipelines.scenes.objects import HELD_OUT, Scene
from data_pipelines.scenes.reading import read_caption, scene_of, truthfulness
from vlp.checkpoints.load import write_atomically
from vlp.commands.command import open_console, run_command, whole_number
from vlp.commands.evaluate import open_source
from vlp.config import ConfigError
from vlp.evaluation.captions import Captioned, caption_metrics, write
from vlp.task_contracts import WritingTask
from vlp.writing.settings import Writing

PAIRS = 16  # of a batch
COLUMNS = ("CIDEr", "shapes named", "combinations named", "objects true")
CONSTRAINED = replace(Writing(), search="constrained")
WAYS = {
    "beam search": Writing(),
    "two of three shapes": CONSTRAINED,
    "a new combination": replace(CONSTRAINED, objects=1, least_named=1),
}


def combinations(scene: Scene) -> list[str]:
    """The new combinations of a scene, each once."""
    return list(dict.fromkeys(f"{o.colour} {o.shape}" for o in scene.objects if (o.colour, o.shape) in HELD_OUT))


def share_named(texts: Sequence[str], names: Sequence[Sequence[str]]) -> float:
    """Which share of the names of all scenes its caption says, whatever stands between colour and shape."""
    said = []
    for text, own in zip(texts, names, strict=True):
        entities = read_caption(text).entities
        known = {word for e in entities for word in (e.shape, f"{e.colour} {e.shape}")}
        said += [name in known for name in own]
    return sum(said) / max(len(said), 1)


def work(arguments: list[str]) -> None:
    """Write, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or one of its weight files")
    parser.add_argument("--split", default="unseen", help="of the data set (default: unseen)")
    parser.add_argument("--most", type=whole_number, default=500, help="scenes (default: 500)")
    parser.add_argument("--beams", type=whole_number, default=5, help="beginnings that are followed, of each state")
    given = parser.parse_args(arguments)
    console = open_console()
    model = vlp.load(given.run, "cuda" if torch.cuda.is_available() else "cpu")
    task = cast(WritingTask, model.find("captions"))
    source = open_source(model, None, given.split)
    asked = [source.ask(place, "images") for place in source.asked("images")[: given.most]]
    facts = [source.reader.facts(pair.sample) for _, [pair] in asked]
    if not all("objects" in own for own in facts):
        raise ConfigError(f"{source.reader.folder} has pictures of which it is not known what is in them; take scenes")
    scenes = [scene_of(own) for own in facts]
    new = [combinations(scene) for scene in scenes]
    shapes = [list(dict.fromkeys(o.shape for o in scene.objects)) for scene in scenes]
    table, found = Table("", *COLUMNS), {}
    for way, how in WAYS.items():
        texts: list[str] = []
        for first in track(range(0, len(asked), PAIRS), way, console=console, transient=True):
            chunk = slice(first, first + PAIRS)
            batch = collate([pair for _, [pair] in asked[chunk]], source.name, 0, 0, [])
            names = new[chunk] if way == "a new combination" else None
            written = write(task, model, batch, replace(how, beams=given.beams), names=names)
            texts += [best for [(best, _)] in written]
        people = [truth.captions for truth, _ in asked]
        captioned = [Captioned(n, *own) for n, own in enumerate(zip(texts, people, strict=True))]
        true = truthfulness(zip(texts, scenes, strict=True)).shares()["entities"]
        cider = caption_metrics(captioned, slow=False)["CIDEr"]
        numbers = [cider, share_named(texts, shapes), share_named(texts, new), true]
        found[way] = dict(zip(COLUMNS, numbers, strict=True)) | {"first": texts[:5]}
        table.add_row(way, *(f"{100 * number:.1f}" for number in numbers))
    folder = given.run if given.run.is_dir() else given.run.parent
    report = {"scenes": len(asked), "beams": given.beams, "combinations": sum(map(len, new)), **found}
    write_atomically(folder / f"novel-objects-{given.split}.json", json.dumps(report, indent=1).encode())
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_command(work, sys.argv[1:]))
