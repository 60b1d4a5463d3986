"""The first 50 losses of a small model of each family, and how far rounding moves them.

As a command, `python tests/training/golden_losses.py` trains anew and writes `golden_losses.json`.

All is computed in float64. Weights and data are drawn in it too, since normal numbers drawn in float32 differ in their
last bit between machines with other vector instructions.
A release of torch whose generators draw other numbers (for weights, masks, dropout and the data here) changes the
losses without a fault of ours, as does one of open_clip that builds its tower otherwise: then store them anew.

Measured with torch 2.14 on a machine with AVX-512, the largest relative difference of any of the 50 losses:

- Rounding of float64, 4e-16 to 2e-15: every weight moved by one unit in the last place, two threads for one, kernels
  without vector instructions. Another machine is taken to differ as these do.
- Rounding of float32, 2e-7 to 8e-7: every weight moved by one float32 unit in the last place.
- Real changes, of the single stream: weight decay 0.010001 for 0.01, 2e-8; Adam's epsilon 1.01e-6 for 1e-6, 3e-7; its
  beta 0.98001 for 0.98, 2e-6; without its bias correction, 1e-1; one number of one sample of one step by 0.1 %, 3e-7;
  epsilon of norms 1e-5 for 1e-12, 2e-5; a loss weight 0.1001 for 0.1, 3e-5; dropout 0.1001 for 0.1, 1e-2.
- One parameter alone, whichever of any family, moved by about 1e-4: 7e-7 and more.

The tolerance, 1e-9, is 600 000 times what float64's rounding makes, and a twentieth of the least real change.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import made_up
import torch
from rich.console import Console

from data_pipelines.datamodule import DataModule
from vlp.distributed import generator_for
from vlp.interfaces import Batch, Images, Segment, Texts
from vlp.nn.ragged import offsets_of
from vlp.run_folder import RunFolder
from vlp.training.fit import build_module, fit
from vlp.training.launch import cluster_environment
from vlp.training.module import TrainingModule
from vlp.training.prepare import PreparedLoader

STORED = Path(__file__).with_name("golden_losses.json")
HOW = (
    "Written by golden_losses.py, which says more. Tolerance and measured are relative differences, the largest of the"
    " 50 losses. The tolerance is a hundredth of what moving every weight by one float32 ulp makes, cut to a power of"
    " ten."
)
SIMPLE_KERNELS = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}

Load = Callable[[int, int], Batch]
Change = Callable[[TrainingModule], None]

COMMON = [
    "trainer={accelerator: cpu, devices: 1, precision: 64-true, gradient_clip_val: 5, max_steps: 50}",
    "optim.warmup_steps=5",
    "data.micro_batches_per_step=2",
    "validation={every: 50, micro_batches: 1}",
    "checkpoint.every=50",
]
# larger weights than usual, so that each part of so small a model has a say in the losses
SINGLE_STREAM = ["model.initial_std=0.2"]
TWO_STREAM = [
    """model={
  type: two_stream, hidden_size: 32, heads: 2, mlp_size: 64,
  visual_hidden_size: 24, visual_heads: 3, visual_mlp_size: 48, cross_hidden_size: 16, cross_heads: 2,
  schedule: [text, visual, cross, text, visual, cross],
  cross_shared: false, cross_self_attention: true, pooling: product,
  dropout: 0.1, attention_dropout: 0.1, norm_eps: 1.0e-12, initial_std: 0.2,
  layout: [CLS, caption, SEP, whole, regions], layout_types: [0, 0, 0, 0, 0], max_tokens: {caption: 20},
  embedder: {type: two_stream, vocab_size: 50, positions: 32, types: 2, box_numbers: 5, separate_norms: false}}""",
    """objectives=[{name: all, sampling_ratio: 1, objectives: [
  {type: matching, swap_probability: 0.5},
  {type: masked_language, probability: 0.15, segments: [caption]},
  {type: masked_region_distribution, probability: 0.15, loss_weight: 0.5}]}]""",
]
DUAL_ENCODER = [
    """model={
  type: dual_encoder, max_tokens: {caption: 20}, pixels: {size: 16},
  image: {type: open_clip_image, name: ViT-B-32, embedding_size: 16, mean: [0.5, 0.5, 0.5], std: [0.3, 0.3, 0.3],
    settings: {image_size: 16, patch_size: 8, width: 32, layers: 2, head_width: 16}},
  text: {type: bert_text, pooling: mean, embedding_size: 16, bert: {
    vocab_size: 50, positions: 32, hidden_size: 32, layers: 2, heads: 2, mlp_size: 64,
    dropout: 0.1, attention_dropout: 0.1}},
  logit_scale: 2.6592600}""",
    "objectives=[{name: contrast, sampling_ratio: 1, objectives: [{type: contrastive}]}]",
    "data.micro_batch=12",
    "data.micro_batches_per_step=1",
]


def load_regions(step: int, micro_batch: int) -> Batch:
    """`made_up`'s batch with class scores that differ more, so that there is something to learn of them."""
    batch = made_up.load(step, micro_batch)
    assert batch.images.scores is not None
    scores = batch.images.scores**8
    return replace(batch, images=replace(batch.images, scores=scores / scores.sum(1, keepdim=True)))


