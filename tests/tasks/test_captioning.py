"""Captioning: what is masked, what is seen, the loss written out, and what is written."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import samples
import torch
from samples import MASK, SEP, WORD_IDS, WORDS

from vlp.interfaces import NONE, Batch
from vlp.models.single_stream import SingleStream
from vlp.needs import FeatureFacts, faults
from vlp.objectives.corruption import end_texts
from vlp.objectives.masked_language import MaskedLanguage
from vlp.tasks.captioning import Captioning, causal_texts, mean_of_best_texts, smoothed_divergence
from vlp.writing.settings import Writing

LAYOUT = {
    "layout": ["CLS", "caption", "tags", "SEP", "regions"],
    "layout_types": [0, 0, 1, 1, 1],
    "layout_causal": ["CLS", "caption"],
    "max_tokens": {"caption": 6, "tags": 4},
}


def model() -> SingleStream:
    torch.manual_seed(0)
    return samples.model(**LAYOUT)


def task(of: SingleStream, **changed: object) -> Captioning:
    return Captioning(of, MASK, SEP, WORD_IDS, **changed)  # type: ignore[arg-type]


def captions(texts: list[list[int]], pairs: list[list[int]]) -> Batch:
    batch = samples.batch(texts, [2, 3], pairs)
    tags = samples.segment([[20 + n, 21] for n in range(len(texts))])
    return replace(batch, texts=replace(batch.texts, segments={**batch.texts.segments, "tags": tags}))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_captions_are_cut_and_ended() -> None:
    ended = end_texts(samples.segment([[7, 8], [], [5, 6, 7, 8, 9, 10, 11]]), SEP, 6)
    assert ended.tokens.tolist() == [7, 8, SEP, 5, 6, 7, 8, 9, SEP]
    assert ended.offsets.tolist() == [0, 3, 3, 9]
    assert ended.word_starts.tolist() == [True] * 9
    referring = replace(samples.segment([[7, 8]]), token_region=torch.tensor([1, 0]))
    regions = end_texts(referring, SEP, 6).token_region
    assert regions is not None
    assert regions.tolist() == [1, 0, NONE]


def test_how_many_words_are_masked() -> None:
    """A share of the words, their end and start, rounded; at least one, at most as many as said; all places alike."""
    of = model()
    batch = captions([[7], [7, 8, 9, 10, 11]], [[0, 0], [1, 1]])
    for probability, most, expected in ((0.15, 3, [1, 1]), (0.5, 3, [2, 3]), (0.5, 9, [2, 4]), (1.0, 9, [2, 6])):
        counts = []
        drawn = torch.zeros(8)
        for seed in range(60):
            _, targets = task(of, probability=probability, most_masked=most).corrupt(batch, generator(seed))
            drawn += targets.chosen
            counts.append([int(targets.chosen[:2].sum()), int(targets.chosen[2:].sum())])
        assert counts == [expected] * 60
        assert bool((drawn > 0).all())


def test_masked_words_do_not_see_what_follows() -> None:
    """Neither a word's state nor a region's depends on the words after; a word's does on those before, and on tags."""
    of = model().eval()

    def states(text: list[int], tag: int = 20) -> torch.Tensor:
        batch = captions([text], [[0, 0]])
        tags = samples.segment([[tag, 21]])
        batch = replace(batch, texts=replace(batch.texts, segments={**batch.texts.segments, "tags": tags}))
        texts = causal_texts(batch.texts, end_texts(batch.texts.segments["caption"], SEP, 6))
        torch.manual_seed(1)
        return of(replace(batch, texts=texts, images=samples.images([2, 3]))).text.values

    one, other = states([7, 8, 9]), states([7, 8, 10])
    same = torch.tensor([1, 1, 1, 0, 0, 1, 1, 1, 1, 1]).bool()  # CLS, two words; tags, SEP and regions
    torch.testing.assert_close(one[same], other[same])
    assert not torch.isclose(one[~same], other[~same]).all(1).any()
    assert not torch.isclose(one[4], states([6, 8, 9])[4]).all()
    assert not torch.isclose(one, states([7, 8, 9], 22)).all(1).any()
    longer = states([7, 8])
    torch.testing.assert_close(one[-5:], longer[-5:])  # nor does anything know how long the caption is


