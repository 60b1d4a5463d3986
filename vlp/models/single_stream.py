"""Text and regions through one transformer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from vlp.contracts import Cost, Encoded, Places, RegionParts
from vlp.interfaces import NONE, Batch, Images, PixelSize, Ragged
from vlp.needs import EmbedderOffers, Offers
from vlp.nn.attention import AttentionPlan, plan_attention
from vlp.nn.backbones.pixels import placed
from vlp.nn.cost import rows_of, transformer_cost
from vlp.nn.first_rows import FirstRows, first_among, project_first
from vlp.nn.incremental import Incremental
from vlp.nn.layout import Layout, Sequences, check_width
from vlp.nn.transformer import Transformer, initialise
from vlp.nn.unshaped import Unshaped, settings_of_block


@dataclass(frozen=True)
class SingleStreamPlan:
    """A planned batch. `seen`: the regions that the backbone makes, if it makes any. `embedded`: the embedder's own
    plan. `first`: the rows that each pooler reads.
    """

    places: Places
    sequences: Sequences
    attention: AttentionPlan
    seen: Any
    embedded: Any
    first: list[FirstRows]


@dataclass(frozen=True)
class SingleStreamPlanner:
    """The `plan` of a `SingleStream`: its layout, the plans of its backbone and its embedder, and what is checked.

    `poolers`: how many there are. `feature_size`: of regions. `region_rows`: whether there are any.
    """

    layout: Layout
    see: Any
    embed: Any
    poolers: int
    feature_size: int
    region_rows: bool

    def __call__(self, batch: Batch, generator: Generator | None = None) -> SingleStreamPlan:
        """Plan a batch.

        Raises:
            ValueError: region features of another width than the model's, no pixels for a model that sees them, or a
                pair with nothing in it.
        """
        seen, images = None, batch.images
        if self.see is not None and images.pixels is not None:
            seen = self.see(images, generator)
            batch = replace(batch, images=placed(images, seen))
        elif self.see is not None and not len(images.features) and bool((batch.pairs[:, 1:] != NONE).any()):
            raise ValueError("this model sees pixels, and the batch has none; see vlp.interfaces.Regions.from_pixels")
        elif len(images.features):
            check_width(images, self.feature_size)
        s = self.layout.assemble(batch)
        places = Places(s.offsets, s.offsets, s.tokens, s.text, s.regions if self.region_rows else None, s.special)
        first = [FirstRows(torch.arange(len(batch.pairs), device=s.offsets.device), s.offsets[:-1], len(batch.pairs))]
        if self.poolers == 2:
            first = [first_among(among, len(batch.pairs)) for among in ([s.text], [s.regions, s.wholes])]
        return SingleStreamPlan(
            places,
            s,
            plan_attention(s.offsets, causal=s.causal),
            seen,
            None if self.embed is None else self.embed(batch, s),
            first[: self.poolers],
        )


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
        offered: EmbedderOffers = embedder.offers  # type: ignore[assignment]
        self.offers = Offers(
            "encoded",
            region_rows=layout.has_regions,
            pooled=pooler,
            given_regions=backbone is None or getattr(backbone, "reads_boxes", False),
            region_features=backbone is None,
            region_parts=offered.region_parts,
            writes=layout.causal & layout.max_tokens.keys(),
        )
        self.embedder = embedder
        self.feature_size: int = embedder.feature_size  # type: ignore[assignment]
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

    def unshaped(self) -> dict[str, Unshaped]:
        """Its activation and heads; see `vlp.nn.unshaped`."""
        own = settings_of_block(self.encoder.layers[0].activation, self.encoder.heads)  # type: ignore[arg-type]
        change = {"activation": "type (this one has no other activation)", "heads": "heads"}
        return {name: Unshaped(value, change[name]) for name, value in own.items()}

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
        offsets = batch.images.offsets
        if self.backbone is not None and batch.images.sizes is not None:
            offsets = self.backbone.plan(batch.images).offsets  # type: ignore[operator]
        layers, table = len(self.encoder.layers), self.tied("word_embeddings")
        return transformer_cost(self, rows_of(batch, offsets.diff()), layers, self.hidden_size, self.mlp_size, table)

    @property
    def plan(self) -> SingleStreamPlanner:
        """See `vlp.contracts.AnyModel`."""
        return SingleStreamPlanner(
            self.layout,
            None if self.backbone is None else self.backbone.plan,
            getattr(self.embedder, "plan", None),
            (self.pooler is not None) + (self.visual_pooler is not None),
            self.feature_size,
            self.offers.region_rows,
        )

    def see(self, images: Images) -> Images:
        """The images with regions made from their pixels, if the model sees pixels and they have them."""
        return images if self.backbone is None or images.pixels is None else self.backbone(images)

    def embed(self, batch: Batch, *sequences: Any) -> tuple[Tensor, RegionParts | None]:
        """The rows [N, H] of the embedder, and the parts of regions if it offers them."""
        rows = self.embedder(batch, *sequences)
        return rows if self.offers.region_parts else (rows, None)

    def forward(self, batch: Batch, planned: SingleStreamPlan | None = None) -> Encoded:
        """Encode every pair.

        Raises:
            ValueError: see `SingleStreamPlanner`.
        """
        if planned is None:
            planned = self.plan(batch, torch.default_generator if self.training else None)
        if planned.seen is not None:
            assert self.backbone is not None
            batch = replace(batch, images=self.backbone(batch.images, planned.seen))
        embedded = () if planned.embedded is None else (planned.embedded,)
        rows, parts = self.embed(batch, planned.sequences, *embedded)
        rows = self.encoder(rows, planned.attention)
        stream, pooled = Ragged(rows, planned.places.text), self.pool(rows, planned.first)
        return Encoded(stream, stream, planned.places, pooled, planned.attention.computed_rows, parts)

    def write(self, batch: Batch, segment: str) -> Incremental:
        """See `vlp.contracts.Model`."""
        batch = replace(batch, images=self.see(batch.images))
        return Incremental(
            lambda *given: self.embed(*given)[0], self.encoder, batch, self.layout.assemble(batch), segment
        )

    def pool(self, rows: Tensor, first: list[FirstRows]) -> dict[str, Tensor]:
        """Pooled vectors [P, pooled_size], if there is a pooler."""
        if self.pooler is None:
            return {}
        if self.visual_pooler is None:
            return {"pair": torch.tanh(self.pooler(rows.index_select(0, first[0].row)))}
        pooled = {
            "text": torch.relu(project_first(self.pooler, rows, first[0])),
            "visual": torch.relu(project_first(self.visual_pooler, rows, first[1])),
        }
        return {**pooled, "pair": self.dropout(pooled["text"] * pooled["visual"])}
