"""Measure what a token decoder draws, of embedded scenes by reading the pictures."""

from __future__ import annotations

import json
import math
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_pipelines.scenes.placing import FAMILY, SIDE
from data_pipelines.scenes.reading import truthfulness
from data_pipelines.scenes.scene_reader import read_scene
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.source import Source
from vlp.checkpoints.load import write_atomically
from vlp.config import ConfigError
from vlp.evaluation.lettering import NO_FONT, families
from vlp.inference import TrainedModel, load
from vlp.interfaces import Images
from vlp.use.fitting import fits, losses, require_judge
from vlp.use.pictures import codes_of, draw, draws_pictures, reranked
from vlp.writing.settings import Writing

ACROSS, DOWN = 4, 3  # pictures of the page
NOT_KNOWN = (
    "it is not known what is in the pictures of {}, so that only the loss is measured; scenes are read, and"
    " rerank_by=RUN names a run that says how well pictures fit their captions"
)
PAIRED = 500  # pairs whose losses are compared with those of others
SHARES = {"captions": "captions true", "entities": "objects found", "relations": "relations true"}


@dataclass
class Drawing:
    """`count`: pictures drawn of each caption, of which the likeliest is measured. `rerank_by`: a run that says how
    well pictures fit their captions, whose best one is measured too. Others: see `vlp.writing.settings.Writing`, and
    `vlp.use.pictures.draw`.
    """

    count: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    guidance: float | None = None
    rerank_by: str | None = None

    def judge(self, device: str) -> TrainedModel | None:
        """The run that judges.

        Raises:
            ConfigError: it can't.
        """
        if self.rerank_by is None:
            return None
        run = load(Path(self.rerank_by), device)
        require_judge(run, f"rerank_by={self.rerank_by}")
        return run

    def how(self) -> Writing:
        """As writing has them."""
        own = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "seed": self.seed}
        return Writing(beams=self.count, search="sample", **own)  # type: ignore[arg-type]  # of these types


def nearest_captions(asked: list[str], known: list[str]) -> list[int]:
    """For each of some captions the number of the known one that shares most words with it, by the Dice coefficient of
    their bags of words (or of signs, where words are not apart); of equal ones the first.
    """
    every = [text.replace(",", " ") for text in [*asked, *known]]
    apart = any(" " in text for text in every)
    bags = [Counter(text.split() if apart else text) for text in every]
    words = {word: n for n, word in enumerate(sorted({word for bag in bags for word in bag}))}
    table = np.zeros((len(bags), len(words)), dtype=np.int16)
    for row, bag in enumerate(bags):
        for word, count in bag.items():
            table[row, words[word]] = count
    ours, theirs = table[: len(asked)], table[len(asked) :]
    sizes = theirs.sum(1)
    return [int((np.minimum(theirs, own).sum(1) / (sizes + own.sum())).argmax()) for own in ours]


def as_scene(pixels: np.ndarray) -> np.ndarray:
    """A picture uint8 [h, w, 3] at the size of scenes."""
    if pixels.shape[:2] == (SIDE, SIDE):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def pictures_of(source: Source, numbers: list[int]) -> list[np.ndarray]:
    """The pictures of samples, as the model's coder sees them, uint8 [s, s, 3]."""
    first = {int(sample): pair for pair, sample in reversed([*enumerate(source.sample_of)])}
    found = []
    for number in numbers:
        regions = source.load(first[number]).regions
        assert regions is not None
        assert regions.pixels is not None
        found.append(regions.pixels.numpy())
    return found


def reproduced(model: TrainedModel, pictures: list[np.ndarray]) -> list[np.ndarray]:
    """What the coder of the model makes of pictures."""
    found: list[np.ndarray] = []
    for first in range(0, len(pictures), 64):
        some = torch.from_numpy(np.stack(pictures[first : first + 64])).to(model.device)
        images = Images(
            ids=torch.arange(len(some)),
            offsets=torch.zeros(len(some) + 1, dtype=torch.int64),
            features=torch.zeros(0, 0),
            boxes=torch.zeros(0, 4),
            pixels=some.flatten(0, 2),
            sizes=[(some.shape[1], some.shape[2])] * len(some),
        )
        with torch.inference_mode():
            found += [*model.model.pictures.decode(model.model.pictures.encode(images)).cpu().numpy()]
    return found


