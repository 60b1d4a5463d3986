"""ViLT's embedder and the block that begins with its norm, against PyTorch's own interpolation and layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from samples import SPECIAL, WORD_IDS, WORDS, batch, model, segment
from torch import nn

from vlp.interfaces import NONE, Batch, Images, Regions, Texts
from vlp.nn.attention import plan_attention
from vlp.nn.backbones.patches import Patches
from vlp.nn.backbones.pixels import grid_cells
from vlp.nn.embedders.text_rows import TextSizes
from vlp.nn.embedders.vilt import ViltEmbedder
from vlp.nn.layout import Layout
from vlp.nn.ragged import offsets_of
from vlp.nn.transformer import Block, Transformer
from vlp.objectives.masked_language import MaskedLanguage
from vlp.objectives.word_region import AlignmentTargets, WordRegionAlignment

H, SIDE, GRID = 6, 4, 5


def embedder() -> ViltEmbedder:
    made = ViltEmbedder(H, TextSizes(WORDS, 12, 2), GRID, 3 * SIDE * SIDE, dropout=0.0, norm_eps=1e-12)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.eval()


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (1, 4), (4, 1), (1, 1), (12, 20), (2, 2)])
def test_positions_are_interpolated_over_the_picture(shape: tuple[int, int]) -> None:
    e = embedder()
    table = e.image_positions[:, 1:].transpose(1, 2).view(1, H, GRID, GRID)
    expected = F.interpolate(table, size=shape, mode="bilinear", align_corners=True).flatten(2)[0].t()
    actual = e.patch_positions(grid_cells(*shape, torch.zeros(0)))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    if shape == (GRID, GRID):
        torch.testing.assert_close(actual, e.image_positions[0, 1:], atol=1e-5, rtol=1e-5)


def test_rows_by_hand() -> None:
    """One text with one picture of 1 x 2 patches, and one alone: every term of every row."""
    e = embedder()
    pixels = torch.randint(0, 256, (SIDE, 2 * SIDE, 3), dtype=torch.uint8)
    images = Patches(SIDE, [0.0] * 3, [1.0] * 3)(Images.from_regions([Regions.from_pixels(pixels)], [0]))
    texts = Texts({"caption": segment([[7, 8], [9]])}, torch.arange(2))
    pairs = torch.tensor([[0, 0], [1, NONE]])
    b = Batch(texts, images, pairs, torch.ones(2, dtype=torch.bool))
    layout = Layout(["CLS", "caption", "whole", "regions"], [0, 0, 1, 1], SPECIAL, {"caption": 9})
    rows = e(b, layout.assemble(b))

    def word(token: int, place: int) -> torch.Tensor:
        total = e.word_table.weight[token] + e.position_table.weight[place] + e.text_type_table.weight[0]
        return e.text_norm(total) + e.type_table.weight[0]

    def patch(number: int) -> torch.Tensor:
        cut = pixels[:, number * SIDE : (number + 1) * SIDE].permute(2, 0, 1) / 255
        # alone in its column, so at the top; left or right corner of the grid
        place = e.image_positions[0, 1 + (GRID - 1) * number]
        return e.patch_projection(cut[None])[0, :, 0, 0] + place + e.type_table.weight[1]

    whole = e.class_vector[0, 0] + e.image_positions[0, 0] + e.type_table.weight[1]
    cls = SPECIAL["CLS"]
    expected = [word(cls, 0), word(7, 1), word(8, 2), whole, patch(0), patch(1), word(cls, 0), word(9, 1)]
    torch.testing.assert_close(rows, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_only_square_patches() -> None:
    with pytest.raises(ValueError, match="are no square patches"):
        ViltEmbedder(H, TextSizes(WORDS, 12, 2), GRID, 50, dropout=0.0, norm_eps=1e-12)


def test_norm_first_is_pytorch_s() -> None:
    """torch.nn.TransformerEncoderLayer with norm_first, on each sequence alone; and one norm at the end."""
    theirs = nn.TransformerEncoderLayer(8, 2, 20, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).eval()
    ours = Block(8, 2, 20, 0.0, 0.0, 1e-6, norm_first=True).eval()
    attention = theirs.self_attn
    state = {
        "attention.qkv.weight": attention.in_proj_weight,
        "attention.qkv.bias": attention.in_proj_bias,
        **{f"attention.out.{k}": v for k, v in attention.out_proj.state_dict().items()},
        **{f"attention_norm.{k}": v for k, v in theirs.norm1.state_dict().items()},
        **{f"mlp_in.{k}": v for k, v in theirs.linear1.state_dict().items()},
        **{f"mlp_out.{k}": v for k, v in theirs.linear2.state_dict().items()},
        **{f"mlp_norm.{k}": v for k, v in theirs.norm2.state_dict().items()},
    }
    ours.load_state_dict({name: torch.randn_like(value) * 0.5 for name, value in state.items()})
    for name, value in ours.state_dict().items():
        state[name].data.copy_(value)
    rows, offsets = torch.randn(9, 8), offsets_of(torch.tensor([5, 1, 3]))
    out = ours(rows, plan_attention(offsets))
    parts = [theirs(part[None])[0] for part in rows.split([5, 1, 3])]
    torch.testing.assert_close(out, torch.cat(parts), atol=1e-5, rtol=1e-5)
    stack = Transformer(
        2, hidden_size=8, heads=2, mlp_size=20, dropout=0, attention_dropout=0, norm_eps=1e-6, norm_first=True
    )
    last = stack(rows, plan_attention(offsets))
    torch.testing.assert_close(last.mean(1), torch.zeros(9), atol=1e-5, rtol=0)


def test_alignment_without_special_tokens() -> None:
    """As with a layout that has none of them, the states being given."""
    m = model().eval()
    b = batch([[7, 8, 9], [10]], [2, 3], [[0, 0], [1, 1]])
    encoded = m(b)
    targets = AlignmentTargets(torch.tensor([True, False]))
    rows = encoded.tokens["caption"]
    expected, _ = WordRegionAlignment(m).loss(
        replace(encoded, places=replace(encoded.places, text_rows=rows)), targets, m
    )
    actual, _ = WordRegionAlignment(m, special_tokens=False).loss(encoded, replace(targets, special_tokens=False), m)
    assert torch.equal(actual["word_region_alignment"], expected["word_region_alignment"])
    everything, _ = WordRegionAlignment(m).loss(encoded, targets, m)
    assert not torch.allclose(everything["word_region_alignment"], expected["word_region_alignment"])


def test_untied_words() -> None:
    """With its decoder set to the word embeddings it is the tied objective; words not shown have no gradient there."""
    m = model()
    tied = MaskedLanguage(m, SPECIAL["MASK"], WORD_IDS, 0.5, ["caption"])
    untied = MaskedLanguage(m, SPECIAL["MASK"], WORD_IDS, 0.5, ["caption"], tied=False)
    untied.load_state_dict({**tied.state_dict(), "decoder.weight": m.tied("word_embeddings").detach()})
    corrupted, targets = tied.corrupt(batch([[7, 8, 9, 11]], [2], [[0, 0]]), torch.Generator().manual_seed(0))
    encoded = m(corrupted)
    one, _ = tied.loss(encoded, targets, m)
    other, _ = untied.loss(encoded, targets, m)
    torch.testing.assert_close(one, other)
    other["masked_language"].backward()
    assert untied.decoder.weight.grad.any()
    shown = corrupted.texts.segments["caption"].tokens.tolist()
    assert not m.tied("word_embeddings").grad[sorted(set(WORD_IDS) - set(shown))].any()
