"""Self-critical training: the loss by hand, its gradient by the rule of REINFORCE, and what it doesn't depend on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import samples
import torch
from samples import MASK, SEP, WORD_IDS
from slow_writing import SlowWriter
from test_captioning import captions, generator, model, task

from vlp.interfaces import Batch
from vlp.metrics.cider import Frequencies, cider_d
from vlp.tasks.captioning import Captioning, CaptionTargets
from vlp.tasks.self_critical import captions_of, ended
from vlp.training.packing import pack
from vlp.writing.settings import Writing
from vlp.writing.writer import Written

TEXTS = [[5, 6, 7], [8, 9]]


def rewarded(**changed: Any) -> tuple[Captioning, Any]:
    """A task in training whose frequencies are those of a few captions, and its model."""
    of = model()
    own = task(of, rewarded="cider", **changed)
    own.frequencies = own.count_captions([[[5, 6, 7]], [[8, 9]], [[5, 9], [7]], [[10]]])
    return own.train(), of.train()


def loss_of(own: Captioning, of: Any, batch: Batch, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    corrupted, targets = own.corrupt(batch, generator(seed))
    losses, report = own.loss(of(corrupted), targets, of)
    return losses["captioning"], report


def slow_log(own: Captioning, of: Any, batch: Batch, pair: int, text: list[int]) -> torch.Tensor:
    """The logarithm of a text's probability, word after word, each by a batch of its own, with gradient."""
    writable = [*WORD_IDS, SEP]
    total = torch.zeros(())
    for place, word in enumerate(text):
        words = [*text[:place], MASK]
        caption = samples.segment([words])
        shown = own.about(replace(batch, pairs=batch.pairs[pair : pair + 1]), caption)
        encoded = of(shown)
        row = encoded.places.tokens["caption"].row[-1]
        logits = own.word_logits(encoded.text.values[row][None], of)[0, writable]
        total = total + logits.log_softmax(0)[writable.index(word)]
    return total


def test_how_likely_texts_are() -> None:
    """All words at once are the words one by one; of all texts of a word and its end, and the end alone, as drawn."""
    own, of = rewarded()
    of.eval()
    batch = captions(TEXTS, [[0, 0], [1, 1], [0, 1]])
    texts = [[5, 6, SEP], [8, 5, 9, 7, 10], [SEP]]
    log = own.log_probability(of, batch, texts)
    expected = torch.stack([slow_log(own, of, batch, pair, text) for pair, text in enumerate(texts)])
    torch.testing.assert_close(log, expected)
    writer = SlowWriter(own, of, batch)
    first = writer.next(None)[:, [*WORD_IDS, SEP]].log_softmax(1)
    torch.testing.assert_close(log[2], first[2, -1])


def test_the_gradient_is_that_of_reinforce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all captions of one word or none: weighted by how likely each is, the losses' gradients sum to that of the
    expected reward, whatever the greedy caption is worth.
    """
    own, of = rewarded(most_written=2)  # a word at most, and then nothing changes the text
    batch = captions([[5]], [[0, 0]])
    of.eval()
    every = [[]] + [[word] for word in WORD_IDS]
    frequencies = own.frequencies
    assert frequencies is not None
    parameters = [p for p in (*of.parameters(), *own.parameters()) if p.requires_grad]
    texts = [ended(text, own) for text in every]
    assert texts[0] == [SEP]
    assert texts[1] == [WORD_IDS[0]]
    log = torch.stack([slow_log(own, of, batch, 0, text) for text in texts])
    torch.testing.assert_close(log.exp().sum(), torch.tensor(1.0))
    rewards = torch.tensor([cider_d(text, [[5, SEP]], frequencies) for text in texts])
    assert rewards.max() > rewards.min()
    expected = torch.autograd.grad(-(log.exp() * rewards).sum(), parameters, allow_unused=True)
    chances = log.detach().exp()
    found = [torch.zeros_like(p) for p in parameters]
    for text, chance in zip(every, chances.tolist(), strict=True):

        def written(self: Any, model: Any, batch: Batch, how: Any = None, text: list[int] = text) -> Any:
            return [[Written(text if how is not None else [5], 0.0)]]

        monkeypatch.setattr(Captioning, "write", written)
        loss, _ = loss_of(own, of, batch)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for total, gradient in zip(found, gradients, strict=True):
            total += 0 if gradient is None else chance * gradient
    for total, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(
            total, torch.zeros_like(total) if gradient is None else gradient, atol=1e-6, rtol=1e-4
        )


def test_the_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given what is drawn and what is likeliest; a mismatched pair counts nothing."""
    own, of = rewarded()
    batch = captions(TEXTS, [[0, 0], [1, 1], [0, 1]])
    batch = replace(batch, matched=torch.tensor([True, True, False]))
    drawn, greedy = [[5, 6], [8, 9], [5, 6, 7]], [[5, 6, 7], [8], [10]]

    def written(self: Any, model: Any, batch: Batch, how: Writing | None = None) -> list[list[Written]]:
        assert not model.training
        return [[Written(text, 0.0)] for text in (greedy if how is None else drawn)]

    monkeypatch.setattr(Captioning, "write", written)
    loss, report = loss_of(own, of, batch)
    of.eval()
    frequencies = own.frequencies
    assert frequencies is not None
    people = [[5, 6, 7, SEP], [8, 9, SEP], [5, 6, 7, SEP]]
    rewards = [cider_d([*a, SEP], [p], frequencies) for a, p in zip(drawn, people, strict=True)]
    baselines = [cider_d([*a, SEP], [p], frequencies) for a, p in zip(greedy, people, strict=True)]
    logs = [slow_log(own, of, batch, pair, [*text, SEP]) for pair, text in enumerate(drawn)]
    differences = [a - b for a, b in zip(rewards, baselines, strict=True)]
    assert differences[0] < 0 < differences[1]
    expected = -sum(d * log for d, log in zip(differences[:2], logs[:2], strict=True)) / 3
    torch.testing.assert_close(loss, expected)
    assert float(report["reward"]) == pytest.approx(sum(rewards) / 3)
    assert float(report["greedy_reward"]) == pytest.approx(sum(baselines) / 3)


