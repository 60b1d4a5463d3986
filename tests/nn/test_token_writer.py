"""What is written row by row equals reading all anew, in float64, for each pattern and option."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokens_small import CAPTIONS, batch_of, cogview, dalle, some_batch
from torch import Tensor

from vlp.interfaces import NONE, Batch
from vlp.models.token_decoder import TokenDecoder
from vlp.nn.patterns import PATTERNS
from vlp.writing.filters import begins, top_k
from vlp.writing.guided import Guided
from vlp.writing.sampling import sample
from vlp.writing.searches import greedy

CPU = torch.device("cpu")
EXACT = {"rtol": 0.0, "atol": 1e-10}
MODELS: dict[str, Any] = {
    **{f"dalle, {name}": lambda name=name: dalle(patterns=[name]) for name in PATTERNS},
    "dalle, patterns in turn": lambda: dalle(patterns=["row", "column", "full"], layers=4),
    "dalle, no shift": lambda: dalle({"token_shift": False}, patterns=["row"]),
    "dalle, no rotary": lambda: dalle(positions="axial", patterns=["previous_row"]),
    "dalle, no shift, no rotary": lambda: dalle({"token_shift": False}, positions="learned"),
    "dalle, reversible": lambda: dalle(reversible=True),
    "dalle, stable, sandwich, tied": lambda: dalle({"sandwich": True}, stable=True, tied=True),
    "dalle, narrow": lambda: dalle({"head_size": 7, "heads": 3}, hidden_size=9),
    # a norm without epsilon takes no notice of the largest number of what is read together
    "cogview": lambda: cogview({"norm_eps": 0.0}),
    "cogview, apart": lambda: cogview({"norm_eps": 0.0}, vocabulary="apart", template=["START", "caption", "codes"]),
}


@pytest.fixture(params=MODELS, ids=str)
def model(request: pytest.FixtureRequest) -> TokenDecoder:
    return MODELS[request.param]().double().eval()


def anew(model: TokenDecoder, batch: Batch) -> Tensor:
    """What the full pass says of each code, given those before it: logarithms [P, n, codes]."""
    template = model.template
    ids, is_code, _ = template.lay(batch.texts.segments["caption"], batch.pairs[:, 0])
    first = template.first_of("codes", is_code)
    codes_at = first[:, None] + torch.arange(template.cells)
    ids = model.filled(ids, codes_at, batch.images.codes)
    states = model.read(ids)
    rows = torch.stack([own[begin - 1 : begin - 1 + template.cells] for own, begin in zip(states, first, strict=True)])
    return model.predicted(rows, "codes").log_softmax(2)


def kept(writer: Any, codes: Tensor) -> Tensor:
    """What a writer says of each of these codes [n, cells]."""
    return torch.stack([writer.next(None if n == 0 else codes[:, n - 1]) for n in range(codes.shape[1])], 1)


def test_kept_equals_anew(model: TokenDecoder) -> None:
    batch = some_batch()
    expected = anew(model, batch)
    assert (expected.std(0) > 1e-3).all(), "captions must matter"
    torch.testing.assert_close(kept(model.writer(batch, "codes"), batch.images.codes), expected, **EXACT)


def test_candidates_share_their_prompt(model: TokenDecoder) -> None:
    """Candidates before the first code and after some, dropped and in another order."""
    batch = some_batch()
    codes = batch.images.codes
    generator = torch.Generator().manual_seed(2)
    writer = model.writer(batch, "codes")
    text = torch.arange(4).repeat_interleave(3)
    other = torch.randint(7, (12, codes.shape[1]), generator=generator)
    writer.keep(text)
    said = [writer.next(None)]
    said += [writer.next(other[:, n]) for n in range(4)]
    wide = batch_of([CAPTIONS[n] for n in text.tolist()], other)
    expected = anew(model, wide)
    torch.testing.assert_close(torch.stack(said, 1), expected[:, :5], **EXACT)
    for rows in (torch.tensor([11, 0, 0, 5, 7]), torch.tensor([3, 1, 2, 2])):
        writer.keep(rows)
        other, text = other[rows], text[rows]
        said = [writer.next(other[:, n]) for n in range(4, 6)] if len(rows) == 5 else [writer.next(other[:, 6])]
        first = 5 if len(rows) == 5 else 7
        expected = anew(model, batch_of([CAPTIONS[n] for n in text.tolist()], other))
        torch.testing.assert_close(torch.stack(said, 1), expected[:, first : first + len(said)], **EXACT)


def test_texts_are_written(model: TokenDecoder) -> None:
    """From the template's first token on; words are those of the tokenizer."""
    template = model.template
    words = [[3, 4, 5, 6, 7], [8, 9, 10, 3, 3]]
    batch = batch_of([[], []], torch.zeros(2, template.cells, dtype=torch.int64))
    said = kept(model.writer(batch, "text"), torch.tensor(words))
    full = batch_of(words, torch.zeros(2, template.cells, dtype=torch.int64))
    decoded = model(full)
    logits = model.logits(decoded.text_states, "text")[:, : template.most]
    if template.vocabulary == "joint":
        logits = logits[:, :, template.rows_of("text")]
    assert said.shape == (2, template.most, template.text_rows)
    torch.testing.assert_close(said, logits.log_softmax(2), **EXACT)


