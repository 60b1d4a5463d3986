"""The encoder-decoder: what each row sees, against a slow decoder of one pair, and which weights are shared."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import samples
import torch
from samples import CLS
from torch import Tensor, nn

from vlp.config import ConfigError
from vlp.contracts import Encoded
from vlp.interfaces import NONE, Batch
from vlp.models.encoder_decoder import EncoderDecoder

TEXTS = [[7, 8, 9, 10], [11, 12], [13, 14, 15]]
TARGETS = [[20, 21, 22], [], [23, 24, 25, 26, 27]]
PAIRS = [[0, 0], [1, 1], [2, 1], [0, NONE], [NONE, 0]]


def model(**changed: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    made = samples.model(**{"type": "encoder_decoder", "shared": True, "layers": 2, **changed})
    assert isinstance(made, EncoderDecoder)
    return made.eval()


def batch(targets: list[list[int]] | None = TARGETS, images: list[int] | None = None) -> Batch:
    torch.manual_seed(1)
    clean = samples.batch(TEXTS, [3, 2], PAIRS)
    if targets is not None:
        segments = {**clean.texts.segments, "target": samples.segment(targets)}
        clean = replace(clean, texts=replace(clean.texts, segments=segments))
    return replace(clean, written_images=None if images is None else torch.tensor(images))


def written(encoded: Encoded, pair: int) -> Tensor:
    assert encoded.written is not None
    first, last = encoded.written.offsets[pair : pair + 2].tolist()
    return encoded.written.values[first:last]


def test_without_anything_to_write_it_is_the_single_stream() -> None:
    """With the same weights under the same names; and what is written changes nothing of what is read."""
    own, plain = model(), samples.model(layers=2).eval()
    lacking = own.load_state_dict(plain.state_dict(), strict=False)
    assert not lacking.unexpected_keys
    assert all(name.startswith("crossing.") for name in lacking.missing_keys)
    expected, found = plain(batch(None)), own(batch(None))
    assert found.written is None
    torch.testing.assert_close(found.text.values, expected.text.values, rtol=0, atol=0)
    torch.testing.assert_close(found.pooled["pair"], expected.pooled["pair"], rtol=0, atol=0)
    assert found.rows == expected.rows
    writing = own(batch())
    torch.testing.assert_close(writing.text.values, expected.text.values, rtol=0, atol=0)
    assert writing.rows == expected.rows + 3 + 5 + 3, "pairs 0, 2 and 3"


def slow_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool) -> Tensor:
    """Row by row and head by head."""
    size = query.shape[1] // heads
    out = torch.zeros_like(query)
    for n in range(len(query)):
        seen = n + 1 if causal else len(key)
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            fits = torch.stack([query[n, part] @ key[m, part] / math.sqrt(size) for m in range(seen)])
            out[n, part] = sum(w * value[m, part] for m, w in enumerate(fits.softmax(0)))  # type: ignore[assignment]
    return out


def slow_decoder(own: EncoderDecoder, blocks: nn.ModuleList, rows: Tensor, read: Tensor) -> Tensor:
    """What the decoder makes of the embedded rows of one pair, given the rows that were read about it."""
    for block, cross in zip(blocks, own.crossing, strict=True):
        qkv = block.attention.qkv(rows).chunk(3, 1)
        rows = block.attention_norm(rows + block.attention.out(slow_attention(*qkv, 2, causal=True)))
        key, value = cross.attention.key_value(read).chunk(2, 1)
        query = cross.attention.query(rows)
        rows = cross.norm(rows + cross.attention.out(slow_attention(query, key, value, 2, causal=False)))
        rows = block.mlp_norm(rows + block.mlp_out(nn.functional.gelu(block.mlp_in(rows))))
    return rows


def word_inputs(own: EncoderDecoder, target: list[int]) -> Tensor:
    """Embedded rows of the start and all words but the last, as UNITER makes them."""
    table = own.embedder
    ids = torch.tensor([CLS, *target[:-1]])
    summed = table.word_table(ids) + table.position_table(torch.arange(len(ids))) + table.type_table(torch.tensor(0))
    return table.text_norm(summed)


@pytest.mark.parametrize("shared", [True, False])
def test_against_a_slow_decoder(shared: bool) -> None:
    own, given = model(shared=shared), batch()
    encoded = own(given)
    blocks = own.encoder.layers if own.decoder is None else own.decoder.layers
    for pair, text in enumerate([0, 1, 2, 0]):
        rows, target = written(encoded, pair), TARGETS[text]
        assert len(rows) == len(target)
        if target:
            first, last = encoded.text.offsets[pair : pair + 2].tolist()
            expected = slow_decoder(own, blocks, word_inputs(own, target), encoded.text.values[first:last])
            torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
    assert not len(written(encoded, 4)), "a pair without text writes none"


def test_which_row_predicts_which_word() -> None:
    encoded = model()(batch())
    where = encoded.places.written_words
    assert where is not None
    assert where.row.tolist() == list(range(11))
    assert where.source.tolist() == [0, 1, 2, *range(3, 8), 0, 1, 2]
    assert where.pair.tolist() == [0] * 3 + [2] * 5 + [3] * 3
    assert encoded.places.written_regions is not None
    assert not len(encoded.places.written_regions.row)


@pytest.mark.parametrize("place", range(5))
def test_a_row_sees_no_word_that_it_predicts_or_that_comes_later(place: int) -> None:
    """But all words before, all that is read, and nothing of other pairs."""
    own = model()
    changed = [list(target) for target in TARGETS]
    changed[2][place] = 30
    one, other = own(batch()), own(batch(changed))
    same = torch.isclose(written(one, 2), written(other, 2), rtol=0, atol=0).all(1)
    assert same.tolist() == [True] * (place + 1) + [False] * (4 - place)
    for pair in (0, 3):
        torch.testing.assert_close(written(one, pair), written(other, pair), rtol=0, atol=0)
    torch.testing.assert_close(one.text.values, other.text.values, rtol=0, atol=0)


def test_every_row_sees_all_that_is_read() -> None:
    own, given = model(), batch()
    features = given.images.features.clone()
    features[4] += 1  # the last region of image 1, that of pairs 1 and 2
    one, other = own(given), own(replace(given, images=replace(given.images, features=features)))
    assert not torch.isclose(written(one, 2), written(other, 2)).all(1).any()
    torch.testing.assert_close(written(one, 0), written(other, 0), rtol=1e-5, atol=1e-6)


def test_regions_are_written_one_row_late() -> None:
    """A pair that writes an image writes no words; each row sees the regions before, boxes included."""
    own, images = model(), [0, NONE, 1, 1, NONE]
    given = batch(images=images)
    encoded = own(given)
    regions, words = encoded.places.written_regions, encoded.places.written_words
    assert regions is not None
    assert words is not None
    assert regions.source.tolist() == [0, 1, 2, 3, 4, 3, 4]
    assert regions.pair.tolist() == [0, 0, 0, 2, 2, 3, 3]
    assert regions.row.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert not len(words.row), "the only pairs with a target write images"
    # the pair without an image to read
    features = given.images.features.clone()
    features[3] += 1
    other = own(replace(given, images=replace(given.images, features=features)))
    torch.testing.assert_close(written(encoded, 3)[0], written(other, 3)[0], rtol=1e-5, atol=1e-6)
    assert not torch.isclose(written(encoded, 3)[1], written(other, 3)[1]).all()
    boxes = given.images.boxes.clone()
    boxes[3] *= 0.5
    other = own(replace(given, images=replace(given.images, boxes=boxes)))
    assert not torch.isclose(written(encoded, 3)[1], written(other, 3)[1]).all()


def test_regions_against_the_slow_decoder() -> None:
    own = model()
    given = batch(None, [NONE, NONE, NONE, 0, NONE])
    encoded = own(given)
    table, images = own.embedder, given.images
    kind = table.type_table(torch.tensor(1))
    regions = table.region_norm(table._project(images.features[:2], images.boxes[:2]) + kind)
    rows = torch.cat([word_inputs(own, [0]), regions])
    first, last = encoded.text.offsets[3:5].tolist()
    assert last - first == 6, "CLS, four words and SEP; no region is read"
    expected = slow_decoder(own, own.encoder.layers, rows, encoded.text.values[first:last])
    torch.testing.assert_close(written(encoded, 3), expected, rtol=1e-4, atol=1e-5)


def test_what_is_shared() -> None:
    """Shared blocks are there once; a decoder of its own with their values gives the same."""
    one, two = model(), model(shared=False)
    names = {name for name, _ in one.named_parameters()}
    assert names == {name for name, _ in two.named_parameters() if not name.startswith("decoder.")}
    assert not [name for name in names if name.startswith("decoder.")]
    two.load_state_dict(one.state_dict(), strict=False)
    assert two.decoder is not None
    assert not torch.isclose(written(one(batch()), 0), written(two(batch()), 0)).all()
    two.decoder.load_state_dict(one.encoder.state_dict())
    torch.testing.assert_close(written(one(batch()), 0), written(two(batch()), 0), rtol=0, atol=0)


@pytest.mark.parametrize("shared", [True, False])
def test_every_layer_is_named_once(shared: bool) -> None:
    """In the order that rates may fall by; nothing but the pooler is above."""
    own = model(shared=shared)
    order = own.layer_order()
    assert len(order) == (3 if shared else 5)
    for name, _ in own.named_parameters():
        found = [part for parts in order for part in parts if name.startswith(f"{part}.")]
        assert len(found) == (not name.startswith("pooler."))


def test_its_plan_goes_to_other_processes() -> None:
    own, given = model(), batch()
    planned = pickle.loads(pickle.dumps(own.plan))(given)
    torch.testing.assert_close(written(own(given, planned), 0), written(own(given), 0), rtol=0, atol=0)


def test_a_layout_with_causal_items_is_refused() -> None:
    with pytest.raises(ConfigError, match="layout_causal is of models that write in the stream they read"):
        model(layout_causal=["CLS", "caption"])


@pytest.mark.parametrize("kept", [[[0, 1, 2], [0, 1, 2]], [[0, 0, 1, 1, 2, 2], [2, 3, 0, 1]], [[2, 0, 0, 1], [3, 1]]])
def test_words_that_are_kept_are_as_if_read_anew(kept: list[list[int]]) -> None:
    """Of pairs unlike in length, whatever texts go on: side by side in equal groups, in others, or not all of them."""
    own, given = model(), batch(None)
    images, segments = torch.tensor([[0, 0], [1, 1], [2, 0]]), given.texts.segments
    given = replace(given, pairs=images, matched=torch.ones(3, dtype=torch.bool))
    room = replace(given, texts=replace(given.texts, segments={**segments, "second": samples.segment([[4] * 5] * 3)}))
    states = own.write(room, "second")
    texts: list[list[int]] = [[], [], []]
    pairs = [0, 1, 2]
    found = states.next(None)
    for step, chosen in enumerate([*kept, None]):
        for state, text, pair in zip(found, texts, pairs, strict=True):
            target = {"target": samples.segment([[*text, 9] if n == pair else [] for n in range(3)])}
            whole = own(replace(given, texts=replace(given.texts, segments={**segments, **target})))
            torch.testing.assert_close(state, whole.written.values[-1], rtol=1e-4, atol=1e-5)
        if chosen is not None:
            states.keep(torch.tensor(chosen))
            words = [20 + step + 2 * n for n in range(len(chosen))]
            texts = [[*texts[n], word] for n, word in zip(chosen, words, strict=True)]
            pairs = [pairs[n] for n in chosen]
            found = states.next(torch.tensor(words))


def test_no_more_words_than_there_is_room_for() -> None:
    own, given = model(), batch(None)
    pairs = torch.tensor([[0, 0], [1, 1], [2, 1]])
    segments = {"caption": samples.segment([[4, 4]] * 3)}
    states = own.write(replace(given, pairs=pairs, texts=replace(given.texts, segments=segments)), "caption")
    assert states.next(None).shape == (3, 8)
    states.keep(torch.tensor([2, 0]))
    assert states.next(torch.tensor([20, 21])).shape == (2, 8)
    with pytest.raises(ValueError, match="no more than 2 words"):
        states.next(torch.tensor([20, 21]))
