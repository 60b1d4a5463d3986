"""Speed and memory as ratios: python tools/benchmark.py train_step [--rounds N] [--json FILE].

`train_step` takes one masked-language step (forward and backward, training mode, equal dropout) of
configs/uniter_base.yaml through two comparisons, each interleaved in one process:

- a ragged batch, against the same weights and batch computed with padding: blank regions make every sequence as long
  as the longest; they go through every layer and a mask hides them from attention. On both sides only masked tokens
  go through the vocabulary, and before timing both losses (without dropout) are checked to be equal;
- a batch of equal lengths, against transformers' VisualBertForPreTraining of the same size, as it is shipped: its only
  attention is written out (no SDPA), and every row goes through the vocabulary.

Seconds are medians, ratios medians over rounds of other / vlp with quartiles, operations are counted while a step runs.
On a loaded machine threads wait for one another and falsify the times; OMP_NUM_THREADS=1 keeps the ratios. Memory is
measured in a fresh process for each variant: the peak of two steps less what was held before (gradients, activations,
workspace); on a CPU it is resident memory, with an allocator told to give back at once what tensors no longer hold.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from typing import cast

from vlp.build import build_model
from vlp.config import load_config
from vlp.contracts import Encoded
from vlp.interfaces import Batch, Images, Ragged, Regions, Segment, Texts
from vlp.models.single_stream import SingleStream
from vlp.needs import FeatureFacts
from vlp.nn.attention import AttentionPlan, Bucket
from vlp.nn.ragged import lengths_of, offsets_of
from vlp.objectives.masked_language import MaskedLanguage, MaskedTokens

RAGGED, PADDED, EQUAL, VISUALBERT = "vlp, ragged", "vlp, padded", "vlp, equal lengths", "VisualBERT"
COMPARISONS = [(RAGGED, PADDED, 1.4), (EQUAL, VISUALBERT, 1.1)]  # ours, the other, how many times faster at least
SPECIAL = {"PAD": 0, "UNK": 100, "CLS": 101, "SEP": 102, "MASK": 103}
FIRST_WORD = 104
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Variant:
    """One side of a comparison: what is trained, its forward pass, the rows it computes; and what was measured."""

    module: nn.Module
    loss: Callable[[], Tensor]
    rows: int
    seconds: list[float] = field(default_factory=list)
    operations: int = 0
    peak_bytes: int = 0


def typical_lengths(mean: float, least: int, most: int) -> list[int]:
    """Sixteen lengths: evenly spaced quantiles of a log-normal distribution (sigma 0.5), clamped."""
    normal = statistics.NormalDist(sigma=0.5)
    values = torch.tensor([normal.inv_cdf((i + 0.5) / 16) for i in range(16)]).exp()
    return (values * mean / values.mean()).round().long().clamp(least, most).tolist()


def made_up_batch(text_lengths: list[int], region_counts: list[int], vocabulary: int, features: int) -> Batch:
    """A clean batch of random words and regions; long captions do not go with many regions."""
    generator, pairs = torch.Generator().manual_seed(0), len(text_lengths)
    lengths, order = torch.tensor(text_lengths), torch.randperm(pairs, generator=generator)
    counts = torch.tensor(region_counts)[order]
    words = torch.randint(FIRST_WORD, vocabulary, (int(lengths.sum()),), generator=generator)
    values = torch.randn(int(counts.sum()), features, generator=generator)
    corners, sizes = torch.rand(2, len(values), 2, generator=generator) / 2
    caption = Segment(words, offsets_of(lengths), torch.ones_like(words, dtype=torch.bool))
    return Batch(
        texts=Texts({"caption": caption}, torch.arange(pairs)),
        images=Images(torch.arange(pairs), offsets_of(counts), values, torch.cat([corners, corners + sizes], 1)),
        pairs=torch.arange(pairs)[:, None].repeat(1, 2),
        matched=torch.ones(pairs, dtype=torch.bool),
    )


def with_padding(batch: Batch, model: SingleStream) -> tuple[Batch, AttentionPlan]:
    """The batch with blank regions behind each image's own, and the plan whose mask hides them from attention.

    All sequences become as long as the longest. Pair i is text i and image i, and regions end the layout.
    """
    lengths, images = lengths_of(model.layout.assemble(batch).offsets), batch.images
    longest, split = int(lengths.max()), lengths_of(images.offsets).tolist()
    blank = [(0, 0, 0, longest - length) for length in lengths.tolist()]
    features, boxes = map(pad, images.features.split(split), blank), map(pad, images.boxes.split(split), blank)
    images = Images.from_regions(list(map(Regions, features, boxes)), range(len(blank)))
    padded = replace(batch, images=images).to(lengths.device)
    mask = torch.arange(longest, device=lengths.device) < lengths[:, None]
    return padded, AttentionPlan([Bucket(len(mask), longest, None, mask[:, None, None])], None, mask.numel())


def encode_padded(model: SingleStream, batch: Batch, plan: AttentionPlan) -> Encoded:
    """`SingleStream.forward` for what `with_padding` returns."""
    sequences = model.layout.assemble(batch)
    rows = model.encoder(model.embedder(batch, sequences), plan)
    stream = Ragged(rows, sequences.offsets)
    assert model.pooler is not None
    pooled = {"pair": torch.tanh(model.pooler(rows.index_select(0, sequences.offsets[:-1])))}
    return Encoded(stream, stream, model.plan(batch).places, pooled, plan.computed_rows)


def build_visualbert(settings: dict[str, Any]) -> nn.Module:
    """transformers' VisualBertForPreTraining of the size of a `model` block, with random weights, in training mode."""
    from transformers import VisualBertConfig, VisualBertForPreTraining  # an extra of the tests, so not at the top

    config = VisualBertConfig(
        vocab_size=settings["embedder"]["vocab_size"],
        hidden_size=settings["hidden_size"],
        visual_embedding_dim=settings["embedder"]["feature_size"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        intermediate_size=settings["mlp_size"],
        hidden_dropout_prob=settings["dropout"],
        attention_probs_dropout_prob=settings["attention_dropout"],
        layer_norm_eps=settings["norm_eps"],
        initializer_range=settings["initial_std"],
        pad_token_id=SPECIAL["PAD"],
    )
    return VisualBertForPreTraining(config).train().to(DEVICE)


def visualbert_inputs(batch: Batch, targets: MaskedTokens) -> dict[str, Tensor]:
    """The arguments of VisualBertForPreTraining for a corrupted batch of equal lengths."""
    tokens = batch.texts.segments["caption"].tokens.view(len(batch.pairs), -1)
    ids = pad(pad(tokens, (1, 0), value=SPECIAL["CLS"]), (0, 1), value=SPECIAL["SEP"])
    features = batch.images.features.unflatten(0, (len(tokens), -1))
    labels = torch.where(targets.chosen["caption"], targets.labels["caption"], -100).view_as(tokens)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "visual_embeds": features,
        "visual_attention_mask": ids.new_ones(features.shape[:2]),
        "labels": pad(labels, (1, 1 + features.shape[1]), value=-100),
    }


