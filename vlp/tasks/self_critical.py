"""Self-critical training: captions are drawn, and made likelier by how much better they are than the likeliest words.

Source: Rennie et al. 2017, "Self-critical Sequence Training for Image Captioning", equations 5 to 8, with which the
recipes of Oscar (oscar/run_captioning.py, --scst) and VLP (vlp/scst_utils.py) end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from vlp.contracts import Model, Report
from vlp.interfaces import Batch
from vlp.metrics.cider import Frequencies, cider_d
from vlp.nn.ragged import lengths_of
from vlp.writing.settings import Writing
from vlp.writing.writer import Written


@dataclass(frozen=True)
class Drawing:
    """What captions are drawn from: a `batch` that nothing has touched but that its captions are ended, and a `seed`.

    The seed is drawn with the corruption, so that it is a function of the run's seed and of the place in the run.
    """

    batch: Batch
    seed: int


class Writes(Protocol):
    """What is asked of the task (`vlp.tasks.captioning.Captioning`)."""

    end_id: int
    most_written: int

    def write(self, model: Any, batch: Batch, how: Writing = ...) -> list[list[Written]]:
        """The caption of each pair."""

    def log_probability(self, model: Any, batch: Batch, texts: Sequence[Sequence[int]]) -> Tensor:
        """Of each text, how likely the model writes it, float32 [P], with gradient."""


@contextmanager
def in_evaluation(*modules: nn.Module) -> Iterator[None]:
    """Modules are in evaluation mode, and then each part as it was, for some stay in that mode in training."""
    training = [part for module in modules for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def self_critical(task: Writes, model: Model, drawing: Drawing, frequencies: Frequencies) -> tuple[Tensor, Report]:
    """-(reward of the drawn caption - reward of the greedy one) times the logarithm of the drawn one's probability, the
    sum over its words; the mean over pairs. A mismatched pair counts nothing.

    The reward is CIDEr-D beside the pair's own caption, of tokens, the end being one, without which captions break off
    (as VLP rewards; over the captions of an image the mean is that of all of them). Nothing is dropped, so that what is
    made likelier is what was drawn. Captions of one image are drawn alike in a micro-batch.

    Args:
        task: in which mode it is doesn't matter, nor for the model.
        frequencies: of tokens in the training captions.

    Returns: the loss, a scalar; report: `reward` and `greedy_reward`, means.
    """
    assert isinstance(task, nn.Module)
    assert isinstance(model, nn.Module)
    batch = drawing.batch
    with in_evaluation(task, model):
        drawn = [best for [best] in task.write(model, batch, Writing(search="sample", seed=drawing.seed))]
        greedy = [best for [best] in task.write(model, batch)]
        texts, likeliest = ([ended(one.tokens, task) for one in own] for own in (drawn, greedy))
        log = task.log_probability(model, batch, texts)
    people = captions_of(batch)
    rewards = [cider_d(text, [own], frequencies) for text, own in zip(texts, people, strict=True)]
    baselines = [cider_d(text, [own], frequencies) for text, own in zip(likeliest, people, strict=True)]
    reward, baseline = log.new_tensor(rewards), log.new_tensor(baselines)
    loss = -((reward - baseline) * log * batch.matched).sum() / max(len(texts), 1)
    return loss, {"reward": reward.mean(), "greedy_reward": baseline.mean()}


def ended(tokens: Sequence[int], task: Writes) -> list[int]:
    """A written text with its end. One that is as long as can be has none: whatever comes last there, it is cut."""
    return [*tokens, task.end_id] if len(tokens) < task.most_written - 1 else [*tokens]


def captions_of(batch: Batch) -> list[list[int]]:
    """The ended caption of each pair."""
    caption = batch.texts.segments["caption"]
    own = [part.tolist() for part in caption.tokens.split(lengths_of(caption.offsets).tolist())]
    return [own[text] for text in batch.pairs[:, 0].tolist()]
