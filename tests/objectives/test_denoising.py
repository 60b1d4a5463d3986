"""What is hidden of captions, against plain loops; what the decoder is to write; and the losses written out."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import samples
import torch
from samples import MASK, SEP, WORD_IDS, WORDS
from torch import Tensor, nn

from vlp.interfaces import NONE, Batch, Segment
from vlp.objectives.corruption import choose_fragments, choose_some, fill_spans, take_places
from vlp.objectives.denoising import Denoising
from vlp.objectives.region_generation import RegionGeneration, hide_images
from vlp.tasks.captioning import Captioning

LENGTHS = [9, 0, 1, 14, 3]
TEXTS = [[5 + (7 * n + k) % 30 for k in range(length)] for n, length in enumerate(LENGTHS)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(**changed: Any) -> nn.Module:
    torch.manual_seed(0)
    return samples.model(**{"type": "encoder_decoder", "shared": True, **changed})


def captions(texts: list[list[int]] = TEXTS) -> Batch:
    torch.manual_seed(1)
    return samples.batch(texts, [2, 3], [[n, n % 2] for n in range(len(texts))])


def lists(segment: Segment, values: Tensor | None = None) -> list[list[Any]]:
    bounds, listed = segment.offsets.tolist(), (segment.tokens if values is None else values).tolist()
    return [listed[a:b] for a, b in pairwise(bounds)]


def task(kind: str, **settings: Any) -> Denoising:
    return Denoising(model(), MASK, SEP, kind, **settings)  # type: ignore[arg-type]


def test_a_fragment_is_masked_and_written() -> None:
    """One run of masks of the share's size; what is written is what stood there, and nothing else is changed."""
    clean, sizes = captions(), [3, 0, 1, 5, 1]
    for seed in range(30):
        batch, targets = task("fragment", share=0.35).corrupt(clean, generator(seed))
        masked, written = (lists(batch.texts.segments[name]) for name in ("caption", "target"))
        for text, shown, target, size in zip(TEXTS, masked, written, sizes, strict=True):
            places = [n for n, token in enumerate(shown) if token == MASK]
            assert places == list(range(places[0], places[0] + size)) if size else not places
            assert target == [text[n] for n in places]
            assert [token for n, token in enumerate(shown) if n not in places] == [
                token for n, token in enumerate(text) if n not in places
            ]
        assert targets.labels.tolist() == [token for target in written for token in target]


def test_fragments_begin_anywhere() -> None:
    starts, sizes = choose_fragments(torch.full((9000,), 10), 0.4, generator())
    assert sizes.unique().tolist() == [4]
    assert (torch.bincount(starts) / 9000 - 1 / 7).abs().max() < 0.02
    assert len(torch.bincount(starts)) == 7


def slow_spans(texts: list[list[int]], share: float, mean: float, seed: int) -> list[list[int]]:
    """The same draws, put together one after another."""
    draw, hidden = generator(seed), [min(max(round(len(t) * share), 1), len(t)) for t in texts]
    lengths = torch.poisson(torch.full((len(texts), 2 * max(hidden) + 4), mean), generator=draw).long().tolist()
    spans: list[list[int]] = []
    for budget, drawn in zip(hidden, lengths, strict=True):
        own: list[int] = []
        for length in drawn:
            if sum(own) >= budget:
                break
            own.append(min(length, budget - sum(own)))
        spans.append(own)
    keys = torch.rand(len(texts), 2 * max(hidden) + 4, generator=draw).tolist()
    spans = [[length for _, length in sorted(zip(k, own, strict=False))] for k, own in zip(keys, spans, strict=True)]
    slots = [len(t) - sum(own) + len(own) for t, own in zip(texts, spans, strict=True)]
    offsets = torch.tensor([0, *slots]).cumsum(0)
    is_span = choose_some(offsets, torch.tensor([len(own) for own in spans]), draw).tolist()
    out = []
    for text, own, first, count in zip(texts, spans, offsets.tolist(), slots, strict=False):
        left, lengths_left, shown = list(text), list(own), []
        for slot in range(count):
            if is_span[first + slot]:
                del left[: lengths_left.pop(0)]
                shown.append(MASK)
            else:
                shown.append(left.pop(0))
        assert not left
        out.append(shown)
    return out


