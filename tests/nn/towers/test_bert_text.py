"""BERT as a text tower, against transformers' BertModel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vlp.checkpoints.key_map import import_state
from vlp.checkpoints.load import load_strictly
from vlp.nn.towers.bert_text import BertSizes, BertText
from vlp.registry import IMPORTERS

transformers = pytest.importorskip("transformers")

WORDS, HIDDEN, POSITIONS = 50, 24, 12
SIZES = BertSizes(WORDS, POSITIONS, HIDDEN, layers=2, heads=3, mlp_size=40, initial_std=0.3)
LENGTHS = torch.tensor([7, 2, 10, 3])


def padded_ids() -> Tensor:
    ids = torch.randint(5, WORDS, (len(LENGTHS), int(LENGTHS.max())))
    return torch.where(torch.arange(ids.shape[1]) < LENGTHS[:, None], ids, 0)


def theirs() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=POSITIONS,
    )  # fmt: skip
    model = transformers.BertForPreTraining(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("embedding_size", [None, 16])
def test_states_are_berts(pooling: str, embedding_size: int | None) -> None:
    """Through the importer; heads and pooler of the file are left out."""
    bert = theirs()
    state = import_state(dict(bert.state_dict()), IMPORTERS["bert_for_dual_encoder"])
    tower = BertText(SIZES, pooling, embedding_size).eval()
    before = "model.text.backbone."
    assert all(name.startswith(before) for name in state)
    load_strictly(tower.backbone, {name.removeprefix(before): value for name, value in state.items()}, "theirs")
    ids = padded_ids()
    real = torch.arange(ids.shape[1]) < LENGTHS[:, None]
    expected = bert.bert(input_ids=ids, attention_mask=real.long()).last_hidden_state
    torch.testing.assert_close(tower.backbone(ids, LENGTHS), expected[real], atol=2e-5, rtol=1e-5)
    means = torch.stack([own[:length].mean(0) for own, length in zip(expected, LENGTHS.tolist(), strict=True)])
    pooled = expected[:, 0] if pooling == "first" else means
    if tower.projection is not None:
        assert tower.projection.bias is None
        pooled = pooled @ tower.projection.weight.T
    embedded = tower(ids, LENGTHS)
    assert embedded.shape == (len(ids), tower.embedding_size)
    assert tower.embedding_size == (embedding_size or HIDDEN)
    torch.testing.assert_close(embedded, pooled, atol=2e-5, rtol=1e-5)
    assert tower.word_embeddings.data_ptr() == tower.backbone.word_table.weight.data_ptr()
    assert tower.context_length == POSITIONS


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_text_is_embedded_as_if_it_were_alone(pooling: str) -> None:
    """Neighbours, more padding and what stands in it change nothing."""
    tower = BertText(SIZES, pooling, 16).eval()
    ids = padded_ids()
    together = tower(ids, LENGTHS)
    wider = torch.cat([ids, torch.zeros(len(ids), 2, dtype=torch.int64)], 1)
    wider = torch.where(torch.arange(wider.shape[1]) < LENGTHS[:, None], wider, WORDS - 1)
    torch.testing.assert_close(tower(wider, LENGTHS), together, atol=1e-5, rtol=1e-5)
    for number, length in enumerate(LENGTHS.tolist()):
        alone = tower(ids[number : number + 1, :length], LENGTHS[number : number + 1])
        torch.testing.assert_close(alone, together[number : number + 1], atol=1e-5, rtol=1e-5)


def test_the_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="number 1 of the batch has nothing"):
        BertText(SIZES, "mean")(padded_ids()[:2], torch.tensor([3, 0]))