def measured(
    model: TrainedModel, source: Source, training: Source, options: Drawing, most: int, console: Console
) -> tuple[dict[str, Any], list[np.ndarray], list[str]]:
    """Draw the first captions of the first samples of a split, and measure what became of them; returns the rows of the
    report, what was drawn, and the captions.

    The rows are of true pictures (what can be seen at best), of another sample's (chance), of one with the same words
    dealt to other objects (of scenes), of the training picture whose caption shares most words (what a memory gives),
    of the true ones as the coder reproduces them (what it loses), and of those that were drawn. Of scenes, each says
    which share of the captions, of the objects that they name and of the relations that they claim, is true of the
    pictures. With `rerank_by`, `fit` is how well they fit by that run, on average (`vlp.use.fitting.fits`).

    Raises:
        ConfigError: there are too few samples.
    """
    reader = source.reader
    numbers = [number for number in range(min(most, len(reader))) if captions_of(reader, number)]
    facts = [reader.facts(number) for number in numbers]
    scenes = all("objects" in own for own in facts)
    if scenes:  # of whole families, so that each has siblings
        numbers = [number for number in numbers if number < len(reader) // FAMILY * FAMILY]
        facts = facts[: len(numbers)]
    judge = options.judge(str(model.device))
    if len(facts) <= FAMILY:
        raise ConfigError(f"split {reader.split} has {len(facts)} samples; more than {FAMILY} are needed")
    language, texts = facts[0].get("language", "en"), [own["captions"][0] for own in facts]
    true = pictures_of(source, numbers)
    known = [(number, text) for number in range(len(training.reader)) for text in captions_of(training.reader, number)]
    near = [known[n][0] for n in nearest_captions(texts, [text for _, text in known])]
    rows = {"true pictures": true, "other pictures": true[FAMILY:] + true[:FAMILY]}
    if scenes:
        rows["same words, dealt otherwise"] = pictures_of(source, [sibling(number) for number in numbers])
    rows["nearest of training"] = pictures_of(training, near)
    rows["reproduced by the coder"] = reproduced(model, true)
    drawn = draw(model, texts, options.how(), options.guidance)
    likeliest = [own[0].pixels.numpy() for own in drawn]
    rows["drawn"] = likeliest
    if judge is not None:
        best = [own[0][1].pixels.numpy() for own in reranked(judge, texts, drawn)]
        rows["drawn, the best by the judge"] = best
    report: dict[str, Any] = {name: {} for name in rows}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("looking at pictures", total=len(rows) * len(texts))
        for name, pictures in rows.items():
            if judge is not None:
                report[name]["fit"] = float(fits(judge, texts, judge.make_images(pictures)).mean())
            read = []
            for picture in pictures if scenes else []:
                read.append(read_scene(as_scene(picture)))
                progress.advance(bar)
            if scenes:
                report[name] |= truthfulness(zip(texts, read, strict=True), language).shares()
                report[name]["objects"] = sum(len(scene.objects) for scene in read) / len(read)
    return report, likeliest if judge is None else best, texts


def paired_losses(model: TrainedModel, source: Source) -> dict[str, float]:
    """What a token decoder makes of the first captions and pictures of a split, at most `PAIRED`.

    `own`: the mean loss, in nats, of a token of what stands last in its sequences, codes or captions, given what stands
    before (`vlp.use.fitting.losses`). `other`: the same where each has what belongs to another sample before it. `p`:
    how likely so great a difference were by chance, of the paired differences, whose mean is about normal. `unigram`:
    the entropy of these tokens, each for itself, which who knows their frequencies alone can't fall below.

    Raises:
        ConfigError: there are too few samples with captions.
    """
    reader = source.reader
    numbers = [n for n in range(min(PAIRED, len(reader))) if captions_of(reader, n)]
    if len(numbers) <= FAMILY:
        raise ConfigError(
            f"split {reader.split} has {len(numbers)} samples with captions; more than {FAMILY} are needed"
        )
    texts = [captions_of(reader, number)[0] for number in numbers]
    shown = model.make_images(pictures_of(source, numbers))
    own = losses(model, texts, shown)
    if model.model.template.text_last:
        other = losses(model, texts, shown[FAMILY:] + shown[:FAMILY])
        tokens = [word for text in model.tokenizer.encode(texts) for word in text.ids]
    else:
        other = losses(model, texts[FAMILY:] + texts[:FAMILY], shown)
        tokens = torch.cat([codes_of(model, picture) for picture in shown]).tolist()
    away = (other - own).double()
    z = float(away.mean() / (away.std() / math.sqrt(len(away))).clamp(min=1e-12))
    shares = torch.tensor([*Counter(tokens).values()], dtype=torch.float64) / len(tokens)
    return {
        "pairs": len(texts),
        "own": float(own.mean()),
        "other": float(other.mean()),
        "p": math.erfc(abs(z) / math.sqrt(2)),
        "unigram": float(-(shares * shares.log()).sum()),
    }


def captions_of(reader: ShardReader, number: int) -> list[str]:
    """The captions of a sample."""
    captions: list[str] = reader.facts(number)["captions"]
    return captions


def sibling(number: int) -> int:
    """Another scene of the family of a scene, by their numbers."""
    first = number // FAMILY * FAMILY
    return first + (number - first + 1) % FAMILY


def table_of(rows: dict[str, Any], title: str) -> Table:
    """Shares in percent."""
    every = {**{share: (name, 100, 1) for share, name in SHARES.items()}, "objects": ("objects read", 1, 2)}
    every["fit"] = ("fit", 1, 3)
    columns = {key: column for key, column in every.items() if key in rows["drawn"]}
    table = Table("pictures", *(name for name, _, _ in columns.values()), title=title, title_justify="left")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[key] * times:.{digits}f}" for key, (_, times, digits) in columns.items()))
    return table


