"""Do written captions help retrieval? python tools/study_written_captions.py [--share 0.05] [--seeds 0 1 2] [--out DIR]

XGPT's use of its captions (Xia et al. 2020), on the embedded scenes: people's captions are kept of a share of the
training images alone. For each seed are trained, from random weights:

1. captioning/xgpt_small on these captions, which then describes all other images (`vlp data caption`);
2. clip_small on people's captions alone;
3. the same on people's captions and the written ones;
4. the same on all of people's captions: what could be reached at best.

Prints R@1 of 200 held-out images both ways, means with standard deviations, and writes DIR/table.json. Overrides after
`--captioning` and `--retrieval` change the runs, as trainer.max_steps=500. What is there already isn't made again, so a
command that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.format import Sample
from data_pipelines.shards.reader import ShardReader
from data_pipelines.written_captions import changed_data_set
from vlp.checkpoints.load import write_atomically
from vlp.commands import data, retrieve, train
from vlp.commands.command import open_console, run_command, whole_number
from vlp.config import ConfigError, load_config
from vlp.distributed import derive_seed
from vlp.run_folder import RunFolder
from vlp.shipped import config_file

GALLERY = 200
PER_CAPTION = ("foils", "caption_regions", "meanings")  # facts of scenes that go along with captions
DIRECTIONS = ("text_to_image", "image_to_text")
ARMS = {"people": "people's alone", "written": "and written ones", "all": "people's, of all images"}


def keep_share(share: float, images: int, seed: int) -> set[int]:
    """The images whose captions stay."""
    order = np.random.default_rng(derive_seed("captions that stay", seed)).permutation(images)
    return set(order[: round(share * images)].tolist())


def bare(sample: Sample) -> Sample:
    """The sample without captions."""
    facts = {**sample.facts, **{name: [] for name in PER_CAPTION if name in sample.facts}}
    return replace(sample, captions=[], facts=facts)


def done(code: int, what: str) -> None:
    """Go on if a command has done its work.

    Raises:
        ConfigError: it hasn't.
    """
    if code:
        raise ConfigError(f"{what} ended with the exit code {code}; the same command goes on once its cause is mended")


def trained(name: str, run: Path, source: str, root: Path, seed: int, overrides: list[str]) -> Path:
    """The finished run of a configuration on a data set."""
    settings = [f"data.root={root}", f"run_dir={run}", f"seed={seed}", f"data.sources.0.path={source}"]
    settings += ["data.sources.0.scenes=null", f"data.tokenizer.vocabulary={source}/vocabulary.txt", *overrides]
    config = load_config(config_file(name), settings)
    if run.exists() and RunFolder(run).finished(config):
        return run
    done(train.main([name, *settings, *(["--resume", "last"] if run.exists() else [])]), f"vlp train {name}")
    return run


def recall(run: Path) -> dict[str, float]:
    """R@1 in percent by direction."""
    done(retrieve.main([str(run), "--gallery", str(GALLERY), "--pictures", "0"]), f"vlp retrieve {run}")
    (path,) = run.glob("retrieval-val-*.json")
    found: dict[str, Any] = json.loads(path.read_text())["model"]
    return {direction: 100 * found[direction]["recall_at_1"] for direction in DIRECTIONS}


def of_seed(seed: int, given: argparse.Namespace, console: Console) -> dict[str, dict[str, float]]:
    """R@1 of each arm."""
    root, runs = given.out / "data", given.out / f"seed{seed}"
    people, written = f"people{seed}", f"written{seed}"
    reader = ShardReader(root / "scenes", "train")
    kept = keep_share(given.share, len(reader), seed)
    if not (root / people).exists():
        with console.status("taking captions away"):
            changed_data_set(root / "scenes", root / people, "train", lambda n, s: s if n in kept else bare(s))
    writer = trained("captioning/xgpt_small", runs / "writer", people, root, seed, given.captioning)
    if not (root / written).exists():
        done(data.main(["caption", str(writer), str(root / people), "--out", str(root / written)]), "vlp data caption")
    sources = {"people": people, "written": written, "all": "scenes"}
    return {
        arm: recall(trained("clip_small", runs / arm, source, root, seed, given.retrieval))
        for arm, source in sources.items()
    }


def work(arguments: list[str]) -> None:
    """Train, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.05, help="of the images whose captions stay (default: 0.05)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of all that is drawn (default: 0 1 2)")
    parser.add_argument("--scenes", type=whole_number, default=20000, help="images for training (default: 20000)")
    parser.add_argument("--out", type=Path, default=Path("runs/written_captions"), help="folder (default: %(default)s)")
    parser.add_argument("--captioning", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of that training")
    parser.add_argument("--retrieval", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of these trainings")
    given = parser.parse_args(arguments)
    console = open_console()
    scenes = given.out / "data" / "scenes"
    if not scenes.exists():
        scenes.parent.mkdir(parents=True, exist_ok=True)
        build_scenes(scenes, given.scenes, 1000, 0, console.print)
    found = {seed: of_seed(seed, given, console) for seed in given.seeds}
    table = Table("captions to train on", *(f"R@1, {d.replace('_', ' ')}" for d in DIRECTIONS))
    for arm, title in ARMS.items():
        cells = []
        for direction in DIRECTIONS:
            values = [found[seed][arm][direction] for seed in given.seeds]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        table.add_row(title, *cells)
    console.print(table)
    listed = {"share": given.share, "scenes": given.scenes, "recall": found}
    write_atomically(given.out / "table.json", json.dumps(listed, indent=1).encode())


if __name__ == "__main__":
    sys.exit(run_command(work, sys.argv[1:]))
