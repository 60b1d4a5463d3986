"""Text and regions through one transformer."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from vlp.contracts import Cost, Encoded, Rows
from vlp.interfaces import NONE, Batch, Images, PixelSize, Ragged
from vlp.needs import Offers
from vlp.nn.attention import plan_attention
from vlp.nn.cost import rows_of, transformer_cost
from vlp.nn.layout import Layout, Sequences
from vlp.nn.transformer import Transformer, initialise


class SingleStream(nn.Module):
    """A BERT-like encoder over text and regions together, computed without padding.

    Args:
        embedder: gives the input rows (`vlp.nn.embedders`).
        layout: the order of a sequence.
        hidden_size, layers, heads, mlp_size: size of the transformer.
        dropout, attention_dropout: on hidden rows and on attention probabilities.
        norm_eps: epsilon of every norm.
        initial_std: standard deviation of the random weights.
        pooler: whether there is a pooled vector, which matching needs.
        pooling: `text`: `pooled["pair"]` is tanh(linear(first row)), [P, H]. `product`: `pooled["text"]` and
            `pooled["visual"]` are relu(linear(first row of the text, of the image)), [P, pooled_size], and
            `pooled["pair"]` their product, with dropout, as the two-stream models have it. What a pair lacks is zero.
        pooled_size: width of the poolers that `product` has, if not `hidden_size`.
        norm_first: norms before attention and MLP, as in ViT, rather than after them, as in BERT.
        encoder_norm_eps: epsilon of the transformer's norms, if not `norm_eps`.
        backbone: makes regions from pixels (`vlp.nn.backbones`), for a model that sees pixels.
    """

    def __init__(
        self,
        embedder: nn.Module,
        layout: Layout,
        hidden_size: int,
        layers: int,
        heads: int,
        mlp_size: int,
        dropout: float,
        attention_dropout: float,
        norm_eps: float,
        initial_std: float,
        pooler: bool = True,
        pooling: Literal["text", "product"] = "text",
        pooled_size: int | None = None,
        norm_first: bool = False,
        encoder_norm_eps: float | None = None,
        backbone: nn.Module | None = None,
    ):
        super().__init__()
        self.hidden_size = self.visual_size = self.pooled_size = hidden_size
        self.mlp_size = mlp_size
        if pooling == "product":
            self.pooled_size = pooled_size or hidden_size
        self.norm_eps = norm_eps
        self.initial_std = initial_std
        self.layout = layout
        self.items, self.max_tokens, self.streams = layout.items, layout.max_tokens, 1
        self.offers = Offers(
            "encoded",
            region_rows=layout.has_regions,
            pooled=pooler,
            region_features=backbone is None,
            writes=layout.causal & layout.max_tokens.keys(),
        )
        self.embedder = embedder
        self.encoder = Transformer(
            layers,
            hidden_size=hidden_size,
            heads=heads,
            mlp_size=mlp_size,
            dropout=dropout,
            attention_dropout=attention_dropout,
            norm_eps=norm_eps if encoder_norm_eps is None else encoder_norm_eps,
            norm_first=norm_first,
        )
        if not pooler:
            self.pooled_size = 0
        self.pooler = nn.Linear(hidden_size, self.pooled_size) if pooler else None
        both = pooler and pooling == "product"
        self.visual_pooler = nn.Linear(hidden_size, self.pooled_size) if both else None
        self.dropout = nn.Dropout(dropout)
        initialise(self, initial_std)
        self.backbone = backbone  # which has weights of its own

    parameters_begin = r"^model\.encoder\.layers\."  # in a run's weights
    picture_sizes = PixelSize  # how pictures are scaled, for a backbone

    @property
    def words(self) -> int:
        """Rows of the table of words."""
        return len(self.tied("word_embeddings"))

    def tied(self, name: str) -> Tensor:
        """A parameter shared with a head; see `vlp.contracts.Model`."""
        return self.embedder.tied(name)  # type: ignore[operator]

    def layer_order(self) -> list[list[str]]:
        """The backbone's layers, the embedder, the blocks; see `vlp.contracts.AnyModel`."""
        seeing = [] if self.backbone is None else self.backbone.layer_order()  # type: ignore[operator]
        below = [[f"backbone.{part}" for part in parts] for parts in seeing]
        return [*below, ["embedder"], *([f"encoder.layers.{n}"] for n in range(len(self.encoder.layers)))]

    def cost(self, batch: Batch) -> Cost:
        """See `vlp.nn.cost.transformer_cost`."""
        cells = batch.images.offsets.diff()
        if self.backbone is not None and batch.images.sizes is not None:
            cells = self.backbone.cells(batch.images.sizes)  # type: ignore[operator]
        layers, table = len(self.encoder.layers), self.tied("word_embeddings")
        return transformer_cost(self, rows_of(batch, cells), layers, self.hidden_size, self.mlp_size, table)

    def see(self, images: Images) -> Images:
        """The images with regions made from their pixels, if the model sees pixels and they have them."""
        return images if self.backbone is None or images.pixels is None else self.backbone(images)

    def forward(self, batch: Batch) -> Encoded:
        """Encode every pair.

        Raises:
            ValueError: region features of another width than the model's, no pixels for a model that sees them, or a
                pair with nothing in it.
        """
        batch = replace(batch, images=self.see(batch.images))
        if self.backbone is not None and not len(batch.images.features) and bool((batch.pairs[:, 1:] != NONE).any()):
            raise ValueError("this model sees pixels, and the batch has none; see vlp.interfaces.Regions.from_pixels")
        width = batch.images.features.shape[-1]
        if len(batch.images.features) and width != self.embedder.feature_size:
            raise ValueError(
                f"region features have {width} numbers, the model was built for {self.embedder.feature_size}"
            )
        sequences = self.layout.assemble(batch)
        plan = plan_attention(sequences.offsets, causal=sequences.causal)
        rows = self.encoder(self.embedder(batch, sequences), plan)
        stream = Ragged(rows, sequences.offsets)
        return Encoded(
            text=stream,
            visual=stream,
            tokens=sequences.tokens,
            special=sequences.special,
            text_rows=sequences.text,
            regions=sequences.regions if self.offers.region_rows else None,
            pooled=self.pool(stream, sequences),
            computed_rows=plan.computed_rows,
        )

    def pool(self, stream: Ragged, sequences: Sequences) -> dict[str, Tensor]:
        """Pooled vectors [P, pooled_size], if there is a pooler."""
        if self.pooler is None:
            return {}
        if self.visual_pooler is None:
            return {"pair": torch.tanh(self.pooler(stream.values.index_select(0, stream.offsets[:-1])))}
        s = sequences
        pooled = {
            "text": torch.relu(_of_first_rows(self.pooler, stream, [s.text])),
            "visual": torch.relu(_of_first_rows(self.visual_pooler, stream, [s.regions, s.wholes])),
        }
        return {**pooled, "pair": self.dropout(pooled["text"] * pooled["visual"])}


def _of_first_rows(projection: nn.Linear, stream: Ragged, among: list[Rows]) -> Tensor:
    """The projection of each sequence's first row among the given ones, zero for a sequence without such a row."""
    row, pair = torch.cat([rows.row for rows in among]), torch.cat([rows.pair for rows in among])
    nowhere = len(stream.values)
    first = torch.full_like(stream.offsets[:-1], nowhere).scatter_reduce(0, pair, row, "amin")
    present = (first < nowhere).nonzero()[:, 0]
    projected = projection(stream.values.index_select(0, first.index_select(0, present)))
    return projected.new_zeros(len(first), projected.shape[1]).index_copy(0, present, projected)
