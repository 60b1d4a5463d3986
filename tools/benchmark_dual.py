"""Speed and memory of dual encoders as ratios: python tools/benchmark_dual.py [--pairs N] [--rounds N] [--json FILE].

One contrastive step (forward and backward) of configs/clip_vit_b32.yaml, the same weights and the same batch:

- against open_clip's own model and loss, in turn in one process, with texts of 77 tokens, as long as open_clip pads
  them, and with captions of a usual length, which vlp pads to the longest of the batch only;
- with activations recomputed in chunks (model.recompute_chunk), against the undivided batch: time and peak memory.

Before timing, all losses are checked to be equal. Seconds are medians, ratios medians over rounds with quartiles.
Memory is the peak of two steps above what was held before, of a fresh process for each (see tools/benchmark.py).
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.benchmark import DEVICE, Variant, compare, memory, train_step
from vlp.build import build_model
from vlp.checkpoints.key_map import export_state
from vlp.config import load_config
from vlp.contracts import DualModel
from vlp.interfaces import Batch, Images, Segment, Texts, Tokens
from vlp.needs import FeatureFacts
from vlp.objectives.contrastive import Contrastive
from vlp.registry import IMPORTERS
from vlp.text.clip_bpe import ClipBytePairs

FULL, USUAL, CHUNKED = "vlp, texts of 77", "vlp, usual texts", "vlp, usual texts, in chunks"
OTHER_FULL, OTHER_USUAL = "open_clip, texts of 77", "open_clip, usual texts"
COMPARISONS = [(FULL, OTHER_FULL), (USUAL, OTHER_USUAL), (CHUNKED, USUAL)]
CHUNKS = 8  # of a batch


def made_up_batch(pairs: int, words: int | None, size: int) -> Batch:
    """Noise and texts of random tokens: `words` of them, or from 6 to 24, as captions have."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(6, 25, (pairs,), generator=generator).tolist() if words is None else [words] * pairs
    texts = [torch.randint(1, 40000, (n,), generator=generator).tolist() for n in lengths]
    pixels = torch.randint(0, 256, (pairs * size * size, 3), dtype=torch.uint8, generator=generator)
    segment = Segment.from_tokens([Tokens(ids, [True] * len(ids)) for ids in texts])
    return Batch(
        texts=Texts({"caption": segment}, torch.arange(pairs)),
        images=Images(
            ids=torch.arange(pairs),
            offsets=torch.zeros(pairs + 1, dtype=torch.int64),
            features=torch.zeros(0, 0),
            boxes=torch.zeros(0, 4),
            pixels=pixels,
            sizes=[(size, size)] * pairs,
        ),
        pairs=torch.arange(pairs)[:, None].repeat(1, 2),
        matched=torch.ones(pairs, dtype=torch.bool),
    ).to(DEVICE)