def load_pictures(step: int, micro_batch: int) -> Batch:
    """Twelve pairs of different kinds out of twenty; a kind has a color, and a word that its texts begin with."""
    count, kinds, side = 12, 20, 16
    generator = generator_for("cpu", "made-up pictures", step, micro_batch)
    colors = torch.randint(0, 200, (kinds, 3), generator=generator_for("cpu", "colors"))
    kind = torch.randperm(kinds, generator=generator)[:count]
    offsets = offsets_of(torch.randint(1, 9, (count,), generator=generator))
    tokens = torch.randint(5, 45, (int(offsets[-1]),), generator=generator)
    tokens[offsets[:-1]] = 5 + kind
    noise = torch.randint(0, 56, (count, side * side, 3), generator=generator)
    numbers = torch.arange(count)
    images = Images(
        ids=numbers,
        offsets=torch.zeros(count + 1, dtype=torch.int64),
        features=torch.zeros(0, 0),
        boxes=torch.zeros(0, 4),
        pixels=(colors[kind][:, None] + noise).flatten(0, 1).to(torch.uint8),
        sizes=[(side, side)] * count,
    )
    texts = Texts({"caption": Segment(tokens, offsets, torch.ones_like(tokens, dtype=torch.bool))}, numbers)
    pairs, matched = torch.stack([numbers, numbers], 1), torch.ones(count, dtype=torch.bool)
    return Batch(texts, images, pairs, matched, source="made_up", step=step, micro_batch=micro_batch)


@dataclass(frozen=True)
class Family:
    """Batches, and what differs from `made_up`'s configuration."""

    overrides: list[str]
    load: Load


FAMILIES = {
    "single_stream": Family(SINGLE_STREAM, load_regions),
    "two_stream": Family(TWO_STREAM, load_regions),
    "dual_encoder": Family(DUAL_ENCODER, load_pictures),
}


@contextmanager
def in_float64() -> Iterator[None]:
    """Weights and data are drawn in float64; afterwards torch's settings are those of before."""
    deterministic, dtype = torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic)  # which the trainer sets


def first_losses(
    name: str, overrides: Sequence[str] = (), change: Change | None = None, load: Load | None = None
) -> list[float]:
    """The losses of a family's 50 steps.

    Args:
        name: of the family.
        overrides: of its configuration.
        change: called with the module before the first step.
        load: gives the batches, if not the family's.
    """
    family = FAMILIES[name]
    load = load or family.load
    with tempfile.TemporaryDirectory() as folder, in_float64():
        config = made_up.config(Path(folder), [*COMMON, *family.overrides, *overrides])
        tokenizer, run = made_up.tokenizer(Path(folder)), RunFolder(Path(config.run_dir))
        per_step = config.data.micro_batches_per_step
        run.create(config, tokenizer, made_up.FACTS)
        module = build_module(config, tokenizer, made_up.FACTS)
        if change is not None:
            change(module)
        data = DataModule(PreparedLoader(load, module.preparation), per_step, workers=0)
        console = Console(quiet=True)
        fit(config, module, run, data, [load(-1, 0)], console, None, per_step, cluster_environment(1, 1))
        return [row["loss"] for row in run.read_rows()]