def test_loss_written_out() -> None:
    of = model()
    batch = captions([[7, 8, 9], [10, 11]], [[0, 0], [1, 1]])
    batch = replace(batch, matched=torch.tensor([True, True]), step=5)
    own = task(of, probability=0.5, label_smoothing=0.2)
    corrupted, targets = own.corrupt(batch, generator())
    encoded = of(corrupted)
    logits, labels = own.predict(encoded, targets, of)
    assert len(labels) == 2 + 2
    each = []
    for row, label in zip(logits.log_softmax(1).tolist(), labels.tolist(), strict=True):
        truth = [0.8 if n == label else 0.2 / (WORDS - 1) for n in range(WORDS)]
        each.append(sum(t * (math.log(t) - log) for t, log in zip(truth, row, strict=True)))
    loss, report = own.loss(encoded, targets, of)
    assert float(loss["captioning"].detach()) == pytest.approx(sum(each) / 4, rel=1e-5)
    correct = sum(int(a) == int(b) for a, b in zip(logits.argmax(1), labels, strict=True)) / 4
    assert float(report["captioning_accuracy"]) == pytest.approx(correct)
    for after, expected in ((6, sum(each) / 4), (5, sum(sorted(each)[:2]) / 2)):
        own.drop_worst, own.drop_worst_after = 0.4, after
        assert float(own.loss(encoded, targets, of)[0]["captioning"].detach()) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(
        smoothed_divergence(logits, labels, 0.0), torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    )


def test_a_word_that_gets_no_share_of_other_labels() -> None:
    """Written out: a label of which all but it and the word that is left out share the smoothing."""
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 7), torch.tensor([1, 2, 3, 6, 1])
    each = []
    for row, label in zip(logits.log_softmax(1).tolist(), labels.tolist(), strict=True):
        truth = {n: 0.8 if n == label else 0.2 / 5 for n in range(1, 7)}
        each.append(sum(t * (math.log(t) - row[n]) for n, t in truth.items()))
    assert smoothed_divergence(logits, labels, 0.2, skipped=0).tolist() == pytest.approx(each, rel=1e-5)


def test_the_worst_texts_do_not_count() -> None:
    """Two of the four whose losses sum to least, though one of them has the worst word; one without words is best."""
    losses = torch.tensor([5.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0], requires_grad=True)
    text = torch.tensor([0, 1, 1, 1, 2, 2, 2])
    mean = mean_of_best_texts(losses, text, 4, 0.5)  # sums 5, 3, 7 and 0
    assert float(mean) == pytest.approx(1.0)
    mean.backward()
    assert losses.grad.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0])
    assert float(mean_of_best_texts(losses, text, 3, 0.5).detach()) == pytest.approx(1.0)
    assert float(mean_of_best_texts(losses, text, 3, 0.0).detach()) == pytest.approx(15 / 7)


def test_some_texts_are_read_in_both_directions() -> None:
    """By their share; all are masked and ended alike, and the words are a share of the words alone where it is said."""
    of = model()
    batch = captions([[7], [7, 8, 9, 10, 11]], [[0, 0], [1, 1]])
    causal = torch.zeros(2)
    for seed in range(200):
        corrupted, targets = task(of, causal_share=0.75, probability=0.5, counted="words").corrupt(
            batch, generator(seed)
        )
        every, same = task(of, probability=0.5, counted="words").corrupt(batch, generator(seed))
        causal += corrupted.texts.causal
        assert bool(every.texts.causal.all())
        assert torch.equal(targets.chosen, same.chosen)
        assert torch.equal(corrupted.texts.segments["caption"].tokens, every.texts.segments["caption"].tokens)
        assert [int(targets.chosen[:2].sum()), int(targets.chosen[2:].sum())] == [
            1,
            2,
            # of 1 and 5 words; of 3 and 7 places it were 2 and 3
        ]
    assert ((causal / 200 - 0.75).abs() < 0.1).all()
    with pytest.raises(ValueError, match=r"causal_share is 1\.5"):
        task(of, causal_share=1.5)


