"""Are captions about the picture? python tools/eval_scene_captions.py RUN ... [--most 500] [--beams N] [--page FILE]

RUN was trained on captioning of the embedded scenes. Its captions of the first scenes of a split are measured as
captions of the picture that they were written about, of the next one, which mostly has the same words dealt to other
objects, and of one with words of its own: what is left there is grammar and frequent words. Of the embedded scenes it
is known what is in them, so it is also told which share of captions, of the objects that they name and of the relations
that they claim, is true. The first rows are a person's captions, measured by the others of their pictures.

The numbers are written to RUN/scene-captions-SPLIT.json, and with --page the first pictures with their captions.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vlp
from data_pipelines.scenes.objects import Scene
from data_pipelines.scenes.placing import FAMILY
from data_pipelines.scenes.reading import scene_of, truthfulness
from data_pipelines.shards.reader import ShardReader
from vlp.checkpoints.load import write_atomically
from vlp.commands.command import open_console, run_command, whole_number
from vlp.commands.evaluate import ask_all, open_source
from vlp.commands.evaluate_pictures import ACROSS, DOWN, draw_page
from vlp.config import ConfigError
from vlp.evaluation.captions import Captioned, caption_metrics
from vlp.writing.settings import Writing

SHOWN = {"own": 0, "next": 1, "another": FAMILY}  # how many pictures further
PEOPLE = "a person"


def measure(run: Path, split: str, most: int, how: Writing, console: Console) -> tuple[dict[str, Any], list[str]]:
    """The numbers of a run, and its captions."""
    model = vlp.load(run, "cuda" if torch.cuda.is_available() else "cpu")
    source = open_source(model, None, split)
    asked = ask_all(model, model.task(), source, how, most, console)
    records = asked.records
    if asked.stopped or asked.missed or len(records) <= FAMILY:
        told = f"{len(records)} captions were written, {len(asked.missed)} left out"
        raise ConfigError(f"{run}: {told}; there must be more than {FAMILY}, and none left out")
    facts = [source.reader.facts(number) for number in range(len(records))]
    if not all("objects" in own for own in facts):
        raise ConfigError(f"{source.reader.folder} has pictures of which it is not known what is in them; take scenes")
    scenes = [scene_of(own) for own in facts]
    texts = [record.caption for record in records]
    found: dict[str, Any] = {"captions": len(texts), **{k: v for k, v in asdict(how).items() if v is not None}}
    language = facts[0].get("language", "en")
    found["run"] = compared(texts, [record.references for record in records], scenes, language)
    first, others = [r.references[0] for r in records], [r.references[1:] for r in records]
    found[PEOPLE] = compared(first, others, scenes, language)
    return found, texts


def compared(
    texts: list[str], references: list[list[str]], scenes: list[Scene], language: str
) -> dict[str, dict[str, Any]]:
    """CIDEr-D and what is true, with each of the pictures `SHOWN`."""
    found = {}
    for shown, further in SHOWN.items():
        written = texts[further:] + texts[:further]
        captioned = [Captioned(n, *own) for n, own in enumerate(zip(written, references, strict=True))]
        try:
            cider = caption_metrics(captioned, slow=False)["CIDEr"]
        except ImportError as error:
            raise ConfigError(str(error)) from error
        truth = truthfulness(zip(written, scenes, strict=True), language)
        found[shown] = {"CIDEr": cider, **truth.shares(), "counts": asdict(truth)}
    return found


def draw_first(reader: ShardReader, texts: list[str], path: Path) -> None:
    """The first pictures, each with its caption below."""
    first = texts[: ACROSS * DOWN]
    pictures = [Image.open(io.BytesIO(reader.sample(number).image or b"")) for number in range(len(first))]
    draw_page([np.asarray(picture) for picture in pictures], first, path)


def work(arguments: list[str]) -> None:
    """Measure each run, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder or one of its weight files")
    parser.add_argument("--split", default="val", help="of the data set (default: val)")
    parser.add_argument("--most", type=whole_number, default=500, help="scenes (default: 500)")
    parser.add_argument("--beams", type=whole_number, default=1, help="beginnings that are followed (default: 1)")
    parser.add_argument("--page", type=Path, help="a picture file for the first pictures of the last run")
    given = parser.parse_args(arguments)
    console, how = open_console(), replace(Writing(), beams=given.beams)
    table = Table("run", "picture", "CIDEr", "captions true", "objects true", "relations true")
    for run in given.runs:
        found, texts = measure(run, given.split, given.most, how, console)
        for who in (PEOPLE, "run") if run == given.runs[0] else ("run",):
            table.add_section()
            for shown in SHOWN:
                shares = (100 * found[who][shown][name] for name in ("CIDEr", "captions", "entities", "relations"))
                named = str(run) if who == "run" else who
                table.add_row(named if shown == "own" else "", shown, *(f"{share:.1f}" for share in shares))
        folder = run if run.is_dir() else run.parent
        write_atomically(folder / f"scene-captions-{given.split}.json", json.dumps(found, indent=1).encode())
    console.print(table)
    if given.page:
        model = vlp.load(run)
        draw_first(open_source(model, None, given.split).reader, texts, given.page)
        console.print(f"written: {given.page}")


if __name__ == "__main__":
    sys.exit(run_command(work, sys.argv[1:]))