@pytest.mark.parametrize("template", [["BOI1", "codes", "EOI1", "ROI1", "caption", "END"], ["codes", "caption"]])
def test_texts_after_codes(template: list[str]) -> None:
    """CogView's template for captions."""
    model = cogview({"norm_eps": 0.0}, template=template).double().eval()
    words = [[3, 4, 5, 6, 7], [8, 9, 10, 3, 3]]
    codes = some_batch().images.codes[:2]
    said = kept(model.writer(batch_of([[], []], codes), "text"), torch.tensor(words))
    full = batch_of(words, codes)
    ids, is_code, _ = model.template.lay(full.texts.segments["caption"], full.pairs[:, 0])
    codes_at = is_code.nonzero()[:, 1].view(2, -1)
    begin = template.index("caption") + 11
    states = model.read(model.filled(ids, codes_at, codes))[:, begin - 1 : begin + 4]
    torch.testing.assert_close(said, model.predicted(states, "text").log_softmax(2), **EXACT)
    alone = replace(batch_of([[]], codes[:1]), pairs=torch.tensor([[0, NONE]]))
    with pytest.raises(ValueError, match="an image for every pair"):
        model.writer(alone, "text")


def test_guided() -> None:
    """By hand from two full passes, and its ends are the two."""
    model = dalle(patterns=["row"]).double().eval()
    batch = some_batch()
    codes = batch.images.codes
    empty = replace(batch, pairs=torch.cat([torch.full((4, 1), NONE), batch.pairs[:, 1:]], 1))
    own, without = anew(model, batch), anew(model, empty)
    for scale, expected in (
        (2.5, (without + (own - without) * 2.5).log_softmax(2)),
        (1.0, own),
        (0.0, without),
    ):
        writer = Guided(model.writer(batch, "codes"), model.writer(empty, "codes"), scale)
        torch.testing.assert_close(kept(writer, codes), expected, **EXACT)


def test_guided_candidates_and_what_never_comes() -> None:
    class Fixed:
        def __init__(self, log: list[list[float]]):
            self.log = torch.tensor(log).log()

        def next(self, tokens: Tensor | None) -> Tensor:
            return self.log

        def keep(self, rows: Tensor) -> None:
            self.log = self.log[rows]

    # a token that either never says, or both, is never said
    own, without = [[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]], [[0.5, 0.25, 0.25, 0.0], [0.1, 0.2, 0.7, 0.0]]
    writer = Guided(Fixed(own), Fixed(without), 2.0)
    writer.keep(torch.tensor([1, 0, 0]))
    found = writer.next(None).exp()
    # squares of the former over the latter, made a distribution again
    numbers = torch.tensor([0.1, 0.2, 0.3**2 / 0.7, 0.0])
    torch.testing.assert_close(found[0], numbers / numbers.sum())
    torch.testing.assert_close(found[2], torch.tensor([1 / 3, 2 / 3, 0.0, 0.0]))


@pytest.mark.parametrize("make", [lambda: dalle(patterns=["row", "column"]), cogview], ids=["dalle", "cogview"])
def test_samples_do_not_depend_on_the_batch(make: Any) -> None:
    model = make().eval()
    batch = some_batch()

    def drawn(rows: list[int]) -> dict[int, list[list[int]]]:
        own = batch_of([CAPTIONS[n] for n in rows], batch.images.codes[rows])
        texts = sample(model.writer(own, "codes"), rows, 3, 12, None, CPU, seed=5, filters=[top_k(4)])
        return {n: sorted(text.tokens for text in each) for n, each in zip(rows, texts, strict=True)}

    together = drawn([0, 1, 2, 3])
    assert {len(tokens) for each in together.values() for tokens in each} == {12}
    assert len({tuple(tokens) for each in together.values() for tokens in each}) > 8
    assert drawn([3, 0, 2]) == {n: together[n] for n in (3, 0, 2)}
    assert {n: own[n] for n in range(4) for own in [drawn([n])]} == together


def test_all_codes_are_written_and_some_may_be_given() -> None:
    model = dalle().double().eval()
    batch = some_batch()
    texts = greedy(model.writer(batch, "codes"), 4, 12, None, CPU)
    codes = torch.tensor([text.tokens for text in texts])
    logs = anew(model, batch_of(CAPTIONS, codes))
    assert torch.equal(logs.argmax(2), codes)
    torch.testing.assert_close(torch.tensor([t.score for t in texts]), logs.max(2).values.mean(1).float())
    upper = [6, 5, 4, 3]
    given = greedy(model.writer(batch, "codes"), 4, 12, None, CPU, [begins(upper)])
    assert all(text.tokens[:4] == upper for text in given)
    with pytest.raises(ValueError, match="no more than 12 codes"):
        greedy(model.writer(batch, "codes"), 4, 13, None, CPU)