def sentence_of(told: dict[str, float], what: str) -> str:
    """What `paired_losses` says, in words."""
    return (
        f"{what}: {told['own']:.3f} nats a token given its own {'picture' if what == 'captions' else 'caption'},"
        f" {told['other']:.3f} given another's (p = {told['p']:.1g}, {told['pairs']} pairs), {told['unigram']:.3f} by"
        " frequencies alone"
    )


def draw_page(pictures: list[np.ndarray], texts: list[str], path: Path) -> bool:
    """The first pictures, each above its caption. Returns whether there are fonts for these; they are numbered
    otherwise.
    """
    fonts = families(texts)
    if fonts is None:
        texts = [f"caption {number}" for number in range(1, len(texts) + 1)]
    figure = Figure(figsize=(3.2 * ACROSS, 3.9 * DOWN), layout="constrained")
    for number, axes in enumerate(figure.subplots(DOWN, ACROSS).flat):
        axes.axis("off")
        if number < len(texts):
            axes.imshow(pictures[number])
            title = textwrap.fill(texts[number], 34)
            axes.set_title(title, fontsize=9, y=-0.02, va="top", family=fonts, parse_math=False)
    figure.savefig(path, dpi=100)
    return fonts is not None


def evaluate_pictures(
    model: TrainedModel, source: Source, training: Source, options: Drawing, most: int, folder: Path, console: Console
) -> dict[str, Any]:
    """Measure, print, and write generation-SPLIT.json beside the run's weights, with a page of pictures if it draws.

    Raises:
        ConfigError: see `measured`.
    """
    name = f"generation-{source.reader.split}"
    content = {"data": str(source.reader.folder), "fingerprint": source.reader.fingerprint, **asdict(options)}
    told = content["losses"] = paired_losses(model, source)
    texts: list[str] = []
    written = f"written: {folder / name}.json"
    if draws_pictures(model):
        rows, pictures, texts = measured(model, source, training, options, most, console)
        content |= {"captions": len(texts), **rows}
        if not rows["drawn"]:
            console.print(NOT_KNOWN.format(source.reader.folder), style="yellow", soft_wrap=True)
        else:
            title = f"{len(texts)} captions, split {source.reader.split} of {source.reader.folder}"
            console.print(table_of(rows, title))
        if not draw_page(pictures, texts, folder / f"{name}.png"):
            console.print(NO_FONT, style="yellow", soft_wrap=True)
        written += " and .png"
    console.print(sentence_of(told, "codes" if texts else "captions"), soft_wrap=True, markup=False)
    write_atomically(folder / f"{name}.json", json.dumps(content, indent=1).encode())
    console.print(written, soft_wrap=True, markup=False)
    return content