def build_variants(settings: dict[str, Any], pairs: int) -> dict[str, Variant]:
    """All variants for a `model` block; those of vlp share their weights, open_clip's has a copy of them."""
    import open_clip  # takes seconds

    torch.manual_seed(0)
    model: Any = build_model(settings, ClipBytePairs().special, FeatureFacts(0, 0)).to(DEVICE).train()
    name, context = settings["image"]["name"], int(model.text.context_length)
    own = {f"model.{key}": value for key, value in model.state_dict().items()}
    logging.disable(logging.WARNING)  # that its weights are random
    other = open_clip.create_model(
        name,
        embed_dim=model.embedding_size,
        vision_cfg=open_clip.get_model_config(name)["vision_cfg"] | settings["image"].get("settings", {}),
        text_cfg=open_clip.get_model_config(name)["text_cfg"] | settings["text"].get("settings", {}),
    )
    other.load_state_dict(export_state(own, IMPORTERS["open_clip"]))
    other = other.to(DEVICE).train()
    objective, their_loss = Contrastive(), open_clip.ClipLoss()
    size = settings["pixels"]["size"]
    image: Any = model.image
    variants = {}
    for mine, theirs, words in ((FULL, OTHER_FULL, context - 2), (USUAL, OTHER_USUAL, None)):
        batch = made_up_batch(pairs, words, size)
        ids, lengths = model.pad_texts(batch.texts)
        padded = torch.nn.functional.pad(ids, (0, context - ids.shape[1]))
        assert batch.images.pixels is not None
        pixels = (batch.images.pixels.view(pairs, size, size, 3).float() / 255 - image.mean) / image.std
        pictures = pixels.permute(0, 3, 1, 2)

        def ours(batch: Batch = batch) -> torch.Tensor:
            return objective.loss(model(batch), None, cast(DualModel, model))[0]["contrastive"]

        def their(pictures: torch.Tensor = pictures, padded: torch.Tensor = padded) -> torch.Tensor:
            return their_loss(*other(pictures, padded))

        def chunked(ours: Callable[[], torch.Tensor] = ours) -> torch.Tensor:
            model.recompute_chunk = max(pairs // CHUNKS, 1)
            try:
                return ours()
            finally:
                model.recompute_chunk = None

        variants[mine] = Variant(model, ours, int(lengths.sum()))
        variants[theirs] = Variant(other, their, pairs * context)
        if words is None:
            variants[CHUNKED] = Variant(model, chunked, int(lengths.sum()))
    return variants


def check_same_losses(variants: dict[str, Variant]) -> None:
    """Raise an ArithmeticError if two variants that are compared differ by more than rounding."""
    with torch.no_grad():
        losses = {name: variant.loss().item() for name, variant in variants.items()}
    for first, second in COMPARISONS:
        if abs(losses[first] - losses[second]) > 1e-4 * abs(losses[first]):
            raise ArithmeticError(f"{first} has the loss {losses[first]}, {second} {losses[second]}")


def peak_bytes(name: str, settings: dict[str, Any], pairs: int) -> int:
    """Peak memory of two steps above what was held before them. Needs a fresh process."""
    variant = build_variants(settings, pairs)[name]
    before = memory(peak=False)
    for _ in range(2):
        train_step(variant)
    return memory(peak=True) - before


def measure(settings: dict[str, Any], pairs: int, rounds: int, say: Callable[[str], None]) -> dict[str, Variant]:
    """Memory of each variant in a process of its own, then a step each to warm up, then `rounds` in turn."""
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")  # bytes; read by glibc when the new processes start
    variants = build_variants(settings, pairs)
    check_same_losses(variants)
    for name, variant in variants.items():
        say(f"memory: {name}")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            variant.peak_bytes = fresh.submit(peak_bytes, name, settings, pairs).result()
        train_step(variant)
        variant.operations = 1  # not counted: both sides do the same
    for number in range(rounds):
        for name, variant in variants.items():
            say(f"round {number + 1} of {rounds}: {name}")
            variant.seconds.append(train_step(variant))
    return variants


def show(variants: dict[str, Variant], compared: dict[str, dict[str, float]], console: Console) -> None:
    """The table: who is compared with whom stands in its last columns."""
    table = Table("variant", "seconds", "peak GiB", "times as fast as", "", "memory")
    others = dict(COMPARISONS)
    for name, variant in variants.items():
        c = compared.get(name)
        times = f"{c['times']:.2f} ({c['low']:.2f}-{c['high']:.2f})" if c else ""
        row = [f"{statistics.median(variant.seconds):.2f}", f"{variant.peak_bytes / 2**30:.2f}"]
        table.add_row(name, *row, others.get(name, ""), times, f"{c['memory']:.0%}" if c else "")
    console.print(table)


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=32, help="pairs of the batch (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant (default: 5)")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    given = parser.parse_args(arguments)
    console = Console(highlight=False)
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, {DEVICE}"
    console.print(f"{machine}, {given.pairs} pairs")
    with console.status("") as status:
        settings = load_config(Path(__file__).resolve().parent.parent / "configs" / "clip_vit_b32.yaml").model
        variants = measure(settings, given.pairs, max(given.rounds, 1), status.update)
    compared = {ours: compare(variants[ours], variants[other]) for ours, other in COMPARISONS}
    show(variants, compared, console)
    if given.json:
        kept = ("seconds", "peak_bytes")
        measured = {name: {key: vars(variant)[key] for key in kept} for name, variant in variants.items()}
        given.json.write_text(json.dumps({"machine": machine, "variants": measured, "compared": compared}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
