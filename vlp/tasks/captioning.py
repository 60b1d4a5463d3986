"""Describing images: masked words are predicted from what is before them, and captions are written word by word."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Ability, Encoded, Losses, Model, Places, Report, located
from vlp.evaluation.captions import CaptionEvaluation
from vlp.interfaces import NONE, Batch, Segment, Texts
from vlp.metrics.cider import Frequencies
from vlp.needs import Needs
from vlp.nn.heads import Transform
from vlp.nn.precision import at_least_float32
from vlp.nn.ragged import lengths_of, offsets_of, owner_of_rows
from vlp.nn.transformer import initialise
from vlp.objectives.corruption import choose_some, end_texts, replace_tokens, take_texts
from vlp.objectives.written_words import caption_of, word_rows, written_states, written_texts
from vlp.tasks.self_critical import Drawing, self_critical
from vlp.writing.constrained import Constraint
from vlp.writing.filters import Filter, begins
from vlp.writing.settings import Writing
from vlp.writing.writer import Written

DEFAULT = Writing()


@dataclass(frozen=True)
class CaptionRows:
    """Tokens to predict: `rows` int64 [n] of the text stream, or of a decoder's, `labels` int64 [n], and the `pair`
    int64 [n] of each, of so many `pairs`. `step`: of the run. `causal` bool [n]: those of causal texts. `drawing`: see
    `CaptionTargets`.
    """

    rows: Tensor
    labels: Tensor
    pair: Tensor
    pairs: int
    step: int
    causal: Tensor
    drawing: Drawing | None = None


@dataclass(frozen=True)
class CaptionTargets:
    """`labels` int64 [n]: the original tokens of all captions; `chosen` bool [n]: those to predict.

    `matched` bool [P]: pairs whose tokens count. `step`: of the run. `causal` bool [n]: tokens of causal texts.
    `drawing`: what captions are drawn from, where they are rewarded. `by_decoder`: the captions are what a decoder
    writes.
    """

    labels: Tensor
    chosen: Tensor
    matched: Tensor
    step: int
    causal: Tensor
    drawing: Drawing | None = None
    by_decoder: bool = False

    def locate(self, places: Places) -> CaptionRows:
        """The rows that show the tokens to predict."""
        where = word_rows(places) if self.by_decoder else places.tokens["caption"]
        keep = self.chosen.index_select(0, where.source) & self.matched.index_select(0, where.pair)
        labels, causal = (part.index_select(0, where.source[keep]) for part in (self.labels, self.causal))
        pair, pairs = where.pair[keep], len(self.matched)
        return CaptionRows(where.row[keep], labels, pair, pairs, self.step, causal, self.drawing)


@dataclass(frozen=True)
class CaptionMasking:
    """What `Captioning` does to a batch: see its arguments. `max_tokens`: of a caption, its end included."""

    mask_id: int
    end_id: int
    word_ids: Tensor
    probability: float
    most_masked: int
    max_tokens: int
    counted: Literal["all", "words"]
    causal_share: float
    rewarded: bool = False

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, CaptionTargets]:
        """End the captions, mask some of their words and make them, or `causal_share` of them, causal.

        Raises:
            ValueError: there is no segment `caption`.
        """
        caption = end_texts(caption_of(batch), self.end_id, self.max_tokens)
        tokens = lengths_of(caption.offsets)
        beside = 1 if self.counted == "all" else -1
        count = ((tokens + beside) * self.probability).round().long().clamp(1, self.most_masked)
        chosen = choose_some(caption.offsets, count, generator)
        masked = replace_tokens(caption.tokens, chosen, self.mask_id, self.word_ids, generator)
        texts = causal_texts(batch.texts, replace(caption, tokens=masked))
        causal = torch.ones_like(tokens, dtype=torch.bool)
        if self.causal_share < 1:
            causal = torch.rand(len(tokens), generator=generator, device=tokens.device) < self.causal_share
            texts = replace(texts, causal=causal)
        of_tokens = causal.index_select(0, owner_of_rows(tokens))
        drawing = None
        if self.rewarded:
            seed = int(torch.randint(2**62, (), generator=generator, device=tokens.device))
            drawing = Drawing(replace(batch, texts=causal_texts(batch.texts, caption)), seed)
        targets = CaptionTargets(caption.tokens, chosen, batch.matched, batch.step, of_tokens, drawing)
        return replace(batch, texts=texts), targets


@dataclass(frozen=True)
class CaptionHiding:
    """What `Captioning` does to a batch for a model with a decoder: captions are not read, they are written."""

    end_id: int
    max_tokens: int

    def __call__(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, CaptionTargets]:
        """End the captions, and make of them what is written.

        Raises:
            ValueError: there is no segment `caption`.
        """
        target = end_texts(caption_of(batch), self.end_id, self.max_tokens)
        every = torch.ones_like(target.tokens, dtype=torch.bool)
        targets = CaptionTargets(target.tokens, every, batch.matched, batch.step, every, by_decoder=True)
        return written_texts(batch, None, target), targets


def causal_texts(texts: Texts, caption: Segment) -> Texts:
    """The texts with these captions, which are written from left to right."""
    causal = torch.ones(len(caption.offsets) - 1, dtype=torch.bool, device=caption.offsets.device)
    return replace(texts, segments={**texts.segments, "caption": caption}, causal=causal)


class Captioning(nn.Module):
    """Write the segment `caption` about the images and the other segments of a pair.

    Captions are causal: a word sees the words before it and everything that is not caption, which in turn does not see
    the caption. Training masks some words, the end included, which is a token of the caption here, and predicts them;
    writing puts a mask after what is written so far and predicts that. The decoder is tied to the word embeddings. The
    loss is the divergence of the smoothed label from the prediction, mean over masked words, the worst left out.

    A model with a decoder reads no caption. Its decoder writes the caption, and each of its words is predicted from the
    state before; nothing is masked, and no layer stands between the states and the word embeddings.

    VLP's pretraining is the same with a `causal_share` of 0.75: the other texts are read in both directions, by the
    same head, or by one that differs in its transform.

    Source: Oscar (Li et al. 2020), oscar/run_captioning.py and BertForImageCaptioning; the masks are UniLM's (Dong et
    al. 2019), as are those of VLP (Zhou et al. 2020), vlp/seq2seq_loader.py.

    Args:
        model: the model to be trained; its sizes are read.
        mask_id, end_id: ids of the mask token and of what ends a caption.
        word_ids: ids that are written, and from which random replacements are drawn.
        probability: share of a caption's tokens to mask, at least one.
        most_masked: but no more than so many.
        counted: what that is a share of: `all`, its end and the start before it included (Oscar), or `words` (VLP).
        causal_share: share of the texts that are written from left to right in training.
        most_written: words of a written caption, its end included; None: as many as the model takes.
        label_smoothing: what the other words share of a label.
        smoothing_skips: a word that gets no share of other labels, as padding (VLP: 0).
        drop_worst: share of the masked words, those of the largest losses, that don't count.
        drop_worst_after: the step of the run after which that is so.
        drop_worst_of: `words`, or `texts` by the sums of their words' losses (VLP).
        transforms: of the head; of several, causal texts have the last and others the first (VLP's `relax_projection`
            has 4, of which two are for modes of UniLM's alone).
        rewarded: in training captions are drawn and rewarded by CIDEr-D (`vlp.tasks.self_critical`) in the place of
            masked words, which tell held-out losses all the same; it begins with the weights of a run without.

    `probability`, `most_masked`, `counted`, `causal_share` and `transforms` are of models without a decoder.

    Raises:
        ValueError: `causal_share` is no share, there is no transform, or a setting is of models without a decoder.
    """

    unwritten: Tensor

    abilities: frozenset[Ability] = frozenset({"task", "captions"})
    evaluation = CaptionEvaluation()
    frequencies: Frequencies | None = None  # of tokens in the training captions, where these are rewarded

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(mask_token=True, writes="caption", captions=settings.get("rewarded") is not None)

    def __init__(
        self,
        model: Model,
        mask_id: int,
        end_id: int,
        word_ids: list[int],
        probability: float = 0.15,
        most_masked: int = 3,
        most_written: int | None = None,
        label_smoothing: float = 0.0,
        drop_worst: float = 0.0,
        drop_worst_after: int = 0,
        counted: Literal["all", "words"] = "all",
        causal_share: float = 1.0,
        smoothing_skips: int | None = None,
        drop_worst_of: Literal["words", "texts"] = "words",
        transforms: int = 1,
        rewarded: Literal["cider"] | None = None,
    ):
        super().__init__()
        if not 0 <= causal_share <= 1:
            raise ValueError(f"causal_share is {causal_share}, but must be from 0 to 1")
        if transforms < 1:
            raise ValueError(f"transforms is {transforms}, but must be at least 1")
        self.mask_id, self.end_id = mask_id, end_id
        self.max_tokens = model.max_tokens["caption"]  # the end included
        self.most_written = min(most_written or self.max_tokens, self.max_tokens)
        self.by_decoder = model.offers.decoder
        if self.by_decoder and (probability, most_masked, counted, causal_share, transforms) != (0.15, 3, "all", 1, 1):
            raise ValueError(
                "a decoder predicts every word and masks none: leave probability, most_masked, counted, causal_share"
                " and transforms out"
            )
        words = torch.tensor(word_ids, device="cpu")
        self.rewarded = rewarded is not None
        if self.by_decoder and self.rewarded:
            raise ValueError("rewarded captions are drawn by models without a decoder alone: leave rewarded out")
        masking = CaptionMasking(
            mask_id, end_id, words, probability, most_masked, self.max_tokens, counted, causal_share, self.rewarded
        )
        self.corrupt = CaptionHiding(end_id, self.max_tokens) if self.by_decoder else masking
        self.smoothing_skips, self.drop_worst_of = smoothing_skips, drop_worst_of
        self.label_smoothing, self.drop_worst, self.drop_worst_after = label_smoothing, drop_worst, drop_worst_after
        size = len(model.tied("word_embeddings"))
        unwritten = torch.ones(size, dtype=torch.bool).index_fill(0, torch.tensor([*word_ids, end_id]), False)
        self.register_buffer("unwritten", unwritten, persistent=False)
        self.transform = None
        if not self.by_decoder:
            self.transform = Transform(model.hidden_size, model.norm_eps, modes=transforms)
        self.bias = nn.Parameter(torch.zeros(size))
        self.word_rows = ["bias"]
        initialise(self, model.initial_std)

    def word_logits(self, states: Tensor, model: Model, causal: Tensor | None = None) -> Tensor:
        """States [n, H] to logits [n, vocabulary]. causal: bool [n], those of causal texts; None: all are."""
        if self.transform is not None:
            states = self.transform(states, None if causal is None else causal * (self.transform.modes - 1))
        return F.linear(states, model.tied("word_embeddings"), self.bias)

    def predict(self, encoded: Encoded, targets: CaptionTargets | CaptionRows, model: Model) -> tuple[Tensor, Tensor]:
        """Logits float [n, vocabulary] and labels int64 [n] of the n tokens to predict."""
        at = located(targets, encoded.places)
        states = written_states(encoded) if self.by_decoder else encoded.text.values
        return self.word_logits(states.index_select(0, at.rows), model, at.causal), at.labels

    def loss(self, encoded: Encoded, targets: CaptionTargets | CaptionRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `captioning`. Report: `captioning_accuracy`, of the words to predict; or see `self_critical`.

        Raises:
            ValueError: captions are to be rewarded, and `count_captions` was never called.
        """
        at = located(targets, encoded.places)
        if self.rewarded and self.training:
            if self.frequencies is None or at.drawing is None:
                raise ValueError("rewarded captions are measured by the words of the training captions; count these")
            loss, report = self_critical(self, model, at.drawing, self.frequencies)
            return {"captioning": loss}, report
        logits, labels = self.predict(encoded, at, model)
        losses = smoothed_divergence(at_least_float32(logits), labels, self.label_smoothing, self.smoothing_skips)
        correct = (logits.detach().argmax(1) == labels).sum() / max(len(labels), 1)
        dropping = bool(self.drop_worst) and at.step >= self.drop_worst_after
        if dropping and self.drop_worst_of == "texts":
            loss = mean_of_best_texts(losses, at.pair, at.pairs, self.drop_worst)
            return {"captioning": loss}, {"captioning_accuracy": correct}
        kept = len(losses)
        if dropping:
            kept = max(int(len(losses) * (1 - self.drop_worst)), min(kept, 1))
            losses = losses.topk(kept, largest=False).values
        return {"captioning": losses.sum() / max(kept, 1)}, {"captioning_accuracy": correct}

    @torch.no_grad()
    def write(
        self,
        model: Model,
        batch: Batch,
        how: Writing = DEFAULT,
        keep: int = 1,
        begin: Sequence[int] = (),
        hold: Sequence[Sequence[Constraint]] = (),
    ) -> list[list[Written]]:
        """Captions of the P pairs of a clean batch, whose own captions are not looked at; the best of a pair first.

        Samples are drawn by the images' ids.

        Args:
            model: in evaluation mode.
            how: which search, and what is allowed.
            keep: how many captions of each pair.
            begin: ids of the words that each begins with.
            hold: see `vlp.writing.settings.Writing.texts`.

        Raises:
            ValueError: a caption begins with more words than are written, or with one that never is, or the filters
                leave no word, or constraints no text.
        """
        most, image = self.most_written, batch.pairs[:, 1]
        if len(begin) >= most:
            raise ValueError(f"a caption can't begin with {len(begin)} tokens, since this model writes {most - 1}")
        if any(bool(self.unwritten[token]) for token in begin):
            raise ValueError("a caption can't begin with a word that the model never writes, as an unknown one")
        ids = batch.images.ids.tolist()
        names = [NONE if number == NONE else ids[number] for number in image.tolist()]
        writer = CaptionWriter(self, model, batch)
        filters: list[Filter] = [begins(begin)] if begin else []
        return how.texts(writer, names, most, self.end_id, image.device, keep, filters, hold)

    def count_captions(self, captions: Iterable[list[list[int]]]) -> Frequencies:
        """See `vlp.contracts.Objective`: cut and ended as they are in training."""
        most = self.max_tokens - 1
        return Frequencies.of([[*ids[:most], self.end_id] for ids in own if ids] for own in captions)

    def log_probability(self, model: Model, batch: Batch, texts: Sequence[Sequence[int]]) -> Tensor:
        """Of a text about each of the P pairs of a clean batch, the logarithm of the probability that it is written,
        the sum over its words, float32 [P].

        All words are predicted at once, each after a copy of what is before it.

        texts: ids of at most `max_tokens` words, an end among them where there is one.
        """
        before = [[*text[:place], self.mask_id] for text in texts for place in range(len(text))]
        device = batch.pairs.device
        own = torch.tensor([len(text) for text in texts], dtype=torch.int64, device=device)
        offsets = offsets_of(torch.tensor([len(words) for words in before], dtype=torch.int64, device=device))
        tokens = torch.tensor([word for words in before for word in words], dtype=torch.int64, device=device)
        copied = batch.pairs.index_select(0, owner_of_rows(own))
        caption = Segment(tokens, offsets, torch.ones_like(tokens, dtype=torch.bool))
        shown = self.about(replace(batch, pairs=copied), caption)
        last = torch.zeros_like(tokens, dtype=torch.bool).index_fill(0, offsets[1:] - 1, True)
        said = torch.tensor([word for text in texts for word in text], dtype=torch.int64, device=device)
        labels = torch.zeros_like(tokens).index_put((offsets[1:] - 1,), said)
        every = torch.ones(len(before), dtype=torch.bool, device=device)
        targets = CaptionTargets(labels, last, every, batch.step, torch.ones_like(last))
        encoded = model(shown)
        at = located(targets, encoded.places)
        logits, labels = self.predict(encoded, at, model)
        log = at_least_float32(logits).masked_fill(self.unwritten, -torch.inf).log_softmax(1)
        log = log.gather(1, labels[:, None])[:, 0]
        return log.new_zeros(len(texts)).index_add(0, owner_of_rows(own).index_select(0, at.pair), log)

    def placeholders(self, batch: Batch) -> Batch:
        """The batch with causal captions that are masks alone, as many as are written."""
        count, device = len(batch.pairs), batch.pairs.device
        tokens = torch.full((count * self.most_written,), self.mask_id, device=device)
        offsets = torch.arange(count + 1, device=device) * self.most_written
        return self.about(batch, Segment(tokens, offsets, torch.ones_like(tokens, dtype=torch.bool)))

    def about(self, batch: Batch, caption: Segment) -> Batch:
        """The batch with other captions, one for each pair, which are causal; nothing is asked."""
        numbers = torch.arange(len(batch.pairs), device=batch.pairs.device)
        segments = {name: take_texts(segment, batch.pairs[:, 0]) for name, segment in batch.texts.segments.items()}
        return replace(
            batch,
            texts=causal_texts(Texts(segments, numbers), caption),
            pairs=torch.cat([numbers[:, None], batch.pairs[:, 1:]], 1),
            matched=torch.ones_like(numbers, dtype=torch.bool),
            answers=None,
            answer_scores=None,
        )


class CaptionWriter:
    """Captions that are being written, of the pairs of a batch; see `vlp.writing.writer.Writer`."""

    def __init__(self, task: Captioning, model: Model, batch: Batch):
        self.task, self.model = task, model
        self.states = model.write(task.placeholders(batch), "caption")

    def next(self, tokens: Tensor | None) -> Tensor:
        """See `vlp.writing.writer.Writer`."""
        logits = self.task.word_logits(self.states.next(tokens), self.model)
        return at_least_float32(logits).log_softmax(1).masked_fill(self.task.unwritten, -torch.inf)

    def keep(self, rows: Tensor) -> None:
        """See `vlp.writing.writer.Writer`."""
        self.states.keep(rows)


def mean_of_best_texts(losses: Tensor, text: Tensor, texts: int, drop_worst: float) -> Tensor:
    """The mean of losses float [n] of words of the texts, but for the share of the texts whose losses sum to most.

    Source: VLP, pytorch_pretrained_bert/modeling.py. text: int64 [n], the text of each word, of so many `texts`.
    """
    sums = losses.new_zeros(texts).index_add(0, text, losses)
    best = sums.detach().topk(max(int(texts * (1 - drop_worst)), min(texts, 1)), largest=False).indices
    kept = torch.zeros_like(sums).index_fill(0, best, 1.0).index_select(0, text)
    return (losses * kept).sum() / kept.sum().clamp(min=1)


def smoothed_divergence(logits: Tensor, labels: Tensor, smoothing: float, skipped: int | None = None) -> Tensor:
    """KL divergence of the prediction from a label of which the other classes share `smoothing`, float [n].

    Source: Oscar, oscar/modeling/modeling_bert.py (BertCaptioningLoss); with a class `skipped`, which gets no share,
    VLP, vlp/loss.py. logits: [n, classes]; labels: int64 [n].
    """
    log = logits.log_softmax(1)
    of_label = log.gather(1, labels[:, None])[:, 0]
    if not smoothing:
        return -of_label
    others, rest = logits.shape[1] - 1, log.sum(1) - of_label
    if skipped is not None:
        others, rest = others - 1, rest - log[:, skipped]
    share = smoothing / others
    entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(share)
    return entropy - (1 - smoothing) * of_label - share * rest
