"""A small configuration and made-up micro-batches, each a pure function of its place."""

from __future__ import annotations

from pathlib import Path

import torch

from vlp.config import RunConfig, load_config
from vlp.distributed import generator_for
from vlp.interfaces import Batch, Images, Segment, Texts
from vlp.nn.ragged import offsets_of
from vlp.run_folder import DataFacts
from vlp.text.wordpiece import WordPiece

FACTS = DataFacts(feature_size=24, class_names=[f"class {n}" for n in range(7)], fingerprints={"made_up": "0"})

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
  norm_eps: 1e-12
  initial_std: 0.02
  layout: [CLS, caption, SEP, regions]
  layout_types: [0, 0, 0, 1]
  max_tokens: {caption: 20}
  embedder: {type: uniter, vocab_size: 50, positions: 32, types: 2}
objectives:
  - {name: mlm, sampling_ratio: 2, objectives: [{type: masked_language, probability: 0.15, segments: [caption]}]}
  - name: itm
    sampling_ratio: 2
    objectives: [{type: matching, swap_probability: 0.5}, {type: word_region_alignment, loss_weight: 0.1}]
  - {name: mrfr, sampling_ratio: 1, objectives: [{type: masked_region_regression, probability: 0.15}]}
  - {name: mrc_kl, sampling_ratio: 1, objectives: [{type: masked_region_distribution, probability: 0.15}]}
data:
  root: .
  tokenizer: {vocabulary: vocabulary.txt, lowercase: false}
  sources: [{name: made_up, path: made_up}]
  micro_batch: 4
  micro_batches_per_step: 4
optim:
  lr: 1e-3
  betas: [0.9, 0.98]
  warmup_steps: 4
  groups:
    - {match: 'norm|bias', weight_decay: 0}
    - {match: '.*', weight_decay: 0.01}
trainer: {max_steps: 12, accelerator: cpu, gradient_clip_val: 5}
validation: {every: 5, micro_batches: 3}
checkpoint: {every: 4, keep: 2}
"""


def config(folder: Path, overrides: list[str]) -> RunConfig:
    path = folder / "made_up.yaml"
    path.write_text(CONFIG)
    return load_config(path, [f"run_dir={folder / 'run'}", *overrides])


def tokenizer(folder: Path) -> WordPiece:
    path = folder / "vocabulary.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(40))]))
    return WordPiece(path, lowercase=False)


def load(step: int, micro_batch: int) -> Batch:
    generator = generator_for("cpu", "made up", step, micro_batch)
    count = 4
    lengths = torch.randint(0, 9, (count,), generator=generator)
    regions = torch.randint(1, 6, (count,), generator=generator)
    tokens = torch.randint(5, 45, (int(lengths.sum()),), generator=generator)
    corners = torch.rand(int(regions.sum()), 2, generator=generator) * 0.5
    images = Images(
        ids=torch.randint(0, 1000, (count,), generator=generator),
        offsets=offsets_of(regions),
        features=torch.randn(len(corners), FACTS.feature_size, generator=generator),
        boxes=torch.cat([corners, corners + 0.4], 1),
        scores=torch.rand(len(corners), len(FACTS.class_names), generator=generator).softmax(1),
    )
    numbers = torch.arange(count)
    texts = Texts({"caption": Segment(tokens, offsets_of(lengths), torch.ones_like(tokens, dtype=torch.bool))}, numbers)
    pairs = torch.stack([numbers, numbers], 1)
    matched = torch.ones(count, dtype=torch.bool)
    return Batch(texts, images, pairs, matched, source="made_up", step=step, micro_batch=micro_batch)
