"""Pictures of texts, by a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlp.evaluation.asking import texts_of
from vlp.interfaces import NONE, Batch, Images, Regions
from vlp.strict_yaml import ConfigError
from vlp.task_contracts import Run
from vlp.use.fitting import fits
from vlp.writing.filters import begins
from vlp.writing.guided import Guided
from vlp.writing.settings import Writing
from vlp.writing.writer import Writer

AT_ONCE = 64  # pictures that are drawn at a time


@dataclass(frozen=True)
class Drawn:
    """A picture: `pixels` uint8 [s, s, 3]; `score`, the mean of the logarithms of its codes' probabilities; `codes`
    int64 [n].
    """

    pixels: Tensor
    score: float
    codes: Tensor


def draws_pictures(run: Run) -> bool:
    """Whether the run's model writes codes of pictures."""
    return "codes" in run.model.offers.writes


def require_drawing(run: Run) -> None:
    """Refuse a run that can't draw.

    Raises:
        ConfigError: its model writes no codes.
    """
    if not draws_pictures(run):
        raise ConfigError("this run draws no pictures of texts; take one of a token decoder, as dalle_small trains")


def codes_of(run: Run, picture: Regions) -> Tensor:
    """The codes int64 [n] of a picture that is as large as the pictures of the run, of a token decoder."""
    images = Images.from_regions([picture], [0])
    assert images.pixels is not None
    codes: Tensor = run.model.pictures.encode(replace(images, pixels=images.pixels.to(run.device)))
    return codes[0].cpu()


@torch.inference_mode()
def draw(
    run: Run, texts: Sequence[str], how: Writing, guidance: float | None = None, begin: Sequence[int] = ()
) -> list[list[Drawn]]:
    """`how.beams` pictures of each text, the likeliest first. Each is a function of the run, the seed, the text and the
    number of the picture, whatever is drawn beside it.

    Args:
        run: of a token decoder.
        how: which search; samples as a rule.
        guidance: how much the text counts (`vlp.writing.guided.Guided`); None: as learned.
        begin: codes that every picture begins with.

    Raises:
        ConfigError: see `require_drawing`.
        ValueError: pictures begin with as many codes as they have, or the filters leave none.
    """
    require_drawing(run)
    model: Any = run.model
    height, width = model.pictures.grid
    if len(begin) >= height * width:
        raise ValueError(f"a picture can't begin with {len(begin)} codes, since it has {height * width}")
    found: list[list[Drawn]] = []
    some = max(AT_ONCE // how.beams, 1)
    for first in range(0, len(texts), some):
        chunk = texts[first : first + some]
        batch = run.prepared(_without_images(texts_of(run, [{"caption": text} for text in chunk])))
        writer: Writer = model.writer(batch, "codes")
        if guidance is not None:
            empty = replace(batch, pairs=torch.full_like(batch.pairs, NONE))
            writer = Guided(writer, model.writer(empty, "codes"), guidance)
        filters = [begins(begin)] if begin else []
        written = how.texts(writer, chunk, height * width, None, run.device, how.beams, filters)
        codes = torch.tensor([one.tokens for own in written for one in own], device=run.device)
        pictures = iter(model.pictures.decode(codes).cpu())
        each = iter(codes.cpu())
        found += [[Drawn(next(pictures), one.score, next(each)) for one in own] for own in written]
    return found


def reranked(by: Run, texts: Sequence[str], drawn: Sequence[Sequence[Drawn]]) -> list[list[tuple[float, Drawn]]]:
    """The pictures of each text with how well they fit it by another run (`vlp.use.fitting.fits`), the best first."""
    pairs = [(text, one) for text, own in zip(texts, drawn, strict=True) for one in own]
    shown = by.make_images([one.pixels.numpy() for _, one in pairs])
    scores = iter(fits(by, [text for text, _ in pairs], shown).tolist())
    return [sorted(((next(scores), one) for one in own), key=lambda item: -item[0]) for own in drawn]


def _without_images(texts: Any) -> Batch:
    count = len(texts.ids)
    none = torch.zeros(0, dtype=torch.int64)
    images = Images(none, torch.zeros(1, dtype=torch.int64), torch.zeros(0, 0), torch.zeros(0, 4))
    pairs = torch.stack([torch.arange(count), torch.full((count,), NONE)], 1)
    return Batch(texts, images, pairs, torch.ones(count, dtype=torch.bool))