def build_variants(settings: dict[str, Any]) -> dict[str, Variant]:
    """All variants with their inputs, for the `model` block of a configuration; those of vlp share their weights."""
    torch.manual_seed(0)
    vocabulary, features = settings["embedder"]["vocab_size"], settings["embedder"]["feature_size"]
    model = cast(SingleStream, build_model(settings, SPECIAL, FeatureFacts(features, 0)).to(DEVICE))
    words = list(range(FIRST_WORD, vocabulary))
    objective = MaskedLanguage(model, SPECIAL["MASK"], words, 0.15, ["caption"]).to(DEVICE)
    trained = nn.ModuleList([model, objective])

    def corrupted(text_lengths: list[int], region_counts: list[int]) -> tuple[Batch, MaskedTokens]:
        batch = made_up_batch(text_lengths, region_counts, vocabulary, features).to(DEVICE)
        return objective.corrupt(batch, torch.Generator(DEVICE).manual_seed(0))

    def loss(encoded: Encoded, targets: MaskedTokens) -> Tensor:
        return objective.loss(encoded, targets, model)[0]["masked_language"]

    texts, regions = typical_lengths(14, 6, 60), typical_lengths(38, 10, 100)
    ragged, targets = corrupted(texts, regions)
    padded, plan = with_padding(ragged, model)
    equal, equal_targets = corrupted([20 - 2] * 16, [36] * 16)
    other, inputs = build_visualbert(settings), visualbert_inputs(equal, equal_targets)
    return {
        RAGGED: Variant(trained, lambda: loss(model(ragged), targets), sum(texts) + sum(regions) + 2 * 16),
        PADDED: Variant(trained, lambda: loss(encode_padded(model, padded, plan), targets), plan.computed_rows),
        EQUAL: Variant(trained, lambda: loss(model(equal), equal_targets), 16 * (20 + 36)),
        VISUALBERT: Variant(other, lambda: other(**inputs).loss, 16 * (20 + 36)),
    }


def train_step(variant: Variant) -> float:
    """Forward and backward; returns the seconds. On a GPU in bfloat16, as in training."""
    wait = torch.cuda.synchronize if DEVICE.type == "cuda" else lambda: None
    variant.module.zero_grad()
    wait()
    began = time.perf_counter()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
        loss = variant.loss()
    loss.backward()
    wait()
    return time.perf_counter() - began


