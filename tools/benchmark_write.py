"""Speed of writing as ratios: python tools/benchmark_write.py [--pictures N] [--rounds N] [--json FILE].

Captions of 20 words, by the `model` blocks of configs/captioning/oscar_base.yaml (50 and 100 regions, 20 tags) and
configs/captioning/oscar_small.yaml (5 regions, 5 tags), and by a decoder's, configs/xgpt_base.yaml (100 regions) and
configs/captioning/xgpt_small.yaml (5 regions), greedily and with 5 beams, in turn in one process:

- with keys and values kept (vlp), and reading all anew for each word (tests/slow_writing.py);
- against `generate` of transformers' GPT-2 of the same width, depth and vocabulary, with the same number of rows before
  the words. It computes one row for each word; a model that predicts in the place of a mask computes two.

Codes of pictures, 256 and 1,024 of them, by the decoder of configs/dalle_small.yaml, one picture and eight of a text,
greedily: against reading the whole sequence anew for each code, and against the same `generate`.

Before timing, what is written with and without keys kept is checked to be equal. Seconds are medians, ratios medians
over rounds of other / vlp with quartiles. OMP_NUM_THREADS=1 keeps the ratios on a loaded machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slow_writing import SlowWriter

from vlp.build import build_model
from vlp.config import load_config
from vlp.interfaces import Batch, Images, Segment, Texts
from vlp.needs import FeatureFacts
from vlp.tasks.captioning import Captioning, CaptionWriter
from vlp.writing.settings import Writing

ROOT = Path(__file__).resolve().parent.parent
WORDS = 20
SPECIAL = {"PAD": 0, "UNK": 1, "CLS": 2, "SEP": 3, "MASK": 4}
CLASSES = 8
KEPT, ANEW, GPT2 = "vlp", "all anew", "GPT-2, generate"
CASES = {  # configuration, regions, tags, and how many times as fast as anew it should be
    "small, 5 regions": ("captioning/oscar_small", 5, 5, 3),
    "base, 50 regions": ("captioning/oscar_base", 50, 20, 8),
    "base, 100 regions": ("captioning/oscar_base", 100, 20, 8),
    "small decoder, 5 regions": ("captioning/xgpt_small", 5, 0, 3),
    "base decoder, 100 regions": ("xgpt_base", 100, 0, 8),
}
DRAWN = {"pictures, 256 codes": (6, 10), "pictures, 1,024 codes": (3, 10)}  # side of a patch, and the ratio wanted
Work = Callable[[], list[list[int]]]


def made_up_batch(pictures: int, regions: int, tags: int, features: int) -> Batch:
    """Pictures of noise, with tags at random and no caption."""
    numbers = torch.arange(pictures)
    words = torch.randint(5, 900, (pictures * tags,))
    segment = Segment(words, torch.arange(pictures + 1) * tags, torch.ones_like(words, dtype=torch.bool))
    none = Segment(words[:0], torch.zeros(pictures + 1, dtype=torch.int64), segment.word_starts[:0])
    corners = torch.rand(pictures * regions, 2, 2).sort(1).values.flatten(1)
    offsets, scores = torch.arange(pictures + 1) * regions, torch.rand(pictures * regions, CLASSES)
    images = Images(numbers, offsets, torch.randn(pictures * regions, features), corners, scores)
    texts = Texts({"caption": none, "tags": segment}, numbers)
    return Batch(texts, images, numbers[:, None].repeat(1, 2), torch.ones(pictures, dtype=torch.bool))


def small_gpt2(block: Mapping[str, Any], vocabulary: int, length: int) -> Any:
    """GPT-2 as wide and as deep as a `model` block says."""
    from transformers import GPT2Config, GPT2LMHeadModel  # an extra of the tests, so not at the top

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=block["hidden_size"],
            n_layer=block["layers"],
            n_head=block["heads"],
            n_inner=block["mlp_size"],
            n_positions=length,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()


def build(case: str, pictures: int, beams: int) -> Mapping[str, Work]:
    """What is compared: each writes the captions of the same pictures."""
    name, regions, tags, _ = CASES[case]
    block = load_config(ROOT / "configs" / f"{name}.yaml", []).model
    features = int(block["embedder"].get("feature_size", 2048 if name.endswith("base") else 512))
    block = block | {"embedder": {k: v for k, v in block["embedder"].items() if k != "feature_size"}}
    block["max_tokens"] = block["max_tokens"] | {"caption": WORDS}
    torch.manual_seed(0)
    model: Any = build_model(block, SPECIAL, FeatureFacts(features, CLASSES)).eval()
    vocabulary = len(model.tied("word_embeddings"))
    task = Captioning(model, SPECIAL["MASK"], SPECIAL["SEP"], list(range(5, vocabulary))).eval()
    batch = made_up_batch(pictures, regions, tags, features)
    how = Writing(beams=beams, least_length=WORDS - 1)  # none ends before

    def write(writer: type) -> list[list[int]]:
        given = ([*range(pictures)], WORDS, SPECIAL["SEP"], torch.device("cpu"))
        return [best.tokens for (best,) in how.texts(writer(task, model, batch), *given)]

    gpt2 = small_gpt2(block, vocabulary, 512)
    before = torch.randn(pictures, 2 + regions + tags, block["hidden_size"])

    def generate() -> list[list[int]]:
        length = {"max_new_tokens": WORDS, "min_new_tokens": WORDS, "pad_token_id": 0}
        seen = torch.ones(before.shape[:2], dtype=torch.int64)
        with torch.no_grad():
            ids = gpt2.generate(inputs_embeds=before, attention_mask=seen, num_beams=beams, do_sample=False, **length)
        return [list(map(int, row)) for row in ids]

    return {KEPT: lambda: write(CaptionWriter), ANEW: lambda: write(SlowWriter), GPT2: generate}


def build_drawing(case: str, pictures: int) -> Mapping[str, Work]:
    """What is compared: each draws pictures of one text."""
    block = load_config(ROOT / "configs" / "dalle_small.yaml", []).model
    block |= {"pictures": block["pictures"] | {"patch": DRAWN[case][0]}}
    torch.manual_seed(0)
    model: Any = build_model(block, {**SPECIAL}, FeatureFacts(0, 0)).eval()
    caption, none = (
        Segment(torch.arange(5, 25), torch.tensor([0, 20]), torch.ones(20, dtype=torch.bool)),
        torch.zeros(0),
    )
    images = Images(none.long(), torch.zeros(1, dtype=torch.int64), none.view(0, 0), none.view(0, 4))
    pairs = torch.tensor([[0, -1]]).repeat(pictures, 1)
    batch = Batch(Texts({"caption": caption}, torch.zeros(1, dtype=torch.int64)), images, pairs, pairs[:, 0] == 0)
    cells, template = model.template.cells, model.template

    def draw() -> list[list[int]]:
        writer = model.writer(batch, "codes")
        codes: list[Tensor] = []
        for _ in range(cells):
            codes.append(writer.next(codes[-1] if codes else None).argmax(1))
        return [list(map(int, row)) for row in torch.stack(codes, 1)]

    @torch.no_grad()
    def draw_anew() -> list[list[int]]:
        laid = template.lay(caption, batch.pairs[:, 0])[0]
        ids = laid[:, : template.text_before]
        for _ in range(cells):
            chosen = model.predicted(model.read(ids)[:, -1], "codes").argmax(1)
            ids = torch.cat([ids, chosen[:, None] + template.code_offset], 1)
        return [list(map(int, row)) for row in ids[:, template.text_before :] - template.code_offset]

    rows = len(model.tied("word_embeddings"))
    gpt2 = small_gpt2(block, rows, template.length)

    def generate() -> list[list[int]]:
        before = torch.ones(pictures, template.text_before, dtype=torch.int64)
        length = {"max_new_tokens": cells, "min_new_tokens": cells, "pad_token_id": 0}
        with torch.no_grad():
            ids = gpt2.generate(before, attention_mask=before, do_sample=False, **length)
        return [list(map(int, row[-cells:])) for row in ids]

    return {KEPT: draw, ANEW: draw_anew, GPT2: generate}


def check(works: Mapping[str, Work]) -> None:
    """Raise an ArithmeticError where the captions differ, or are not of the same length."""
    written = {name: work() for name, work in works.items()}
    if written[KEPT] != written[ANEW]:
        raise ArithmeticError(f"kept keys write {written[KEPT]}, reading anew {written[ANEW]}")
    lengths = [{len(text) for text in written[name]} for name in (GPT2, KEPT)]
    if len(lengths[0] | lengths[1]) > 2 or max(lengths[0]) - max(lengths[1]) not in (
        0,
        1,
    ):  # a caption's end is left out
        raise ArithmeticError(f"texts of other lengths: {written}")


def seconds_of(work: Work) -> float:
    """How long it takes once."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(other: list[float], ours: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the rounds' ratios."""
    ratios = torch.tensor(other) / torch.tensor(ours)
    low, times, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return low, times, high


