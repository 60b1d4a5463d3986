"""Text and regions through one transformer that reads them, and a decoder that writes about what was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from vlp.contracts import Cost, Encoded, Places, RegionParts
from vlp.interfaces import Batch, Images, PixelSize, Ragged
from vlp.models.single_stream import SingleStreamPlan, SingleStreamPlanner
from vlp.needs import EmbedderOffers, Offers
from vlp.nn.attention import AttentionPlan, plan_attention
from vlp.nn.cost import rows_of, transformer_cost
from vlp.nn.cross_attention import CrossPlan, Exchange, plan_cross_attention
from vlp.nn.decoder import DecoderLayout, DecoderStates
from vlp.nn.layout import Layout, Sequences, is_visual
from vlp.nn.transformer import Block, Transformer, initialise


@dataclass(frozen=True)
class DecoderPlan:
    """What a batch writes, planned. `cross`: of its rows to those that are read. `embedded`: the embedder's plan."""

    sequences: Sequences
    attention: AttentionPlan
    cross: CrossPlan
    embedded: Any


@dataclass(frozen=True)
class EncoderDecoderPlan:
    """A planned batch. `written`: None if nothing is written."""

    places: Places
    read: SingleStreamPlan
    written: DecoderPlan | None


@dataclass(frozen=True)
class EncoderDecoderPlanner:
    """The `plan` of an `EncoderDecoder`: that of what reads, and the layout of what is written."""

    read: SingleStreamPlanner
    written: DecoderLayout

    def __call__(self, batch: Batch, generator: Generator | None = None) -> EncoderDecoderPlan:
        """Plan a batch.

        Raises:
            ValueError: see `SingleStreamPlanner`.
        """
        read = self.read(batch, generator)
        if "target" not in batch.texts.segments and batch.written_images is None:
            return EncoderDecoderPlan(read.places, read, None)
        sequences, words, regions = self.written.assemble(batch)
        cross, _ = plan_cross_attention(sequences.offsets, read.places.text)
        embedded = None if self.read.embed is None else self.read.embed(batch, sequences)
        attention = plan_attention(sequences.offsets, causal=sequences.causal)
        places = replace(read.places, written_words=words, written_regions=regions)
        return EncoderDecoderPlan(places, read, DecoderPlan(sequences, attention, cross, embedded))


