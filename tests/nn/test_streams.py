"""The two streams: one layout split in two, and the two-stream embedders row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch
from samples import CLS, FEATURES, SEP, SPECIAL
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from vlp.interfaces import NONE, Batch
from vlp.nn.embedders.text_rows import TextSizes
from vlp.nn.embedders.two_stream import TwoStreamEmbedder
from vlp.nn.layout import Layout

ITEMS = ["CLS", "caption", "SEP", "whole", "regions"]
SIZES = {"text": TextSizes(samples.WORDS, 16, 5), "feature_size": FEATURES}
TEXT, VISUAL = 8, 6  # widths


def layout(*items: str) -> Layout:
    return Layout([*items], [*range(len(items))], SPECIAL, {"caption": 5})


def made(masked: list[bool] | None = None) -> Batch:
    """Two captions of image 1, an image alone, a text alone, and an image without regions."""
    batch = samples.batch([[7, 8], [9], []], [2, 3, 0], [[0, 1], [1, 1], [NONE, 0], [2, NONE], [NONE, 2]])
    images = replace(
        batch.images,
        features=batch.images.features.double(),
        boxes=batch.images.boxes.double(),
        masked=None if masked is None else torch.tensor(masked),
    )
    return replace(batch, images=images)


def test_whole_is_one_row_an_image() -> None:
    sequences = layout(*ITEMS).assemble(made())
    assert sequences.offsets.tolist() == [0, 8, 15, 18, 20, 21]
    assert sequences.wholes.row.tolist() == [4, 11, 15, 20]
    assert sequences.wholes.source.tolist() == [1, 1, 0, 2]
    assert sequences.wholes.pair.tolist() == [0, 1, 2, 4]
    assert sequences.regions.row.tolist() == [5, 6, 7, 12, 13, 14, 16, 17]
    rows = torch.cat([sequences.text.row, sequences.regions.row, sequences.wholes.row])
    assert rows.index_select(0, sequences.order).tolist() == [*range(21)]


def test_split_gives_each_stream_its_rows() -> None:
    text, visual = (part.assemble(made()) for part in layout(*ITEMS).split())
    assert text.offsets.tolist() == [0, 4, 7, 7, 9, 9]
    assert text.token_ids.index_select(0, text.order).tolist() == [CLS, 7, 8, SEP, CLS, 9, SEP, CLS, SEP]
    assert text.positions.index_select(0, text.order).tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]
    assert text.text_types.index_select(0, text.order).tolist() == [0, 1, 1, 2, 0, 1, 2, 0, 2]
    assert text.tokens["caption"].row.tolist() == [1, 2, 5]
    assert text.tokens["caption"].source.tolist() == [0, 1, 2]
    assert not len(text.regions.row)
    assert not len(text.wholes.row)
    assert visual.offsets.tolist() == [0, 4, 8, 11, 11, 12]
    assert visual.wholes.row.tolist() == [0, 4, 8, 11]
    assert visual.regions.row.tolist() == [1, 2, 3, 5, 6, 7, 9, 10]
    assert visual.regions.source.tolist() == [2, 3, 4, 2, 3, 4, 0, 1]
    assert not len(visual.text.row)
    with pytest.raises(ValueError, match="neither text nor regions"):
        layout("CLS", "caption").assemble(made())


def norm(values: Tensor, part: nn.LayerNorm) -> Tensor:
    return layer_norm(values, values.shape, part.weight, part.bias, 1e-12)


VILBERT = {"box_numbers": 5, "separate_norms": False}
LXMERT = {"box_numbers": 4, "separate_norms": True}


def drawn(kind: dict, **more: object) -> TwoStreamEmbedder:
    sizes = {"hidden_size": TEXT, "visual_hidden_size": VISUAL, "dropout": 0.0, "norm_eps": 1e-12, **SIZES}
    embedder = TwoStreamEmbedder(**sizes, **kind, **more)
    for parameter in embedder.parameters():
        nn.init.normal_(parameter)
    return embedder.double()


def embed(embedder: nn.Module, batch: Batch, items: list[str]) -> tuple[Tensor, Tensor]:
    text, visual = (part.assemble(batch) for part in layout(*items).split())
    return embedder(batch, text, visual)


def text_rows(embedder: nn.Module) -> list[Tensor]:
    """Of the texts that `made` pairs; item k of the layout has type k."""
    t = embedder
    return [
        norm(t.word_table.weight[token] + t.position_table.weight[place] + t.type_table.weight[kind], t.text_norm)
        for token, place, kind in [
            *((CLS, 0, 0), (7, 1, 1), (8, 2, 1), (SEP, 3, 2)),
            *((CLS, 0, 0), (9, 1, 1), (SEP, 2, 2)),
            *((CLS, 0, 0), (SEP, 1, 2)),
        ]
    ]


@pytest.mark.parametrize("given", [False, True], ids=["mean of the regions", "given vector"])
def test_vilbert_rows(given: bool) -> None:
    """Text as BERT's; norm(W f + W box5); the whole image first, with the mean of what is shown of its regions."""
    e = drawn(VILBERT)
    batch = made([False, True, False, True, False])
    whole = torch.randn(3, FEATURES).double()
    if given:
        batch = replace(batch, images=replace(batch.images, whole=whole))
    shown = batch.images.features * ~batch.images.masked[:, None]

    def row(feature: Tensor, x1: float, y1: float, x2: float, y2: float) -> Tensor:
        box = torch.tensor([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], dtype=torch.float64)
        projected = e.feature_projection.weight @ feature + e.feature_projection.bias
        return norm(projected + e.box_projection.weight @ box + e.box_projection.bias, e.region_norm)

    def image(number: int) -> list[Tensor]:
        regions = range(*[(0, 2), (2, 5), (5, 5)][number])
        mean = shown[list(regions)].sum(0) / max(len(regions), 1)
        rows = [row(whole[number] if given else mean, 0, 0, 1, 1)]
        return rows + [row(shown[n], *batch.images.boxes[n].tolist()) for n in regions]

    text, visual = embed(e, batch, ITEMS)
    torch.testing.assert_close(text, torch.stack(text_rows(e)), rtol=1e-9, atol=1e-10)
    expected = [*image(1), *image(1), *image(0), *image(2)]
    torch.testing.assert_close(visual, torch.stack(expected), rtol=1e-9, atol=1e-10)