def memory(peak: bool) -> int:
    """Bytes that this process holds, or the most it has held: on a GPU in tensors, else in main memory."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    # not getrusage, whose maximum a child takes over from the process that started it
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) * 1024


def peak_bytes(name: str, settings: dict[str, Any]) -> int:
    """Peak memory of two steps above what was held before them. Needs a fresh process."""
    variant = build_variants(settings)[name]
    before = memory(peak=False)
    for _ in range(2):
        train_step(variant)
    return memory(peak=True) - before


def check_same_loss(ragged: Variant, padded: Variant) -> None:
    """Raise an ArithmeticError if the losses without dropout differ by more than rounding."""
    ragged.module.eval()
    first, second = ragged.loss().item(), padded.loss().item()
    ragged.module.train()
    if abs(first - second) > 1e-5 * first:
        raise ArithmeticError(f"the loss is {first} ragged and {second} padded: not the same computation")


def measure(settings: dict[str, Any], rounds: int, say: Callable[[str], None]) -> dict[str, Variant]:
    """Memory of each variant in a process of its own, then operations (which warms up), then `rounds` in turn."""
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")  # bytes; read by glibc when the new processes start
    peaks = {}
    for name in (RAGGED, PADDED, EQUAL, VISUALBERT):
        say(f"memory: {name}")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            peaks[name] = fresh.submit(peak_bytes, name, settings).result()
    variants = build_variants(settings)
    check_same_loss(variants[RAGGED], variants[PADDED])
    for name, variant in variants.items():
        say(f"operations: {name}")
        with FlopCounterMode(display=False) as counter:
            train_step(variant)
        variant.operations, variant.peak_bytes = counter.get_total_flops(), peaks[name]
    for number in range(rounds):
        for name, variant in variants.items():
            say(f"round {number + 1} of {rounds}: {name}")
            variant.seconds.append(train_step(variant))
    return variants


def compare(ours: Variant, other: Variant) -> dict[str, float]:
    """How many times as fast ours is (quartiles over the rounds, and by operations), and its share of the memory."""
    ratios = torch.tensor(other.seconds) / torch.tensor(ours.seconds)
    low, times, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    quotients = {"by_operations": other.operations / ours.operations, "memory": ours.peak_bytes / other.peak_bytes}
    return {"times": times, "low": low, "high": high, **quotients}


def show(variants: dict[str, Variant], compared: dict[str, dict[str, float]], console: Console) -> None:
    """The table, and a verdict on each comparison."""
    table = Table("variant", "rows", "TFLOP", "seconds", "times as fast", "peak GiB")
    for name, variant in variants.items():
        c = compared.get(name)
        times = f"{c['times']:.2f} ({c['low']:.2f}-{c['high']:.2f})" if c else ""
        seconds, peak = f"{statistics.median(variant.seconds):.3f}", f"{variant.peak_bytes / 2**30:.2f}"
        table.add_row(name, f"{variant.rows}", f"{variant.operations / 1e12:.3f}", seconds, times, peak)
    console.print(table)
    padding = f"padding is {1 - variants[RAGGED].rows / variants[PADDED].rows:.0%} of the padded rows"
    console.print(f"{padding}; VisualBERT as shipped: no SDPA, all rows through the vocabulary", soft_wrap=True)
    for ours, other, target in COMPARISONS:
        c = compared[ours]
        speed = f"{c['times']:.3f} times as fast ({c['by_operations']:.2f} by operations), target {target}"
        speed += ": reached" if c["times"] >= target else ": MISSED"
        memory = f"{c['memory']:.0%} of the memory: {'not above' if c['memory'] <= 1 else 'ABOVE'}"
        console.print(f"{ours} against {other}: {speed}; {memory}", soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Run the command. A missed target is told, but is no error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train_step"])
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("transformers") is None:
        parser.error("transformers, an extra of the tests, is missing: python -m pip install -e '.[test]'")
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, "
    machine += f"{torch.cuda.get_device_name()}, bfloat16" if DEVICE.type == "cuda" else "CPU, float32"
    console = Console(highlight=False)
    console.print(machine)
    with console.status("") as status:
        settings = load_config(Path(__file__).resolve().parent.parent / "configs" / "uniter_base.yaml").model
        variants = measure(settings, max(given.rounds, 1), status.update)
    compared = {ours: compare(variants[ours], variants[other]) for ours, other, _ in COMPARISONS}
    show(variants, compared, console)
    if given.json:
        kept = ("rows", "seconds", "operations", "peak_bytes")
        measured = {name: {key: vars(variant)[key] for key in kept} for name, variant in variants.items()}
        given.json.write_text(json.dumps({"machine": machine, "variants": measured, "compared": compared}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
