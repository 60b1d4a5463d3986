"""Phrase grounding: the loss written out with slow loops, what is asked, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch

from vlp.interfaces import NONE, Batch, Phrases
from vlp.tasks.phrase_grounding import PhraseGrounding

QUESTIONS = {"layout": ["CLS", "question", "SEP", "regions"], "max_tokens": {"question": 4}}
BOXES = torch.tensor([[0.0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.4]])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def phrases(*known: tuple[int, int, list[list[float]]]) -> Phrases:
    """Phrases, each as its pair, its last token among all, and its boxes."""
    return Phrases(
        torch.tensor([pair for pair, _, _ in known], dtype=torch.int64),
        torch.tensor([token for _, token, _ in known], dtype=torch.int64),
        torch.tensor([box for _, _, boxes in known for box in boxes]).view(-1, 4),
        torch.tensor([0, *(len(boxes) for _, _, boxes in known)]).cumsum(0),
    )


def captioned(known: Phrases | None) -> Batch:
    """Texts of 3, 0, 2 and 5 tokens, the last cut to 4, with images of 2, 1 and 2 regions, and none."""
    batch = samples.batch(
        [[7, 8, 6], [], [9, 10], [5, 6, 7, 8, 9]], [2, 1, 2], [[0, 0], [1, 1], [2, 2], [3, 0], [2, NONE]]
    )
    return replace(
        batch,
        texts=replace(batch.texts, segments={"question": batch.texts.segments["caption"]}),
        images=replace(batch.images, boxes=BOXES),
        phrases=known,
    )


ALL = [
    (0, 0, [[0.0, 0, 0.5, 0.25]]),  # the first region of the first image, by just a half
    (0, 2, [[0.5, 0.5, 1, 0.9], [0, 0, 0.4, 0.5]]),  # either, for it has two boxes
    (2, 4, [[0.0, 0, 0.5, 0.5]]),  # both regions of the third image overlap enough
    (2, 3, [[0.9, 0.9, 1, 1]]),  # no region does
    (3, 5, []),  # nothing is known of it
    (3, 9, [[0.5, 0.5, 1, 1]]),  # the fifth token is cut off
    (4, 3, [[0.0, 0, 1, 1]]),  # there is no image
]
RIGHT = {0: [0], 1: [0, 1], 2: [0, 1], 3: [], 4: []}  # by phrase, of the regions of its image


def test_the_loss_written_out() -> None:
    torch.manual_seed(0)
    model = samples.model(**QUESTIONS)
    task = PhraseGrounding(model, head_size=3)
    batch, targets = task.corrupt(captioned(phrases(*ALL)), generator())
    assert batch.phrases is not None
    encoded = model(batch)
    expected, right = torch.zeros(()), []
    for number, regions in RIGHT.items():
        pair, token, _ = ALL[number]
        first = int(encoded.text.offsets[pair])
        words = int(batch.texts.segments["question"].offsets[int(batch.pairs[pair, 0])])
        state = encoded.text.values[first + 1 + token - words]  # after CLS
        end = int(encoded.text.offsets[pair + 1])
        count = int(batch.images.offsets.diff()[int(batch.pairs[pair, 1])])
        scores = torch.stack(
            [torch.dot(task.query(state), task.key(encoded.visual.values[end - count + n])) for n in range(count)]
        )
        log = (scores / 3**0.5).log_softmax(0)
        right.append(int(log.argmax()) in regions)
        for region in regions:
            share = 1 / len(regions)
            expected = expected + share * (torch.tensor(share).log() - log[region])
        logits = task.logits(encoded)
        torch.testing.assert_close(task.probabilities(logits)[token, :count], log.exp())
    losses, report = task.loss(encoded, targets, model)
    torch.testing.assert_close(losses["phrase_grounding"], expected / 3)  # pairs 0, 2 and 3
    assert float(report["grounding_accuracy"]) == pytest.approx(sum(right) / len(right))
    assert 0 < sum(right) < 5


def test_gradients_are_numbers() -> None:
    """Where images have fewer regions than others, and phrases none that is right."""
    model = samples.model(**QUESTIONS)
    task = PhraseGrounding(model)
    batch, targets = task.corrupt(captioned(phrases(*ALL, (1, 3, [[0.0, 0, 1, 1]]))), generator())
    task.loss(model(batch), targets, model)[0]["phrase_grounding"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in [*model.parameters(), *task.parameters()])
    assert task.query.weight.grad is not None
    assert task.query.weight.grad.any()


def test_mismatched_pairs_ask_nothing() -> None:
    model = samples.model(**QUESTIONS)
    task = PhraseGrounding(model)
    given = captioned(phrases(*ALL))
    given.matched[0] = False
    batch, targets = task.corrupt(given, generator())
    located = targets.locate(model(batch).places)
    assert located.pairs.tolist() == [2, 2, 3]
    assert located.questions == 2


def test_a_text_beside_two_images() -> None:
    """Each pair has rows of its own for the same token."""
    model = samples.model(**QUESTIONS)
    task = PhraseGrounding(model)
    known = phrases((2, 4, [BOXES[0].tolist()]), (4, 4, [BOXES[0].tolist()]))
    given = captioned(known)
    given.pairs[4, 1] = 0
    batch, targets = task.corrupt(given, generator())
    encoded = model(batch)
    located = targets.locate(encoded.places)
    assert located.pairs.tolist() == [2, 4]
    starts = encoded.text.offsets[located.pairs]
    assert (located.words - starts).tolist() == [2, 2]  # after CLS and another


def test_no_phrase_is_a_connected_zero_and_data_without_is_refused() -> None:
    model = samples.model(**QUESTIONS)
    task = PhraseGrounding(model)
    batch, targets = task.corrupt(captioned(phrases(ALL[5], ALL[6])), generator())
    loss = task.loss(model(batch), targets, model)[0]["phrase_grounding"]
    loss.backward()
    assert loss.item() == 0.0
    none = Phrases(*(torch.zeros(0, dtype=torch.int64) for _ in "ab"), torch.zeros(0, 4), torch.zeros(1).long())
    batch, targets = task.corrupt(captioned(none), generator())  # all are cut off
    assert task.loss(model(batch), targets, model)[0]["phrase_grounding"].item() == 0.0
    with pytest.raises(ValueError, match=r"source 'made_up' have no phrases; phrase_grounding needs data whose"):
        task.corrupt(captioned(None), generator())
    with pytest.raises(ValueError, match="head_size=0 must be positive"):
        PhraseGrounding(model, 0)


def test_regions_beyond_the_images_own_are_never_right() -> None:
    """Where an image has fewer regions than another, what stands in their place is no region."""
    model = samples.model(**QUESTIONS)
    task = PhraseGrounding(model)
    known = phrases((1, 3, [BOXES[0].tolist()]), (0, 0, [BOXES[0].tolist()]))
    _, targets = task.corrupt(captioned(known), generator())
    assert targets.right.tolist() == [[False, False], [True, False]]
