"""What the victims train: small data sets, some of their samples broken, and a model that is done in a second."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from made_up_shards import CLASSES, FEATURES, make_sample, write_vocabulary

from data_pipelines.shards.format import Manifest, write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.shards.reader import ShardReader

STEPS = 12
SOURCES = {"a": (90, 2), "b": (40, 1), "c": (30, 1)}  # pairs of training samples and ratio
HELD_OUT = 12
CONFIG = """
seed: 3
run_dir: RUN
model:
  type: single_stream
  hidden_size: 32
  layers: 2
  heads: 2
  mlp_size: 64
  dropout: 0.1
  attention_dropout: 0.1
  norm_eps: 1.0e-12
  initial_std: 0.02
  layout: [CLS, caption, SEP, regions]
  layout_types: [0, 0, 0, 1]
  max_tokens: {caption: 20}
  embedder: {type: uniter, vocab_size: 20, positions: 32, types: 2}
objectives:
  - {name: mlm, sampling_ratio: 2, objectives: [{type: masked_language, probability: 0.15, segments: [caption]}]}
  - name: itm
    sampling_ratio: 2
    objectives: [{type: matching, swap_probability: 0.5}, {type: word_region_alignment, loss_weight: 0.1}]
  - {name: mrfr, sampling_ratio: 1, objectives: [{type: masked_region_regression, probability: 0.15}]}
  - {name: mrc_kl, sampling_ratio: 1, objectives: [{type: masked_region_distribution, probability: 0.15}]}
data:
  root: ROOT
  tokenizer: {vocabulary: vocabulary.txt, lowercase: true}
  sources: [{name: a, path: a}]
  micro_batches_per_step: 4
optim:
  lr: 1.0e-3
  betas: [0.9, 0.98]
  warmup_steps: 4
  groups:
    - {match: 'norm|bias', weight_decay: 0.0}
    - {match: '.*', weight_decay: 0.01}
trainer: {max_steps: 12, accelerator: cpu, gradient_clip_val: 5.0}
validation: {every: 5, micro_batches: 3}
"""


@dataclass(frozen=True)
class Setup:
    """A way to train: `per_step` micro-batches a step, of pairs or of a budget of tokens, from so many sources."""

    processes: int = 1
    workers: int = 0
    per_step: int = 2
    sources: int = 1
    tokens: bool = False
    broken: bool = False
    double: bool = False
    every: int = 3
    keep: int = 2

    def decisive(self) -> Setup:
        """The same with defaults where that must not change a number of the run."""
        return replace(self, workers=0, every=3, keep=3)

    def name(self) -> str:
        """A folder's name."""
        return "-".join(f"{key}_{int(value)}" for key, value in asdict(self).items())

    def arguments(self, work: Path, run_dir: Path) -> list[str]:
        """Arguments of `vlp train` for a new run."""
        listed = [f"{{name: {n}, path: {n}, ratio: {SOURCES[n][1]}}}" for n in list(SOURCES)[: self.sources]]
        changed: dict[str, Any] = {
            "run_dir": run_dir,
            "data.root": work / ("broken" if self.broken else "whole"),
            "data.sources": f"[{', '.join(listed)}]",
            "data.micro_batch_tokens" if self.tokens else "data.micro_batch": 64 if self.tokens else 4,
            "data.micro_batches_per_step": self.per_step,
            "data.workers": self.workers,
            "trainer.devices": self.processes,
            "trainer.precision": "64-true" if self.double else "32-true",
            "checkpoint.every": self.every,
            "checkpoint.keep": self.keep,
        }
        return [str(work / "small.yaml"), *(f"{key}={value}" for key, value in changed.items())]


def draw_setup(rng: random.Random, **fixed: Any) -> Setup:
    """A setup at random, but for what is fixed."""
    drawn = {
        "processes": rng.choice((1, 1, 2)),
        "workers": rng.choice((0, 2)),
        "per_step": rng.choice((2, 4)),
        "sources": rng.choice((1, 2, 3)),
        "tokens": rng.random() < 0.5,
        "broken": rng.random() < 0.5,
        "every": rng.choice((2, 3, 4)),
        "keep": rng.choice((1, 2, 3)),
    }
    return Setup(**{**drawn, **fixed})


def make_data(work: Path) -> None:
    """The configuration, and the data sets twice: `whole`, and `broken`, where some samples fail their checksums."""
    for kind in ("whole", "broken"):
        root = work / kind
        root.mkdir(parents=True)
        write_vocabulary(root / "vocabulary.txt")
        first = 0
        for name, (count, _) in SOURCES.items():
            numbers = {"train": range(first, first + count), "val": range(first + count, first + count + HELD_OUT)}
            for split, own in numbers.items():
                write_split(root / name, split, map(make_sample, own), samples_per_shard=25)
            counts = {split: len(own) for split, own in numbers.items()}
            write_manifest(root / name, Manifest(name, FEATURES, CLASSES, "random numbers", "CC0", counts))
            first += 1000
            if kind == "broken":
                break_samples(root / name)
    (work / "small.yaml").write_text(CONFIG)


def break_samples(folder: Path) -> None:
    """Flip a byte in the text of one sample of `train`, and in the regions of another."""
    index = ShardReader(folder, "train").index
    for number, member in ((3, "json"), (11, "regions")):
        row = index.slice(number, 1).to_pylist()[0]
        path = folder / f"train-{row['shard']:05d}.tar"
        data = bytearray(path.read_bytes())
        data[row[f"{member}_offset"] + row[f"{member}_bytes"] // 2] ^= 255
        path.write_bytes(data)