def test_equal_captions_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    own, of = rewarded()
    monkeypatch.setattr(Captioning, "write", lambda *a, **k: [[Written([5, 6], 0.0)], [Written([8], 0.0)]])
    loss, _ = loss_of(own, of, captions(TEXTS, [[0, 0], [1, 1]]))
    assert float(loss) == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in (*of.parameters(), *own.parameters()))


def test_what_is_drawn_follows_from_the_seed_and_the_images() -> None:
    """Not from dropout, nor from what is beside a pair; and modes are as they were."""
    own, of = rewarded()
    of.encoder.layers[0].eval()
    for part in of.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    modes = [part.training for part in of.modules()]
    batch = captions(TEXTS, [[0, 0], [1, 1]])
    _, targets = own.corrupt(batch, generator())
    losses = []
    for seed in range(2):
        torch.manual_seed(seed)
        losses.append(own.loss(of(batch), targets, of)[0]["captioning"])
    assert float(losses[0]) == float(losses[1]) != 0
    assert [part.training for part in of.modules()] == modes
    drawing = targets.drawing
    alone = [
        own.loss(of(batch), replace(targets, drawing=replace(drawing, batch=one)), of)[0]["captioning"]
        for one in (replace(drawing.batch, pairs=batch.pairs[n : n + 1], matched=batch.matched[:1]) for n in (0, 1))
    ]
    torch.testing.assert_close(sum(alone) / 2, losses[0])
    others = {float(loss_of(own, of, batch, seed)[0]) for seed in range(5)}
    assert len(others) == 5
    assert {float(loss_of(own, of, batch, seed)[0]) for seed in range(5)} == others


def test_under_autocast_everything_has_a_gradient() -> None:
    own, of = rewarded()
    batch = captions(TEXTS, [[0, 0], [1, 1]])
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = loss_of(own, of, batch)
    loss.backward()
    of_run = {name for name, p in of.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert any("layers.0" in name for name in of_run)
    assert all(p.grad is not None for p in own.parameters())


def test_held_out_losses_are_of_masked_words() -> None:
    own, of = rewarded()
    plain = task(of).eval()
    plain.load_state_dict(own.state_dict())
    batch = captions(TEXTS, [[0, 0], [1, 1]])
    corrupted, targets = own.eval().corrupt(batch, generator())
    other, masked = plain.corrupt(batch, generator())
    torch.testing.assert_close(corrupted.texts.segments["caption"].tokens, other.texts.segments["caption"].tokens)
    found = own.loss(of(corrupted), targets, of)[0]["captioning"]
    torch.testing.assert_close(found, plain.loss(of(other), masked, of)[0]["captioning"])


def test_it_can_be_sent_and_is_counted() -> None:
    """What loader processes hand over; captions are cut and ended, and n-grams survive a file."""
    own, of = rewarded()
    corrupted, targets = own.corrupt(captions(TEXTS, [[0, 0], [1, 1]]), generator())
    sent = pack((corrupted, targets)).unpack()[1]
    assert isinstance(sent, CaptionTargets)
    assert sent.drawing is not None
    assert captions_of(sent.drawing.batch) == [[5, 6, 7, SEP], [8, 9, SEP]]
    assert own.frequencies == Frequencies.of([[[5, 6, 7, SEP]], [[8, 9, SEP]], [[5, 9, SEP], [7, SEP]], [[10, SEP]]])
    assert own.count_captions([[[5] * 9]]) == Frequencies.of([[[5] * 5 + [SEP]]])
    assert Frequencies.from_tensors(own.frequencies.tensors()) == own.frequencies
    own.frequencies = None
    with pytest.raises(ValueError, match="measured by the words of the training captions; count these"):
        own.loss(of(corrupted), targets, of)
    assert Captioning.needs(rewarded="cider").captions
    assert not Captioning.needs().captions


def test_modes_come_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    own, of = rewarded()
    batch = captions(TEXTS, [[0, 0], [1, 1]])
    _, targets = own.corrupt(batch, generator())

    def failing(*given: Any) -> None:
        assert not own.training
        assert not of.training
        raise KeyError

    monkeypatch.setattr(Captioning, "write", failing)
    with pytest.raises(KeyError):
        own.loss(of(batch), targets, of)
    assert own.training
    assert all(part.training for part in of.modules())
