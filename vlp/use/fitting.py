"""How well pictures fit texts, pair by pair, by a run that tells them apart: what re-ranks drawn pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.evaluation.asking import texts_of
from vlp.interfaces import Batch, Images, Regions
from vlp.strict_yaml import ConfigError
from vlp.task_contracts import Run
from vlp.token_contracts import Decoded
from vlp.use.embeddings import embed_images, embed_texts, is_dual

AT_ONCE = 64  # pairs that are read at a time


def require_judge(run: Run, name: str) -> None:
    """Refuse a run that can't tell how well a picture fits a text.

    Raises:
        ConfigError: it is neither a dual encoder nor a token decoder.
    """
    if not is_dual(run) and run.model.offers.result != "decoded":
        raise ConfigError(
            f"{name}: this run is no dual encoder (as of clip_small), nor a token decoder (as of"
            " captioning/cogview_small), so it can't say which pictures fit their texts"
        )


def losses(run: Run, texts: Sequence[str], pictures: Sequence[Regions]) -> Tensor:
    """Of each text and its picture, how unlikely a token decoder finds what stands last in its sequences, the codes or
    the caption, given what stands before: the mean loss of its tokens, float32 [n].

    Source, of captions behind codes: CogView (Ding et al. 2021), section 3.1, the caption loss.
    """
    found = []
    for first in range(0, len(texts), AT_ONCE):
        own = slice(first, first + AT_ONCE)
        words = texts_of(run, [{"caption": text} for text in texts[own]])
        shown = Images.from_regions(list(pictures[own]), range(len(pictures[own])))
        row = torch.arange(len(shown.ids))
        batch = run.prepared(Batch(words, shown, torch.stack([row, row], 1), torch.ones(len(row), dtype=torch.bool)))
        with torch.inference_mode():
            found.append(_of_last_part(run.model, run.model(batch)).cpu())
    return torch.cat(found) if found else torch.zeros(0)


def _of_last_part(model: Any, decoded: Decoded) -> Tensor:
    template = model.template
    if not template.text_last:
        logits, labels = model.logits(decoded.code_states, "codes"), decoded.codes
        weight = torch.ones_like(labels, dtype=torch.float32)
    else:  # the caption, without the commands before it
        last = slice(-(len(template.items) - 1 - template.items.index("caption") + template.most), None)
        logits = model.logits(decoded.text_states[:, last], "text")
        labels, weight = decoded.text[:, last], decoded.text_weight[:, last]
        weight = weight * (labels < template.text_offset + template.words + len(template.own_commands))  # no padding
    each = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return (each.view_as(labels) * weight).sum(1) / weight.sum(1).clamp(min=1)


def fits(run: Run, texts: Sequence[str], pictures: Sequence[Regions]) -> Tensor:
    """How well each text fits its picture, float32 [n]; larger is better. By a dual encoder, the cosine of the two; by
    a token decoder, the mean logarithm of the probabilities of what stands last in its sequences, see `losses`.
    """
    if is_dual(run):
        return (embed_texts(run, list(texts)) * embed_images(run, list(pictures))).sum(1)
    return -losses(run, texts, pictures)