def show(measured: Mapping[str, Mapping[str, list[float]]], console: Console) -> None:
    """A line for each case."""
    table = Table("case", "seconds", f"against {ANEW}", "wanted", f"against {GPT2}")
    for title, seconds in measured.items():
        case = title.rpartition(", ")[0]
        wanted = DRAWN[case][1] if case in DRAWN else CASES[case][3]
        ratios = []
        for other in (ANEW, GPT2):
            low, times, high = ratio(seconds[other], seconds[KEPT])
            ratios.append(f"{times:.2f} ({low:.2f}-{high:.2f})")
        table.add_row(title, f"{statistics.median(seconds[KEPT]):.3f}", ratios[0], str(wanted), ratios[1])
    console.print(table)


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8, help="pictures that are described (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each (default: 3)")
    parser.add_argument("--case", action="append", choices=[*CASES, *DRAWN], help="one of the cases (default: all)")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    given = parser.parse_args(arguments)
    console = Console(highlight=False)
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, CPU"
    console.print(f"{machine}, {given.pictures} pictures, {WORDS} words")
    ways = {1: "greedy", 5: "5 beams"}
    measured: dict[str, dict[str, list[float]]] = {}
    with console.status("") as status:
        for case in given.case or [*CASES, *DRAWN]:
            for count in (1, 8) if case in DRAWN else (1, 5):
                title = f"{case}, {f'{count} of a text' if case in DRAWN else ways[count]}"
                status.update(f"{title}: are they equal?")
                works = build_drawing(case, count) if case in DRAWN else build(case, given.pictures, count)
                check(works)
                seconds: dict[str, list[float]] = {name: [] for name in works}
                for number in range(max(given.rounds, 1)):
                    status.update(f"{title}: round {number + 1} of {given.rounds}")
                    for name, work in works.items():
                        seconds[name].append(seconds_of(work))
                measured[title] = seconds
    show(measured, console)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "seconds": measured}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