@pytest.mark.parametrize("transforms", [2, 4])
def test_causal_texts_have_the_last_of_several_transforms_and_others_the_first(transforms: int) -> None:
    """Each word's logits written out, and those of what is written; the norm is of all transforms together."""
    of = model()
    own = task(of, transforms=transforms, causal_share=0.5, probability=0.5)
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter)
    of_words, h = of.tied("word_embeddings"), of.hidden_size
    assert own.transform.linear.weight.shape == (transforms * h, h)

    def logits(state: torch.Tensor, causal: bool) -> torch.Tensor:
        wide = torch.nn.functional.gelu(own.transform.linear.weight @ state + own.transform.linear.bias)
        normed = (wide - wide.mean()) / (wide.var(correction=0) + of.norm_eps).sqrt()
        normed = normed * own.transform.norm.weight + own.transform.norm.bias
        first = (transforms - 1) * h if causal else 0
        return of_words @ normed[first : first + h] + own.bias

    batch = captions([[7, 8, 9], [10, 11], [12]], [[2, 0], [0, 1], [1, 1]])
    corrupted, targets = next(
        (made, targets)
        for made, targets in (own.corrupt(batch, generator(seed)) for seed in range(50))
        if made.texts.causal.tolist() == [True, False, True]
    )
    assert targets.causal.tolist() == [True] * 4 + [False] * 3 + [True] * 2  # of words, ends included
    encoded = of(corrupted)
    at = targets.locate(encoded.places)
    assert at.causal.tolist() == [int(batch.pairs[pair, 0]) != 1 for pair in at.pair.tolist()]
    found, _ = own.predict(encoded, targets, of)
    rows = encoded.text.values[at.rows]
    expected = [logits(row, causal) for row, causal in zip(rows, at.causal.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
    written = own.word_logits(rows, of)
    torch.testing.assert_close(written, torch.stack([logits(row, True) for row in rows]), rtol=1e-4, atol=1e-4)
    assert len(own.write(of.eval(), batch)) == 3


def test_without_a_transform_it_is_refused() -> None:
    with pytest.raises(ValueError, match="transforms is 0, but must be at least 1"):
        task(model(), transforms=0)


def test_without_captions_the_loss_is_a_connected_zero() -> None:
    of = model()
    batch = captions([[], [10]], [[0, 0], [NONE, 1]])
    own = task(of, drop_worst=0.2)
    corrupted, targets = own.corrupt(batch, generator())
    loss = own.loss(of(corrupted), targets, of)[0]["captioning"]
    assert float(loss) == 0.0
    loss.backward()
    mismatched = replace(targets, matched=torch.zeros(2, dtype=torch.bool))
    assert float(own.loss(of(corrupted), mismatched, of)[0]["captioning"]) == 0.0


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_is_what_training_predicts(beams: int) -> None:
    """The score of a written caption is that of its words, each masked in turn beside the words before it."""
    of = model().eval()
    own = task(of, most_written=5)
    batch = captions([[7, 8], [9], [12]], [[2, 1], [0, 0]])
    for pair, (best,) in enumerate(own.write(of, batch, Writing(beams))):
        assert set(best.tokens) <= set(WORD_IDS)
        assert len(best.tokens) < 5
        alone = replace(batch, pairs=batch.pairs[pair : pair + 1])
        total, words = 0.0, [*best.tokens, SEP]
        for place, word in enumerate(words):
            masked = samples.segment([[*words[:place], MASK], [5], [5]])
            if int(alone.pairs[0, 0]) == 2:
                masked = samples.segment([[5], [5], [*words[:place], MASK]])
            texts = causal_texts(alone.texts, masked)
            encoded = of(replace(alone, texts=texts))
            row = encoded.tokens["caption"].row[-1]
            log = own.word_logits(encoded.text.values[row], of).log_softmax(0)
            # the last place ends a caption whatever its word was
            total += float(log[word] if place < 4 else log[[*WORD_IDS, SEP]].max())
        assert best.score == pytest.approx(total / len(words), abs=1e-4) or (beams > 1 and len(words) == 5)


def test_the_head_of_masked_words_fits() -> None:
    """So a pretrained run's head is loaded where the task bears the objective's name."""
    of = model()
    theirs = MaskedLanguage(of, MASK, WORD_IDS, 0.15, ["caption"])
    task(of).load_state_dict(theirs.state_dict())


def test_a_model_without_causal_captions_is_refused(tmp_path: Path) -> None:
    plain, tokenizer = samples.model(), samples.tokenizer(tmp_path)
    lacking = faults(Captioning.needs(), plain.offers, FeatureFacts(samples.FEATURES, 0), tokenizer)
    assert ["set model.layout_causal" in told for told in lacking] == [True]
    assert not faults(Captioning.needs(), model().offers, FeatureFacts(samples.FEATURES, 0), tokenizer)
    batch = captions([[7]], [[0, 0]])
    with pytest.raises(ValueError, match="no segment `caption`"):
        task(model()).corrupt(replace(batch, texts=replace(batch.texts, segments={})), generator())
