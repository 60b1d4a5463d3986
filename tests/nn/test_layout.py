"""Layouts against a slow assembly with Python lists."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import samples
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import CLS, SEP, SPECIAL

from vlp.interfaces import NONE, Batch, Texts
from vlp.nn.layout import Layout, Sequences
from vlp.nn.ragged import lengths_of, offsets_of, owner_of_rows, padded, ranges

LAYOUTS = {
    "uniter": (["CLS", "caption", "SEP", "regions"], [0, 0, 0, 1]),
    "oscar": (["CLS", "caption", "SEP", "tags", "SEP", "regions"], [0, 0, 0, 1, 1, 0]),
    "regions first": (["regions", "caption", "SEP"], [2, 3, 4]),
    "two images": (["CLS", "caption", "regions", "SEP", "regions_2"], [0, 1, 2, 3, 4]),
    "text only": (["CLS", "caption"], [0, 1]),
    "regions only": (["regions"], [1]),
    "beside a segment": (
        ["CLS", "caption", "SEP-tags", "SEP+tags", "tags", "SEP+tags", "regions"],
        [0, 1, 2, 3, 4, 5, 6],
    ),
}


@dataclass
class Case:
    captions: list[list[int]]
    tags: list[list[int]] | None  # None: the batch has no such segment
    regions: list[int]
    pairs: list[tuple[int, int, int]]
    cap: int

    def batch(self) -> Batch:
        segments = {"caption": samples.segment(self.captions)}
        if self.tags is not None:
            segments["tags"] = samples.segment(self.tags)
        return Batch(
            texts=Texts(segments, torch.arange(len(self.captions))),
            images=samples.images(self.regions),
            pairs=torch.tensor(self.pairs),
            matched=torch.ones(len(self.pairs), dtype=torch.bool),
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    texts, images = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    words = st.lists(st.integers(5, 30), max_size=5)
    return Case(
        captions=draw(st.lists(words, min_size=texts, max_size=texts)),
        tags=draw(st.none() | st.lists(words, min_size=texts, max_size=texts)),
        regions=draw(st.lists(st.integers(0, 3), min_size=images, max_size=images)),
        pairs=draw(
            st.lists(
                st.tuples(st.integers(NONE, texts - 1), st.integers(NONE, images - 1), st.integers(NONE, images - 1)),
                min_size=1,
                max_size=4,
            )
        ),
        cap=draw(st.integers(0, 6)),
    )


Row = tuple  # what, id or region, source, position, type, segment


def slow(case: Case, items: list[str], types: list[int]) -> list[list[Row]]:
    """The rows of each pair, one after the other."""
    segments = {"caption": case.captions, "tags": case.tags}
    sequences = []
    for text, *images in case.pairs:
        rows: list[Row] = []
        position = 0
        for item, kind in zip(items, types, strict=True):
            if item.isupper() or item in ("SEP-tags", "SEP+tags"):
                there = text != NONE
                if there and "tags" in item:
                    tags = segments["tags"][text][: case.cap] if segments["tags"] is not None else []
                    there = bool(tags) == (item == "SEP+tags")
                words = [(SPECIAL[item[:3]], NONE)] if there else []
            elif item.startswith("regions"):
                image = images[1 if item == "regions_2" else 0]
                if image != NONE:
                    first = sum(case.regions[:image])
                    rows += [("region", first + n, kind) for n in range(case.regions[image])]
                continue
            elif segments[item] is None or text == NONE:
                words = []
            else:
                first = sum(len(t) for t in segments[item][:text])
                words = [(token, first + n) for n, token in enumerate(segments[item][text])][: case.cap]
            for token, source in words:
                rows.append(("text", token, source, position, kind, item if item in segments else None))
                position += 1
        sequences.append(rows)
    return sequences


def rows_of(s: Sequences) -> list[list[Row]]:
    """The rows of each sequence as the layout gives them, put in order by `order` and checked against `row`."""
    segment_of = {int(row): name for name, rows in s.tokens.items() for row in rows.row}
    pair_of = owner_of_rows(lengths_of(s.offsets)).tolist()
    parts = []
    for n, row in enumerate(s.text.row.tolist()):
        assert int(s.text.pair[n]) == pair_of[row]
        numbers = (s.token_ids[n], s.text.source[n], s.positions[n], s.text_types[n])
        parts.append((row, ("text", *map(int, numbers), segment_of.get(row))))
    for n, row in enumerate(s.regions.row.tolist()):
        assert int(s.regions.pair[n]) == pair_of[row]
        parts.append((row, ("region", int(s.regions.source[n]), int(s.region_types[n]))))
    ordered = [parts[n] for n in s.order.tolist()]
    assert [row for row, _ in ordered] == list(range(int(s.offsets[-1]))), "order and rows disagree"
    rows = [what for _, what in ordered]
    return [rows[a:b] for a, b in zip(s.offsets.tolist(), s.offsets.tolist()[1:], strict=False)]


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases())
def test_layout_is_the_slow_assembly(name: str, case: Case) -> None:
    items, types = LAYOUTS[name]
    layout = Layout(items, types, SPECIAL, {"caption": case.cap, "tags": case.cap})
    expected = slow(case, items, types)
    empty = [number for number, rows in enumerate(expected) if not rows]
    if empty:
        with pytest.raises(ValueError, match=f"pair {empty[0]} of the batch has neither text nor regions"):
            layout.assemble(case.batch())
        return
    sequences = layout.assemble(case.batch())
    assert rows_of(sequences) == expected
    for segment, rows in sequences.tokens.items():
        found = sorted(zip(rows.row.tolist(), rows.source.tolist(), rows.pair.tolist(), strict=True))
        wanted = [
            (sum(len(r) for r in expected[:pair]) + place, row[2], pair)
            for pair, sequence in enumerate(expected)
            for place, row in enumerate(sequence)
            if row[0] == "text" and row[5] == segment
        ]
        assert found == wanted


def test_by_hand() -> None:
    """[CLS] 7 8 [SEP] and two regions; then text alone; then a region alone."""
    made = samples.batch([[7, 8], []], [1, 2], [[0, 1], [1, NONE], [NONE, 0]])
    s = Layout(*LAYOUTS["uniter"], SPECIAL, {"caption": 9}).assemble(made)
    assert s.offsets.tolist() == [0, 6, 8, 9]
    assert rows_of(s) == [
        [
            ("text", CLS, NONE, 0, 0, None),
            ("text", 7, 0, 1, 0, "caption"),
            ("text", 8, 1, 2, 0, "caption"),
            ("text", SEP, NONE, 3, 0, None),
            ("region", 1, 1),
            ("region", 2, 1),
        ],
        [("text", CLS, NONE, 0, 0, None), ("text", SEP, NONE, 1, 0, None)],
        [("region", 0, 1)],
    ]


def test_a_token_without_a_position() -> None:
    """The words after it stand where they would without it, in the split layout too."""
    made = samples.batch([[7, 8], []], [2, 1], [[0, 0], [1, NONE], [NONE, 1]])
    items, special = ["CLS", "TASK", "caption", "SEP", "regions"], SPECIAL | {"TASK": 50}
    layout = Layout(items, [0] * 5, special, {"caption": 9}, unplaced={"TASK"})
    plain = Layout(items, [0] * 5, special, {"caption": 9})
    for number, place in ((layout, [0, 1, 1, 2, 3, 0, 1, 1]), (plain, [0, 1, 2, 3, 4, 0, 1, 2])):
        s = number.split()[0].assemble(made)
        assert s.token_ids.index_select(0, s.order).tolist() == [CLS, 50, 7, 8, SEP, CLS, 50, SEP]
        assert s.positions.index_select(0, s.order).tolist() == place
        assert s.special["TASK"].row.tolist() == [1, 6]
    assert [row[3] for row in rows_of(layout.assemble(made))[0][:5]] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("items", "types", "caps", "expected"),
    [
        (["CLS", "caption"], [0], {"caption": 3}, "2 items but layout_types has 1"),
        (["START", "caption"], [0, 0], {"caption": 3}, "no special token START; there are PAD, UNK, CLS"),
        (["CLS", "caption", "tags"], [0, 0, 0], {"caption": 3}, "the segment tags needs an entry in max_tokens"),
        (["caption", "regions_two"], [0, 0], {"caption": 3}, "regions_two"),
        (["caption", "regions_1"], [0, 0], {"caption": 3}, "regions_1"),
        (["CLS", "caption", "SEP+tags"], [0, 0, 0], {"caption": 3}, r"SEP\+tags must be a special token and, after"),
        (["caption", "tags-caption"], [0, 0], {"caption": 3, "tags": 3}, "tags-caption must be a special token"),
    ],
)
def test_layouts_that_make_no_sense(items: list[str], types: list[int], caps: dict[str, int], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Layout(items, types, SPECIAL, caps)


def test_an_image_slot_that_the_pairs_lack_is_named() -> None:
    made = samples.batch([[7]], [2], [[0, 0]])
    with pytest.raises(ValueError, match="regions_2"):
        Layout(*LAYOUTS["two images"], SPECIAL, {"caption": 9}).assemble(made)


lengths_lists = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lengths_lists, st.data())
def test_index_arithmetic(lengths: list[int], data: st.DataObject) -> None:
    given_lengths = torch.tensor(lengths)
    offsets = offsets_of(given_lengths)
    assert offsets.tolist() == [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    assert lengths_of(offsets).tolist() == lengths
    assert owner_of_rows(given_lengths).tolist() == [n for n, length in enumerate(lengths) for _ in range(length)]
    starts = [data.draw(st.integers(0, 9)) for _ in lengths]
    values, within = ranges(torch.tensor(starts), given_lengths)
    pairs = [(start + n, n) for start, length in zip(starts, lengths, strict=True) for n in range(length)]
    assert list(zip(values.tolist(), within.tolist(), strict=True)) == pairs
    view = padded(offsets)
    for number, length in enumerate(lengths):
        assert view.real[number].tolist() == [n < length for n in range(max(lengths))]
        first = sum(lengths[:number])
        assert view.index[number].tolist() == [first + n if n < length else 0 for n in range(max(lengths))]


CAUSAL = (["CLS", "caption", "tags", "SEP", "regions"], [0, 0, 1, 1, 0], SPECIAL, {"caption": 4, "tags": 9})


def test_causal_texts() -> None:
    """The named items of causal texts are marked, and text after a segment of them is placed as after its longest."""
    batch = samples.batch([[7, 8], [9], [5, 6, 7, 8, 9]], [1, 1], [[0, 0], [1, 1], [2, NONE], [NONE, 1]])
    tags = samples.segment([[11], [12], [13]])
    texts = replace(batch.texts, segments={**batch.texts.segments, "tags": tags}, causal=torch.tensor([1, 0, 1]) == 1)
    batch = replace(batch, texts=texts)
    s = Layout(*CAUSAL, causal=["CLS", "caption"]).assemble(batch)
    assert s.causal is not None
    expected = [1, 1, 1, 0, 0, 0, *[0] * 5, 1, 1, 1, 1, 1, 0, 0, 0]
    assert s.causal.long().tolist() == expected
    tag_position = dict(zip(s.text.row.tolist(), s.positions.tolist(), strict=True))
    assert [tag_position[row] for row in s.tokens["tags"].row.tolist()] == [5, 2, 5]
    assert [tag_position[row] for row in s.special["SEP"].row.tolist()] == [6, 3, 6]
    plain = Layout(*CAUSAL, causal=["caption"]).assemble(replace(batch, texts=replace(texts, causal=None)))
    assert plain.causal is None
    with pytest.raises(ValueError, match="layout_causal"):
        Layout(*CAUSAL).assemble(batch)
    for item in ("question", "regions"):
        with pytest.raises(ValueError, match=f"layout_causal: {item} is no text of the layout"):
            Layout(*CAUSAL, causal=[item])