def moved(ulp: float, seed: int) -> Change:
    """Moves every weight by one unit in the last place, up or down at random; `ulp` is that of 1."""

    @torch.no_grad()
    def move(module: TrainingModule) -> None:
        generator = generator_for("cpu", "moved", seed)
        for parameter in module.parameters():
            up = torch.randint(0, 2, parameter.shape, generator=generator).double()
            parameter.mul_(1 + ulp * (2 * up - 1))

    return move


ONE_FLOAT32_ULP, ONE_FLOAT64_ULP = 2.0**-23, 2.0**-52


def difference(loss: float, stored: float) -> float:
    """The relative difference of a loss."""
    return abs(loss - stored) / abs(stored)


def compare(name: str, losses: Sequence[float], stored: dict[str, Any]) -> None:
    """Compare a family's losses with what is stored of it.

    Raises:
        AssertionError: one is beyond the tolerance; the message names the first.
    """
    assert len(losses) == len(stored["losses"]), f"{name}: {len(losses)} losses, but {len(stored['losses'])} are stored"
    for step, (loss, expected) in enumerate(zip(losses, stored["losses"], strict=True), 1):
        apart = difference(loss, expected)
        assert apart <= stored["tolerance"], (
            f"{name}: the loss of step {step} is {loss:.12g}, the stored one {expected:.12g}; they differ by"
            f" {apart:.1e}, the tolerance is {stored['tolerance']:.0e} (see golden_losses.py)"
        )


def measured(name: str) -> dict[str, Any]:
    """A family's losses, how far they move, and the tolerance that follows."""
    losses = first_losses(name)

    def furthest(*others: list[float]) -> float:
        return float(f"{max(difference(*pair) for other in others for pair in zip(other, losses, strict=True)):.1e}")

    torch.set_num_threads(2)
    threads = first_losses(name)
    torch.set_num_threads(1)
    command = [sys.executable, __file__, name]
    told = subprocess.run(command, env={**os.environ, **SIMPLE_KERNELS}, capture_output=True, text=True, check=True)
    ulp32 = furthest(*(first_losses(name, change=moved(ONE_FLOAT32_ULP, seed)) for seed in range(5)))
    return {
        "tolerance": 10.0 ** math.floor(math.log10(ulp32 / 100)),
        "measured": {
            "one float64 ulp": furthest(
                *(first_losses(name, change=moved(ONE_FLOAT64_ULP, seed)) for seed in range(5))
            ),
            "two threads": furthest(threads),
            "no vector instructions": furthest(json.loads(told.stdout.splitlines()[-1])),
            "one float32 ulp": ulp32,
        },
        "losses": [float(f"{loss:.13g}") for loss in losses],
    }


def written(families: dict[str, dict[str, Any]]) -> str:
    """JSON with five losses a line."""
    parts = [f' "how": {json.dumps(HOW)}']
    for name, stored in families.items():
        numbers = [", ".join(f"{loss:.13g}" for loss in stored["losses"][n : n + 5]) for n in range(0, 50, 5)]
        lines = [f'  "{key}": {json.dumps(stored[key])}' for key in ("tolerance", "measured")]
        lines.append('  "losses": [\n   ' + ",\n   ".join(numbers) + "\n  ]")
        parts.append(f' "{name}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Store all families' losses; of the one that is named, print them alone."""
    torch.set_num_threads(1)
    if sys.argv[1:]:
        print(json.dumps(first_losses(sys.argv[1])))
        return
    families = {name: measured(name) for name in FAMILIES}
    STORED.write_text(written(families))
    for name, stored in families.items():
        print(name, stored["tolerance"], stored["measured"])


if __name__ == "__main__":
    main()
