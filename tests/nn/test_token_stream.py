"""Sequences of captions and codes against lists written by hand."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokens_small import SPECIAL, batch_of

from vlp.interfaces import NONE
from vlp.nn.patterns import Windows
from vlp.nn.token_stream import Template, TokenPlanner

CAPTIONS = [[3, 4, 5], [], [6, 7, 8, 9, 10, 3]]


def template(items: list[str], padding: Any, vocabulary: Any, **settings: Any) -> Template:
    given = {"most": 4, "codes": 7, "cells": 3, "words": 11, "special": SPECIAL}
    return Template(tuple(items), **{**given, **settings}, padding=padding, vocabulary=vocabulary)


def laid(own: Template, captions: list[list[int]] = CAPTIONS) -> list[list[int]]:
    """The ids of the sequences, -1 in the place of codes."""
    batch = batch_of(captions)
    ids, codes, _ = own.lay(batch.texts.segments["caption"], batch.pairs[:, 0])
    return ids.masked_fill(codes, -1).tolist()


def test_each_place_has_its_padding() -> None:
    own = template(["START", "caption", "codes"], "each", "apart")
    assert (own.length, own.text_rows, own.text_offset, own.code_offset) == (8, 16, 0, 16)
    # words 0 to 10, START 11, padding 12 to 15
    assert laid(own) == [
        [11, 3, 4, 5, 15, -1, -1, -1],
        [11, 12, 13, 14, 15, -1, -1, -1],
        [11, 6, 7, 8, 9, -1, -1, -1],
    ]
    plan = TokenPlanner(own, 2, None)(batch_of(CAPTIONS))
    # what predicts text, from START on, and what predicts codes, from the last word on
    assert plan.text_from.tolist() == [[0, 1, 2, 3]] * 3
    assert plan.codes_from.tolist() == [[4, 5, 6]] * 3
    assert plan.codes_at.tolist() == [[5, 6, 7]] * 3
    assert plan.text_weight.tolist() == [[1, 1, 1, 1]] * 3
    assert plan.image.tolist() == [0, 1, 2]
    assert plan.rows == 21
    assert plan.pivots is None


def test_a_command_of_the_tokenizer_has_its_id() -> None:
    own = template(["CLS", "caption", "codes"], "each", "apart")
    assert (own.text_rows, own.own_commands) == (15, [])
    assert laid(own)[0] == [1, 3, 4, 5, 14, -1, -1, -1]


def test_padding_at_the_end() -> None:
    own = template(["ROI1", "caption", "BASE", "BOI1", "codes", "EOI1"], "end", "joint")
    # codes 0 to 6, words 7 to 17, BASE 18, BOI1 19, EOI1 20, ROI1 21; PAD is word 0
    assert (own.length, own.text_rows, own.text_offset, own.code_offset) == (11, 15, 7, 0)
    assert laid(own) == [
        [21, 10, 11, 12, 18, 19, -1, -1, -1, 20, 7],
        [21, 18, 19, -1, -1, -1, 20, 7, 7, 7, 7],
        [21, 13, 14, 15, 16, 18, 19, -1, -1, -1, 20],
    ]
    plan = TokenPlanner(own, 2, None)(batch_of(CAPTIONS))
    # a place is of the part that stands there; the last word of the template, and padding, predict nothing
    assert plan.codes_from.tolist() == [[6, 7, 8], [3, 4, 5], [7, 8, 9]]
    assert plan.text_from.tolist() == [[0, 1, 2, 3, 4, 5, 9], [0, 1, 2, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 6]]
    assert plan.text_weight.tolist() == [[1] * 6 + [0], [1, 1, 1, 0, 0, 0, 0], [1] * 7]
    assert plan.codes_at.tolist() == [[6, 7, 8], [3, 4, 5], [7, 8, 9]]
    assert plan.rows == 10 + 7 + 10


def test_codes_before_the_caption() -> None:
    own = template(["BOI1", "codes", "EOI1", "ROI1", "caption", "SEP"], "end", "joint")
    assert own.text_last
    assert laid(own)[:2] == [
        [18, -1, -1, -1, 19, 20, 10, 11, 12, 9, 7],
        [18, -1, -1, -1, 19, 20, 9, 7, 7, 7, 7],
    ]
    batch = batch_of(CAPTIONS)
    _, codes, _ = own.lay(batch.texts.segments["caption"], batch.pairs[:, 0])
    assert own.first_of("text", codes).tolist() == [6, 6, 6]
    assert own.first_of("codes", codes).tolist() == [1, 1, 1]


def test_one_vocabulary_may_end_with_codes() -> None:
    """The last of them is predicted, and no input."""
    own = template(["caption", "codes"], "each", "joint")
    plan = TokenPlanner(own, 2, None)(batch_of(CAPTIONS))
    assert plan.text_from.tolist() == [[0, 1, 2, 3]] * 3
    assert plan.codes_from.tolist() == [[4, 5]] * 3


def test_pairs_share_texts_and_may_have_none() -> None:
    own = template(["START", "caption", "codes"], "each", "apart")
    batch = replace(batch_of(CAPTIONS), pairs=torch.tensor([[2, 1], [NONE, 0], [0, 1], [2, 2]]))
    plan = TokenPlanner(own, 2, None)(batch)
    assert plan.ids[:, 1:5].tolist() == [[6, 7, 8, 9], [12, 13, 14, 15], [3, 4, 5, 15], [6, 7, 8, 9]]
    assert plan.image.tolist() == [1, 0, 1, 2]


def test_texts_without_a_word() -> None:
    own = template(["START", "caption", "codes"], "end", "apart")
    assert laid(own, [[], []]) == [[11, -1, -1, -1, 0, 0, 0, 0]] * 2


def test_pivots_are_drawn_in_training() -> None:
    own = template(["ROI1", "caption", "BASE", "BOI1", "codes", "EOI1"], "end", "joint")
    planner = TokenPlanner(own, 9, Windows(2, 1, 5))
    batch = batch_of(CAPTIONS)
    assert planner(batch).pivots is None
    plan = planner(batch, torch.Generator().manual_seed(0))
    assert plan.pivots.shape == (9, 3, 5)
    assert len({tuple(own) for own in plan.pivots[:, 1].tolist()}) > 1  # in each layer anew
    for row in plan.pivots[:, 1].tolist():  # ROI1 BASE BOI1 c c c EOI1: four of text
        assert {0, 1, 2, 6} < set(row)
        assert set(row) <= set(range(7))
    again = pickle.loads(pickle.dumps(planner))(batch, torch.Generator().manual_seed(0))
    assert torch.equal(again.pivots, plan.pivots)


@pytest.mark.parametrize(
    ("items", "settings", "message"),
    [
        (["START", "caption"], {}, "codes once"),
        (["START", "caption", "caption", "codes"], {}, "caption once"),
        (["START", "caption", "tags", "codes"], {}, "has tags; command tokens are written in capitals"),
        (["caption", "codes"], {}, "must begin with a command token"),
        (["START", "caption", "codes", "END"], {}, "must end with caption or codes"),
        (["START", "caption", "codes"], {"most": 0}, "max_tokens.caption must be at least 1"),
    ],
)
def test_refused(items: list[str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        template(items, "each", "apart", **settings)


def test_batches_that_do_not_fit() -> None:
    planner = TokenPlanner(template(["START", "caption", "codes"], "each", "apart"), 2, None)
    batch = batch_of(CAPTIONS)
    with pytest.raises(ValueError, match="needs the image of every pair"):
        planner(replace(batch, pairs=torch.tensor([[0, NONE]])))
    with pytest.raises(ValueError, match="no segment `caption`"):
        planner(replace(batch, texts=replace(batch.texts, segments={})))