def test_token_of_a_task() -> None:
    """Norm of the row that the source has in the table, between the first token and the words, which don't move."""
    e = drawn(VILBERT, tasks=3, task_tokens={"questions": 2, "captions": 0, "more": 2})
    parts = Layout(
        ["CLS", "TASK", "caption", "SEP", "whole"],
        [0, 4, 1, 2, 3],
        SPECIAL | e.offers.special,
        {"caption": 5},
        unplaced=e.offers.unplaced,
    ).split()
    expected = text_rows(e)
    for source, number in e.task_tokens.items():
        batch = replace(made(), source=source)
        text, _ = e(batch, *(part.assemble(batch) for part in parts))
        task = norm(e.task_table.weight[number], e.text_norm)
        wanted = [expected[0], task, *expected[1:4], expected[4], task, *expected[5:7], expected[7], task, expected[8]]
        torch.testing.assert_close(text, torch.stack(wanted), rtol=1e-9, atol=1e-10)
    text.square().sum().backward()
    assert e.task_table.weight.grad.any(1).tolist() == [False, False, True]
    batch = replace(made(), source="unheard_of")
    with pytest.raises(ValueError, match=r"'unheard_of': .* model\.embedder\.task_tokens, which has 'questions', 'cap"):
        e(batch, *(part.assemble(batch) for part in parts))
    with pytest.raises(ValueError, match=r"task_tokens\.a is 3, but the table has 3 rows"):
        drawn(VILBERT, tasks=3, task_tokens={"a": 3})
    with pytest.raises(ValueError, match="tasks needs task_tokens"):
        drawn(VILBERT, tasks=3)


def test_lxmert_rows() -> None:
    """Text as BERT's; the mean of norm(W f) and norm(W box4)."""
    e = drawn(LXMERT)
    batch = made([False, True, False, True, False])

    def row(number: int) -> Tensor:
        feature = batch.images.features[number] * (number not in (1, 3))
        projected = norm(e.feature_projection.weight @ feature + e.feature_projection.bias, e.region_norm)
        place = norm(e.box_projection.weight @ batch.images.boxes[number] + e.box_projection.bias, e.box_norm)
        return (projected + place) / 2

    batch = replace(batch, pairs=batch.pairs[:4], matched=batch.matched[:4])
    text, visual = embed(e, batch, ["CLS", "caption", "SEP", "regions"])
    torch.testing.assert_close(text, torch.stack(text_rows(e)), rtol=1e-9, atol=1e-10)
    expected = torch.stack([row(n) for n in (2, 3, 4, 2, 3, 4, 0, 1)])
    torch.testing.assert_close(visual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_first_rows_do_not_learn(frozen: bool) -> None:
    e = drawn(LXMERT, frozen_first_rows=frozen)
    before = e.position_table.weight[0].clone()
    text, _ = embed(e, made(), ["CLS", "caption", "SEP", "regions"])
    (text * torch.randn_like(text)).sum().backward()
    for table in (e.position_table, e.type_table):
        assert bool(table.weight.grad[0].any()) != frozen
        assert table.weight.grad[1].any()
    assert before.any(), "the row takes part with its random start"


@pytest.mark.parametrize("kind", [VILBERT, LXMERT], ids=["vilbert", "lxmert"])
def test_a_masked_region_shows_nothing_of_its_feature(kind: dict) -> None:
    e = drawn(kind)
    items = ITEMS if kind is VILBERT else ["CLS", "caption", "SEP", "regions"]
    rows = {}
    for name, masked in (("masked", True), ("shown", False)):
        for value in (1.0, 50.0):
            torch.manual_seed(1)
            batch = made([False, masked, False, False, False])
            batch.images.features[1] = value
            rows[name, value] = embed(e, batch, items)[1]
    assert torch.equal(rows["masked", 1.0], rows["masked", 50.0])
    changed = (rows["shown", 1.0] != rows["shown", 50.0]).any(1).nonzero()[:, 0].tolist()
    assert changed == ([8, 10] if kind is VILBERT else [7]), "the region and the mean over its image"