@pytest.mark.parametrize(("share", "mean"), [(0.3, 3.0), (0.5, 1.0), (1.0, 3.0), (0.2, 0.3)])
def test_spans_against_plain_loops(share: float, mean: float) -> None:
    for seed in range(20):
        masked, hidden = fill_spans(samples.segment(TEXTS), share, mean, MASK, generator(seed))
        assert lists(masked) == slow_spans(TEXTS, share, mean, seed)
        shown = lists(masked)
        stays = lists(samples.segment(TEXTS), ~hidden)
        for text, own, kept in zip(TEXTS, shown, stays, strict=True):
            assert [token for token in own if token != MASK] == [t for t, k in zip(text, kept, strict=True) if k]
        assert masked.word_starts.all()


def test_how_much_spans_hide() -> None:
    """The share, rounded; spans as long as Poisson says, and as often near one end as near the other."""
    segment = samples.segment([list(range(5, 35))] * 4000)
    masked, hidden = fill_spans(segment, 0.3, 3.0, MASK, generator())
    table = hidden.view(4000, 30)
    assert table.sum(1).unique().tolist() == [9]
    often = table.float().mean(0)
    assert (often - often.flip(0)).abs().max() < 0.03
    assert (often[4:-4] - often[4:-4].mean()).abs().max() < 0.03
    masks = (masked.tokens == MASK).sum() / 4000
    slow = [len([t for t in own if t == MASK]) for own in slow_spans([list(range(5, 35))] * 400, 0.3, 3.0, 1)]
    assert float(masks) == pytest.approx(sum(slow) / 400, abs=0.15)
    assert 3.2 < float(masks) < 4.2, "nine words by threes, the last span being cut"


def test_regions_that_words_refer_to_go_along() -> None:
    segment = replace(samples.segment([[5, 6, 7, 8]]), token_region=torch.tensor([3, 1, 2, 0]))
    masked, hidden = fill_spans(segment, 0.5, 2.0, MASK, generator(3))
    assert masked.token_region is not None
    expected = iter([3, 1, 2, 0])
    kept = [r for r, gone in zip(expected, hidden.tolist(), strict=True) if not gone]
    assert [r for r in masked.token_region.tolist() if r != NONE] == kept
    part = take_places(segment, torch.tensor([1]), torch.tensor([2]))
    assert part.token_region is not None
    assert part.token_region.tolist() == [1, 2]


def test_of_spans_the_whole_caption_is_written_with_its_end() -> None:
    own = Denoising(model(max_tokens={"caption": 10}), MASK, SEP, "spans", share=0.3)
    batch, targets = own.corrupt(captions(), generator())
    assert lists(batch.texts.segments["target"]) == [[*text[:9], SEP] if text else [] for text in TEXTS]
    assert len(targets.labels) == 10 + 2 + 10 + 4


def test_what_hides_can_be_pickled() -> None:
    for kind in ("fragment", "spans"):
        corrupt = task(kind, share=0.3).corrupt
        one, other = (c(captions(), generator())[0] for c in (corrupt, pickle.loads(pickle.dumps(corrupt))))
        assert torch.equal(one.texts.segments["caption"].tokens, other.texts.segments["caption"].tokens)


@pytest.mark.parametrize("kind", ["fragment", "spans", "captioning"])
def test_the_loss_by_hand(kind: str) -> None:
    """Of each word of matched pairs the logarithm of its softmax, from the state of its row, with no transform."""
    of = model().eval()
    own: Any = Captioning(of, MASK, SEP, WORD_IDS) if kind == "captioning" else task(kind, share=0.4)  # type: ignore[arg-type]
    nn.init.normal_(own.bias)
    clean = replace(captions(), matched=torch.tensor([True, True, True, False, True]))
    batch, targets = own.corrupt(clean, generator())
    encoded = of(batch)
    losses, report = own.loss(encoded, targets, of)
    table, expected, right = of.tied("word_embeddings"), [], []  # type: ignore[operator]
    row = 0
    for text, target in enumerate(lists(batch.texts.segments["target"])):
        for word in target:
            logits = [float((encoded.written.values[row] @ table[v] + own.bias[v]).detach()) for v in range(WORDS)]
            if text != 3:
                expected.append(torch.tensor(logits).logsumexp(0) - logits[word])
                right.append(max(range(WORDS), key=logits.__getitem__) == word)
            row += 1
    assert row == len(encoded.written.values)
    (loss,) = losses.values()
    assert float(loss) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    (accuracy,) = report.values()
    assert float(accuracy) == pytest.approx(sum(right) / len(right))