class EncoderDecoder(nn.Module):
    """A BERT-like encoder over text and regions together, and a decoder of as many blocks: causal self-attention,
    cross-attention to the encoder's rows, MLP.

    What is written (`Batch.written_images`, the segment `target`) is shown to the decoder one row late, beginning with
    CLS. Words and regions are embedded as for the encoder. Without anything to write it is an encoder alone, whose
    weights are named as those of a `single_stream`, so that either can begin with the other's.

    The state after the last block predicts what comes next; with words it is compared with their embeddings, by no
    layer of an objective's own, since all objectives that write train one decoder.

    Source: XGPT (Xia et al. 2020), of which no code was published; that the two parts share weights and how many blocks
    they have are from descriptions of it.

    Args:
        embedder: gives the input rows (`vlp.nn.embedders`).
        layout: the order of a sequence that is read.
        hidden_size, heads, mlp_size: size of both transformers.
        layers: blocks of each.
        shared: the decoder uses the encoder's self-attention, MLP and their norms, and owns its cross-attention alone.
        dropout, attention_dropout: on hidden rows and on attention probabilities.
        norm_eps: epsilon of every norm.
        initial_std: standard deviation of the random weights.
        pooler: whether there is a pooled vector, `pooled["pair"]`, tanh(linear(first row)), [P, H].

    Raises:
        ValueError: the layout has causal items, or its special tokens lack CLS.
    """

    writes_beside = True  # by a decoder, so that what is read stays as it is where captions are written

    def __init__(
        self,
        embedder: nn.Module,
        layout: Layout,
        hidden_size: int,
        layers: int,
        heads: int,
        mlp_size: int,
        shared: bool,
        dropout: float,
        attention_dropout: float,
        norm_eps: float,
        initial_std: float,
        pooler: bool = True,
    ):
        super().__init__()
        if layout.causal:
            raise ValueError("layout_causal is of models that write in the stream they read; leave it out")
        if "CLS" not in layout.special:
            raise ValueError("what a decoder writes begins with CLS, and the tokenizer has no such token")
        self.hidden_size = self.visual_size = hidden_size
        self.pooled_size = hidden_size if pooler else 0
        self.mlp_size, self.norm_eps, self.initial_std = mlp_size, norm_eps, initial_std
        self.layout, self.items, self.max_tokens, self.streams = layout, layout.items, layout.max_tokens, 1
        offered: EmbedderOffers = embedder.offers  # type: ignore[assignment]
        self.offers = Offers(
            "encoded",
            region_rows=layout.has_regions,
            pooled=pooler,
            given_regions=True,
            region_features=True,
            region_parts=offered.region_parts,
            writes=frozenset({"caption"} & layout.max_tokens.keys()),
            decoder=True,
        )
        types = dict(zip(layout.items, layout.types, strict=True))
        text_type = next((kind for item, kind in types.items() if not is_visual(item)), 0)
        self.written = DecoderLayout(layout.special["CLS"], text_type, types.get("regions", 0))
        self.embedder = embedder
        self.feature_size: int = embedder.feature_size  # type: ignore[assignment]
        sizes: dict[str, Any] = {"hidden_size": hidden_size, "heads": heads, "mlp_size": mlp_size, "dropout": dropout}
        sizes |= {"attention_dropout": attention_dropout, "norm_eps": norm_eps}
        self.encoder = Transformer(layers, **sizes)
        self.decoder = None if shared else Transformer(layers, **sizes)
        self.crossing = nn.ModuleList(
            Exchange(hidden_size, hidden_size, hidden_size, heads, dropout, attention_dropout, norm_eps)
            for _ in range(layers)
        )
        self.pooler = nn.Linear(hidden_size, hidden_size) if pooler else None
        initialise(self, initial_std)

    parameters_begin = r"^model\.(decoder\.layers|crossing)\."  # in a run's weights; those that no other has
    picture_sizes = PixelSize  # which it can't see: it takes no backbone

    @property
    def words(self) -> int:
        """Rows of the table of words."""
        return len(self.tied("word_embeddings"))

    def tied(self, name: str) -> Tensor:
        """A parameter shared with a head; see `vlp.contracts.Model`."""
        return self.embedder.tied(name)  # type: ignore[operator]

    @property
    def blocks(self) -> Sequence[Block]:
        """Those of the decoder, of which the first and the last part may be the encoder's."""
        return cast(Sequence[Block], (self.encoder if self.decoder is None else self.decoder).layers)

    def layer_order(self) -> list[list[str]]:
        """The embedder, the encoder's blocks, the decoder's; shared blocks count once, where the decoder has its
        cross-attention. See `vlp.contracts.AnyModel`.
        """
        numbers = range(len(self.crossing))
        if self.decoder is None:
            return [["embedder"], *([f"encoder.layers.{n}", f"crossing.{n}"] for n in numbers)]
        below = [[f"encoder.layers.{n}"] for n in numbers]
        return [["embedder"], *below, *([f"decoder.layers.{n}", f"crossing.{n}"] for n in numbers)]

    def cost(self, batch: Batch) -> Cost:
        """See `vlp.nn.cost.transformer_cost`: of a text that is read and written."""
        rows, table = rows_of(batch, batch.images.offsets.diff()), self.tied("word_embeddings")
        layers = 2 * len(self.crossing)
        return transformer_cost(self, rows, layers, self.hidden_size, self.mlp_size, table)

    @property
    def plan(self) -> EncoderDecoderPlanner:
        """See `vlp.contracts.AnyModel`."""
        read = SingleStreamPlanner(
            self.layout,
            None,
            getattr(self.embedder, "plan", None),
            int(self.pooler is not None),
            self.feature_size,
            self.offers.region_rows,
        )
        return EncoderDecoderPlanner(read, self.written)

    def see(self, images: Images) -> Images:
        """The images as they are."""
        return images

    def embed(self, batch: Batch, *sequences: Any) -> tuple[Tensor, RegionParts | None]:
        """The rows [N, H] of the embedder, and the parts of regions if it offers them."""
        rows = self.embedder(batch, *sequences)
        return rows if self.offers.region_parts else (rows, None)

    def forward(self, batch: Batch, planned: EncoderDecoderPlan | None = None) -> Encoded:
        """Encode every pair, and decode what the batch says is written about it.

        Raises:
            ValueError: see `SingleStreamPlanner`.
        """
        planned = self.plan(batch) if planned is None else planned
        read = planned.read
        rows, parts = self.embed(batch, read.sequences, *_given(read.embedded))
        rows = self.encoder(rows, read.attention)
        stream, pooled = Ragged(rows, planned.places.text), {}
        if self.pooler is not None:
            pooled = {"pair": torch.tanh(self.pooler(rows.index_select(0, read.first[0].row)))}
        computed = read.attention.computed_rows
        encoded = Encoded(stream, stream, planned.places, pooled, computed, parts)
        if planned.written is None:
            return encoded
        computed += planned.written.attention.computed_rows
        written = Ragged(self.decode(batch, rows, planned.written), planned.written.sequences.offsets)
        return replace(encoded, written=written, computed_rows=computed)

    def decode(self, batch: Batch, read: Tensor, planned: DecoderPlan) -> Tensor:
        """The rows [N', H] of the decoder, given those [N, H] that were read."""
        rows, _ = self.embed(batch, planned.sequences, *_given(planned.embedded))
        for block, cross in zip(self.blocks, self.crossing, strict=True):
            rows = block.transform(cross(block.attend(rows, planned.attention), read, planned.cross))
        return rows

    def write(self, batch: Batch, segment: str) -> DecoderStates:
        """See `vlp.contracts.Model`; the segment is written, so it isn't read."""
        pairs, texts = len(batch.pairs), batch.texts
        most = len(texts.segments[segment].tokens) // max(pairs, 1)
        rest = {name: own for name, own in texts.segments.items() if name not in (segment, "target")}
        batch = replace(batch, texts=replace(texts, segments=rest, causal=None), written_images=None)
        with torch.no_grad():
            read = self(batch).text
        crossing, heads = cast(Sequence[Exchange], self.crossing), self.encoder.heads
        return DecoderStates(
            lambda *given: self.embed(*given)[0],
            self.written,
            self.blocks,
            crossing,
            heads,
            batch,
            (read.values, read.offsets),
            most,
        )


def _given(plan: Any) -> tuple[Any, ...]:
    """The embedder's own plan, as its last argument, if it has one."""
    return () if plan is None else (plan,)
