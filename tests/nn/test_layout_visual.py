"""Whole images, shared positions and tokens that refer to regions, against a slow assembly with Python lists."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import CLS, SEP, SPECIAL

from vlp.contracts import Rows
from vlp.interfaces import NONE, Batch, Texts
from vlp.nn.layout import Layout, Sequences

END = 99
LAYOUTS = {
    "text, whole, regions": (["CLS", "caption", "SEP", "whole", "regions", "END"], [0, 0, 0, 2, 3, 4]),
    "whole first": (["whole", "CLS", "caption", "regions", "SEP"], [0, 1, 2, 3, 4]),
    "regions apart": (["regions", "CLS", "regions_2", "caption", "whole"], [0, 1, 2, 3, 4]),
    "no regions": (["CLS", "whole", "caption"], [0, 1, 2]),
}
Row = tuple  # kind, id, source, type, position, region meant


def slow(batch: Batch, items: list[str], types: list[int], shared: bool, cap: int) -> list[list[Row]]:
    """The rows of each pair, one after the other."""
    caption, offsets = batch.texts.segments["caption"], batch.images.offsets.tolist()
    sequences = []
    for text, *images in batch.pairs.tolist():
        rows: list[Row] = []
        position, visual_before = 0, False
        for item, kind in zip(items, types, strict=True):
            if item in ("whole", "regions", "regions_2"):
                image = images[1 if item == "regions_2" else 0]
                there = [] if image == NONE else range(offsets[image], offsets[image + 1])
                if item == "whole":
                    image = next((image for image in images if image != NONE), NONE)
                    rows += [("whole", None, image, kind, position, None)] if image != NONE else []
                else:
                    rows += [("region", None, region, kind, position, None) for region in there]
                visual_before = True
                continue
            if visual_before and shared:
                position += 1
            visual_before = False
            if text == NONE:
                continue
            if item.isupper():
                words = [((SPECIAL | {"END": END})[item], NONE, NONE)]
            else:
                a, b = int(caption.offsets[text]), int(caption.offsets[text + 1])
                words = []
                for n in range(a, min(b, a + cap)):
                    meant = NONE
                    if caption.token_region is not None and images[0] != NONE:
                        number, first = int(caption.token_region[n]), offsets[images[0]]
                        if number != NONE and first + number < offsets[images[0] + 1]:
                            meant = first + number
                    words.append((int(caption.tokens[n]), n, meant))
            for token, source, meant in words:
                rows.append(("text", token, source, kind, position, meant))
                position += 1
        sequences.append(rows)
    return sequences


def rows_of(s: Sequences) -> list[list[Row]]:
    """The rows of each sequence as the layout gives them, in the order that `order` says."""

    def numbers(rows: Rows, kind: str, ids, types, positions, meant) -> list[tuple[int, Row]]:
        columns = [c.tolist() for c in (rows.row, rows.source, types, positions)]
        ids = ids.tolist() if ids is not None else [None] * len(columns[0])
        meant = meant.tolist() if meant is not None else [None] * len(columns[0])
        return [(row, (kind, i, source, t, p, m)) for row, source, t, p, i, m in zip(*columns, ids, meant, strict=True)]

    parts = numbers(s.text, "text", s.token_ids, s.text_types, s.positions, s.text_regions)
    parts += numbers(s.regions, "region", None, s.region_types, s.region_positions, None)
    parts += numbers(s.wholes, "whole", None, s.whole_types, s.whole_positions, None)
    ordered = [parts[n] for n in s.order.tolist()]
    assert [row for row, _ in ordered] == list(range(int(s.offsets[-1])))
    rows = [what for _, what in ordered]
    return [rows[a:b] for a, b in zip(s.offsets.tolist(), s.offsets.tolist()[1:], strict=False)]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    texts = draw(st.lists(st.lists(st.integers(5, 30), max_size=4), min_size=1, max_size=3))
    counts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    image = st.integers(NONE, len(counts) - 1)
    # each pair has text or an image with something to show
    pairs = draw(st.lists(st.tuples(st.integers(0, len(texts) - 1), image, image), min_size=1, max_size=4))
    made = samples.batch(texts, counts, pairs)
    if draw(st.booleans()):
        return made
    caption = made.texts.segments["caption"]
    meant = draw(st.lists(st.integers(NONE, 3), min_size=len(caption.tokens), max_size=len(caption.tokens)))
    caption = replace(caption, token_region=torch.tensor(meant, dtype=torch.int64))
    return replace(made, texts=Texts({"caption": caption}, made.texts.ids))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shared", [False, True], ids=["skipped", "shared"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(batch=batches(), cap=st.integers(0, 5))
def test_layout_is_the_slow_assembly(name: str, shared: bool, batch: Batch, cap: int) -> None:
    items, types = LAYOUTS[name]
    layout = Layout(items, types, SPECIAL | {"END": END}, {"caption": cap}, shared)
    assert layout.has_regions == (name != "no regions")
    assert rows_of(layout.assemble(batch)) == slow(batch, items, types, shared, cap)


def test_by_hand() -> None:
    """Two words, two regions: [CLS] 7 8 [SEP] image region region END, then the same text without an image."""
    made = samples.batch([[7, 8]], [1, 2], [[0, 1], [0, NONE]])
    caption = replace(made.texts.segments["caption"], token_region=torch.tensor([1, 2]))
    made = replace(made, texts=Texts({"caption": caption}, made.texts.ids))
    items, types = ["CLS", "caption", "SEP", "whole", "regions", "END"], [0, 0, 0, 2, 2, 2]
    s = Layout(items, types, SPECIAL | {"END": END}, {"caption": 9}, regions_take=1).assemble(made)
    first, second = rows_of(s)
    assert first == [
        ("text", CLS, NONE, 0, 0, NONE),
        ("text", 7, 0, 0, 1, 2),  # the second region of image 1 is region 2 of the batch
        ("text", 8, 1, 0, 2, NONE),  # the image has no third region
        ("text", SEP, NONE, 0, 3, NONE),
        ("whole", None, 1, 2, 4, None),
        ("region", None, 1, 2, 4, None),
        ("region", None, 2, 2, 4, None),
        ("text", END, NONE, 2, 5, NONE),
    ]
    assert [row[4] for row in second] == [0, 1, 2, 3, 5], "END keeps its distance where there is no image"