def test_a_decoder_reads_no_caption_that_it_writes() -> None:
    """What it learns from of captioning it must not be shown."""
    of = model().eval()
    batch, _ = Captioning(of, MASK, SEP, WORD_IDS).corrupt(captions(), generator())  # type: ignore[arg-type]
    assert "caption" not in batch.texts.segments
    assert lists(batch.texts.segments["target"]) == [[*text, SEP] if text else [] for text in TEXTS]
    other, _ = Captioning(of, MASK, SEP, WORD_IDS).corrupt(  # type: ignore[arg-type]
        captions([[30] * length for length in LENGTHS]), generator()
    )
    torch.testing.assert_close(of(batch).text.values, of(other).text.values, rtol=0, atol=0)


def test_settings_of_masks_are_refused_with_a_decoder() -> None:
    for settings in ({"probability": 0.35}, {"causal_share": 0.75}, {"transforms": 2}, {"most_masked": 20}):
        with pytest.raises(ValueError, match="a decoder predicts every word and masks none"):
            Captioning(model(), MASK, SEP, WORD_IDS, **settings)  # type: ignore[arg-type]
    for wrong, message in (({"share": 0.0}, "share is 0.0"), ({"share": 0.3, "span_length": 0.0}, "span_length is 0")):
        with pytest.raises(ValueError, match=message):
            task("spans", **wrong)


def test_regions_are_written_about_captions_alone() -> None:
    """Pairs with text lose their image and write it; the loss is the mean square, of matched pairs, from later rows."""
    of = model().eval()
    own = RegionGeneration(of)  # type: ignore[arg-type]
    clean = samples.batch([[7, 8], [9]], [2, 3], [[0, 1], [1, 0], [NONE, 1], [0, NONE], [1, 1]])
    clean = replace(clean, matched=torch.tensor([True, True, True, True, False]))
    batch, targets = own.corrupt(clean, generator())
    assert batch.pairs[:, 1].tolist() == [NONE, NONE, 1, NONE, NONE]
    assert batch.written_images is not None
    assert batch.written_images.tolist() == [1, 0, NONE, NONE, 1]
    assert clean.pairs[:, 1].tolist() == [1, 0, 1, NONE, 1], "the clean batch stays"
    encoded = of(batch)
    loss = own.loss(encoded, targets, of)[0]["region_generation"]  # type: ignore[arg-type]
    states = own.project(own.transform(encoded.written.values))
    wanted = clean.images.features[[2, 3, 4, 0, 1]]
    assert float(loss) == pytest.approx(float((states[:5] - wanted).square().mean()), rel=1e-5)
    loss.backward()
    assert of.embedder.word_table.weight.grad[7].abs().sum() > 0, "the caption is read"  # type: ignore[union-attr]


def test_regions_can_be_learned_from_captions() -> None:
    """Of a few pairs, each caption's regions by heart, which their mean doesn't tell."""
    of = model()
    own = RegionGeneration(of)  # type: ignore[arg-type]
    clean = samples.batch([[7, 8], [9, 10], [11, 12]], [2, 2, 2], [[0, 0], [1, 1], [2, 2]])
    features = clean.images.features
    optimizer = torch.optim.Adam([*of.parameters(), *own.parameters()], lr=0.01)
    for _ in range(150):
        batch, targets = own.corrupt(clean, generator())
        loss = own.loss(of(batch), targets, of)[0]["region_generation"]  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 * float(features.var(0, correction=0).mean())


def test_without_anything_to_write_losses_are_zero() -> None:
    of = model()
    empty = samples.batch([[], []], [2, 2], [[0, 0], [1, 1]])
    for own in (task("fragment", share=0.3), task("spans", share=0.3)):
        batch, targets = own.corrupt(empty, generator())
        (loss,) = own.loss(of(batch), targets, of)[0].values()  # type: ignore[arg-type]
        loss.backward()
        assert float(loss) == 0
    batch, region_targets = hide_images(samples.batch([[7]], [2], [[0, NONE]]), generator())
    own_regions = RegionGeneration(of)  # type: ignore[arg-type]
    loss = own_regions.loss(of(batch), region_targets, of)[0]["region_generation"]  # type: ignore[arg-type]
    loss.backward()
    assert float(loss) == 0
