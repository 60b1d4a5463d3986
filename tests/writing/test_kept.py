"""Kept keys and values: each step's logits in float64 are those of reading all anew, whatever is kept and dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch
from samples import MASK, SEP, WORD_IDS
from slow_writing import SlowWriter, assert_fast_is_slow

from vlp.interfaces import NONE, Batch
from vlp.models.single_stream import SingleStream
from vlp.tasks.captioning import Captioning, CaptionWriter
from vlp.writing.settings import Writing

LAYOUTS = {
    "as Oscar": (["CLS", "caption", "tags", "SEP", "regions"], [0, 0, 1, 1, 1], ["CLS", "caption"]),
    "as VLP": (["CLS", "regions", "SEP", "caption"], [0, 1, 0, 1], ["caption"]),
    "causal after it": (
        ["CLS", "tags", "caption", "SEP", "regions"],
        [0, 1, 0, 0, 1],
        ["CLS", "tags", "caption", "SEP"],
    ),
    "nothing else": (["caption"], [0], ["caption"]),
}


def built(layout: str = "as Oscar", **changed: object) -> tuple[Captioning, SingleStream, Batch]:
    """Four pairs with ragged tags and regions, one without tags; one image is shown twice, one pair has none."""
    torch.manual_seed(0)
    items, types, causal = LAYOUTS[layout]
    settings = {"layout": items, "layout_types": types, "layout_causal": causal, "layers": 3}
    model = samples.model(**settings, max_tokens={"caption": 7, "tags": 4}, **changed).eval()
    batch = samples.batch([[5], [6, 7], [8], [9]], [2, 5, 3], [[0, 1], [2, 0], [1, 1], [3, NONE]])
    tags = samples.segment([[20, 21, 22], [], [23], [24]])
    batch = replace(batch, texts=replace(batch.texts, segments={**batch.texts.segments, "tags": tags}))
    return Captioning(model, MASK, SEP, WORD_IDS).eval(), model, batch


@pytest.mark.parametrize("first", [[0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3], [3, 3, 0, 0, 1, 1], [2, 2, 2, 0]])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_step_in_float64(layout: str, first: list[int]) -> None:
    """Random words; texts are repeated, dropped and reordered as no search would, also before the first word, so that
    several share what stands.
    """
    task, model, batch = built(layout)
    task, model = task.double(), model.double()
    images = replace(batch.images, features=batch.images.features.double(), boxes=batch.images.boxes.double())
    batch = replace(batch, images=images)
    fast, slow = CaptionWriter(task, model, batch), SlowWriter(task, model, batch)
    words = torch.Generator().manual_seed(0)
    count, tokens = len(first), None
    for writer in (fast, slow):
        writer.keep(torch.tensor(first))
    for rows in ([0, 0, 1, 1, 2, 2, 3, 3], [1, 0, 2, 2, 6, 7], [4, 5, 0, 1], [3, 2, 2, 1], [2], [0, 0, 0]):
        log = fast.next(tokens)
        torch.testing.assert_close(log, slow.next(tokens), rtol=0, atol=1e-12)
        assert log.shape == (count, samples.WORDS)
        for writer in (fast, slow):
            writer.keep(torch.tensor(rows))
        count = len(rows)
        tokens = torch.tensor(WORD_IDS)[torch.randint(len(WORD_IDS), (count,), generator=words)]
    torch.testing.assert_close(fast.next(tokens), slow.next(tokens), rtol=0, atol=1e-12)  # in the last place
    with pytest.raises(ValueError, match="no more than 7 words can be written"):
        fast.next(tokens)


@pytest.mark.parametrize("norm_first", [False, True])
def test_every_way_of_writing(norm_first: bool) -> None:
    assert_fast_is_slow(*built(norm_first=norm_first))


def test_constrained_writing() -> None:
    """As without anything kept; each text holds its own words, and another before it changes nothing."""
    task, model, batch = built()
    how = Writing(2, "constrained", least_named=1)
    words = WORD_IDS[:6]
    hold = [[[[words[0]], [words[1], words[2]]], [[words[3]]]], [], [[[words[4]]]], [[[words[5], words[5]]]]]
    given = ([*range(4)], task.most_written, task.end_id, torch.device("cpu"), 2, [], hold)
    slow = how.texts(SlowWriter(task, model, batch), *given)
    fast = how.texts(CaptionWriter(task, model, batch), *given)
    assert [[one.tokens for one in own] for own in fast] == [[one.tokens for one in own] for own in slow]
    assert task.write(model, batch, how, 2, hold=hold) == fast
    (best, *_), (plain, *_) = fast[3], task.write(model, batch, Writing(2), 2)[3]
    assert (words[5], words[5]) in zip(best.tokens, best.tokens[1:], strict=False)
    assert best.score < plain.score
    chosen = replace(batch, pairs=batch.pairs[[3, 0]], matched=batch.matched[[3, 0]])
    swapped = task.write(model, chosen, how, 2, hold=[hold[3], hold[0]])
    assert [[one.tokens for one in own] for own in swapped] == [[one.tokens for one in fast[n]] for n in (3, 0)]
    with pytest.raises(ValueError, match="search is constrained, but of 4 texts 0 have constraints"):
        task.write(model, batch, how)


@pytest.mark.parametrize("how", [Writing(), Writing(3), Writing(3, "frames"), Writing(2, "sample", top_p=0.9)])
def test_one_text_or_many_in_any_order(how: Writing) -> None:
    task, model, batch = built()
    together = task.write(model, batch, how)
    for order in ([3], [1], [2, 0], [3, 1, 2, 0]):
        chosen = replace(batch, pairs=batch.pairs[order], matched=batch.matched[order])
        for own, number in zip(task.write(model, chosen, how), order, strict=True):
            assert own[0].tokens == together[number][0].tokens
            assert own[0].score == pytest.approx(together[number][0].score, abs=1e-5)


def test_samples_are_drawn_by_the_ids_of_images() -> None:
    task, model, batch = built()
    how = Writing(3, "sample")
    before = task.write(model, batch, how)
    other = replace(batch.images, ids=torch.tensor([7, 1, 2]))
    after = task.write(model, replace(batch, images=other), how)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]  # pair 1 shows image 0


def test_the_captions_of_the_batch_are_not_looked_at() -> None:
    task, model, batch = built()
    others = samples.segment([[10, 11, 12], [], [5], [9]])
    changed = replace(batch, texts=replace(batch.texts, segments={**batch.texts.segments, "caption": others}))
    assert task.write(model, changed, Writing(2)) == task.write(model, batch, Writing(2))


def test_what_a_caption_begins_with() -> None:
    task, model, batch = built()
    begin = WORD_IDS[3:5]
    for how in (Writing(), Writing(3), Writing(3, "frames"), Writing(3, "sample")):
        for own in task.write(model, batch, how, begin=begin):
            assert own[0].tokens[:2] == begin
    with pytest.raises(ValueError, match="can't begin with 7 tokens, since this model writes 6"):
        task.write(model, batch, begin=WORD_IDS[:7])
    with pytest.raises(ValueError, match="can't begin with a word that the model never writes"):
        task.write(model, batch, begin=[samples.UNK])
    with pytest.raises(ValueError, match="leave no word that could come after 1 others"):
        task.write(model, batch, Writing(no_repeat=1), begin=[WORD_IDS[3]] * 2)


def test_placeholders_that_are_not_causal_or_not_even() -> None:
    task, model, batch = built()
    masks = task.placeholders(batch)
    plain = replace(masks, texts=replace(masks.texts, causal=torch.tensor([True, True, False, True])))
    uneven = samples.segment([[MASK]] * 3 + [[MASK] * 5])
    uneven = replace(masks, texts=replace(masks.texts, segments={**masks.texts.segments, "caption": uneven}))
    for wrong in (plain, uneven):
        with pytest.raises(ValueError, match="the placeholders of caption must be causal, and as many in each pair"):
            model.write(wrong, "caption")
