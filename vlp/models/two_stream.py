"""Text and regions through a transformer each, joined by cross-attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from vlp.contracts import Cost, Encoded, Places
from vlp.interfaces import Batch, Images, PixelSize, Ragged
from vlp.needs import Offers
from vlp.nn.attention import AttentionPlan, plan_attention
from vlp.nn.cost import rows_of, transformer_cost
from vlp.nn.cross_attention import CrossPlan, Exchange, plan_cross_attention
from vlp.nn.first_rows import FirstRows, first_rows, project_first
from vlp.nn.layout import Layout, Sequences, check_width
from vlp.nn.ragged import Padded, lengths_of, mean_of_rows, offsets_of, owner_of_rows, padded
from vlp.nn.transformer import Block, initialise


class CrossBlock(nn.Module):
    """Cross-attention in both directions, from the states before the block; then a block for each stream.

    `into_visual` is None where one cross-attention serves both directions.
    """

    def __init__(self, into_text: Exchange, into_visual: Exchange | None, text: Block, visual: Block):
        super().__init__()
        self.into_text, self.into_visual = into_text, into_visual
        self.text, self.visual = text, visual

    def forward(
        self, text: Tensor, visual: Tensor, plans: list[AttentionPlan], cross: list[CrossPlan]
    ) -> tuple[Tensor, Tensor]:
        """Rows of the two streams to rows of the two streams."""
        into_visual = self.into_text if self.into_visual is None else self.into_visual
        mixed_text = self.into_text(text, visual, cross[0])
        mixed_visual = into_visual(visual, text, cross[1])
        return self.text(mixed_text, plans[0]), self.visual(mixed_visual, plans[1])


@dataclass(frozen=True)
class GatePlan:
    """What the visual blocks' queries and keys are scaled by: `present` int64 [n], the pairs with text, the rows of
    their texts side by side, and `pair` int64 [N], that of each row of the visual stream; of so many `pairs` in all.
    """

    present: Tensor
    texts: Padded
    pair: Tensor
    pairs: int


def plan_gates(text: Tensor, visual: Tensor) -> GatePlan:
    """The plan of streams with these offsets int64 [P + 1]."""
    lengths = lengths_of(text)
    present = lengths.nonzero()[:, 0]
    # a pair without text has no rows there, so what is laid end to end is the texts of the others
    texts = padded(offsets_of(lengths.index_select(0, present)))
    return GatePlan(present, texts, owner_of_rows(lengths_of(visual)), len(lengths))


@dataclass(frozen=True)
class TwoStreamPlan:
    """A planned batch. `attention`, `cross`, `first`: of the text stream and of the visual one. `embedded`: the
    embedder's own plan. `gates`: if the model has any.
    """

    places: Places
    text: Sequences
    visual: Sequences
    attention: list[AttentionPlan]
    cross: list[CrossPlan]
    first: list[FirstRows]
    embedded: Any
    gates: GatePlan | None


@dataclass(frozen=True)
class TwoStreamPlanner:
    """The `plan` of a `TwoStream`: the layouts of its streams, and the plan of its embedder.

    `feature_size`: of regions. `region_rows`: whether there are any. `gates`: whether queries and keys are scaled.
    """

    text: Layout
    visual: Layout
    embed: Any
    feature_size: int
    region_rows: bool
    gates: bool

    def __call__(self, batch: Batch, generator: Generator | None = None) -> TwoStreamPlan:
        """Plan a batch.

        Raises:
            ValueError: region features of another width than the model's, or a pair with nothing in it.
        """
        check_width(batch.images, self.feature_size)
        text, visual = self.text.assemble(batch), self.visual.assemble(batch)
        empty = (lengths_of(text.offsets) == 0) & (lengths_of(visual.offsets) == 0)
        if bool(empty.any()):
            raise ValueError(f"pair {int(empty.nonzero()[0])} of the batch has neither text nor regions")
        regions = visual.regions if self.region_rows else None
        return TwoStreamPlan(
            Places(text.offsets, visual.offsets, text.tokens, text.text, regions, text.special),
            text,
            visual,
            [plan_attention(text.offsets), plan_attention(visual.offsets)],
            [*plan_cross_attention(text.offsets, visual.offsets)],
            [first_rows(text.offsets), first_rows(visual.offsets)],
            None if self.embed is None else self.embed(batch, text, visual),
            plan_gates(text.offsets, visual.offsets) if self.gates else None,
        )


class TwoStream(nn.Module):
    """Encoders of text and of regions with their own widths, and blocks in which they read each other.

    ViLBERT (Lu et al. 2019): `cross` blocks with an attention per direction and no self-attention, between `text` and
    `visual` blocks. LXMERT (Tan and Bansal 2019): `text` blocks, `visual` blocks, then `cross` blocks with one shared
    attention and self-attention.

    Args:
        embedder: gives the input rows of both streams (`vlp.nn.embedders`).
        layout: its text items make the text stream, its image items the visual one.
        hidden_size, heads, mlp_size: size of the text stream.
        visual_hidden_size, visual_heads, visual_mlp_size: size of the visual stream.
        cross_hidden_size, cross_heads: size of the cross-attention.
        schedule: the blocks in the order in which they run.
        cross_shared: one cross-attention for both directions.
        cross_self_attention: whether the cross blocks have self-attention, after the cross-attention.
        dynamic_attention: the `visual` blocks' queries and keys are scaled by 1 + sigmoid(linear(m)), m being the mean
            of the pair's text rows at that place of the schedule, zero for a pair without text (12-in-1, Lu et al.
            2020, vilbert/vilbert.py). So a text block between two visual ones counts for the second.
        pooled_size: width of the poolers that `product` and `sum` have, if not `cross_hidden_size`.
        pooling: `text`: `pooled["pair"]` is tanh(linear(first text row)), [P, hidden_size]. `product`, `sum`:
            `pooled["text"]` and `pooled["visual"]` are relu(linear(first row)), [P, pooled_size], and
            `pooled["pair"]` their product or sum, with dropout. A stream without rows gives zeros.
        dropout, attention_dropout: on hidden rows and on attention probabilities.
        norm_eps: epsilon of every norm.
        initial_std: standard deviation of the random weights.

    Raises:
        ValueError: a size that its heads do not divide, a shared cross-attention between streams of unlike width, or a
            token that the embedder has vectors for and the layout lacks.
    """

    def __init__(
        self,
        embedder: nn.Module,
        layout: Layout,
        hidden_size: int,
        heads: int,
        mlp_size: int,
        visual_hidden_size: int,
        visual_heads: int,
        visual_mlp_size: int,
        cross_hidden_size: int,
        cross_heads: int,
        schedule: list[Literal["text", "visual", "cross"]],
        cross_shared: bool,
        cross_self_attention: bool,
        pooling: Literal["text", "product", "sum"],
        dropout: float,
        attention_dropout: float,
        norm_eps: float,
        initial_std: float,
        pooled_size: int | None = None,
        dynamic_attention: bool = False,
    ):
        super().__init__()
        if cross_shared and hidden_size != visual_hidden_size:
            raise ValueError(
                f"a shared cross-attention needs streams of one width, not {hidden_size} and {visual_hidden_size}"
            )
        for item in embedder.offers.special:  # type: ignore[union-attr]
            if item not in layout.items:
                raise ValueError(f"the embedder has vectors for {item}; put it into layout, which is {layout.items}")
        self.hidden_size, self.visual_size = hidden_size, visual_hidden_size
        self.pooled_size = hidden_size if pooling == "text" else (pooled_size or cross_hidden_size)
        self.norm_eps = norm_eps
        self.initial_std = initial_std
        self.schedule, self.pooling = schedule, pooling
        self.text_layout, self.visual_layout = layout.split()
        self.items, self.max_tokens, self.streams = layout.items, layout.max_tokens, 2
        self.mlp_size = mlp_size
        self.offers = Offers(
            "encoded", region_rows=layout.has_regions, pooled=True, given_regions=True, region_features=True
        )
        self.embedder = embedder
        self.feature_size: int = embedder.feature_size  # type: ignore[assignment]
        rates = (dropout, attention_dropout, norm_eps)

        def block(stream: str, self_attention: bool) -> Block:
            sizes = {
                "text": (hidden_size, heads, mlp_size),
                "visual": (visual_hidden_size, visual_heads, visual_mlp_size),
            }
            return Block(*sizes[stream], *rates, self_attention=self_attention)

        def exchange(size: int, other_size: int) -> Exchange:
            return Exchange(size, other_size, cross_hidden_size, cross_heads, *rates)

        self.text_layers = nn.ModuleList(block("text", True) for kind in schedule if kind == "text")
        self.visual_layers = nn.ModuleList(block("visual", True) for kind in schedule if kind == "visual")
        gates = len(self.visual_layers) if dynamic_attention else 0
        self.visual_gates = nn.ModuleList(nn.Linear(hidden_size, 2 * visual_hidden_size) for _ in range(gates))
        self.cross_layers = nn.ModuleList(
            CrossBlock(
                exchange(hidden_size, visual_hidden_size),
                None if cross_shared else exchange(visual_hidden_size, hidden_size),
                block("text", cross_self_attention),
                block("visual", cross_self_attention),
            )
            for kind in schedule
            if kind == "cross"
        )
        self.text_pooler = nn.Linear(hidden_size, self.pooled_size)
        self.visual_pooler = None if pooling == "text" else nn.Linear(visual_hidden_size, self.pooled_size)
        self.dropout = nn.Dropout(dropout)
        initialise(self, initial_std)

    parameters_begin = r"^model\.(text|visual|cross)_layers\."  # in a run's weights
    picture_sizes = PixelSize  # which it can't see: it takes no backbone

    @property
    def words(self) -> int:
        """Rows of the table of words."""
        return len(self.tied("word_embeddings"))

    def cost(self, batch: Batch) -> Cost:
        """See `vlp.nn.cost.transformer_cost`; every layer counts as one of the text."""
        rows, table = rows_of(batch, batch.images.offsets.diff()), self.tied("word_embeddings")
        return transformer_cost(self, rows, len(self.schedule), self.hidden_size, self.mlp_size, table)

    @property
    def plan(self) -> TwoStreamPlanner:
        """See `vlp.contracts.AnyModel`."""
        return TwoStreamPlanner(
            self.text_layout,
            self.visual_layout,
            getattr(self.embedder, "plan", None),
            self.feature_size,
            self.offers.region_rows,
            len(self.visual_gates) > 0,
        )

    def see(self, images: Images) -> Images:
        """The images as they are."""
        return images

    def tied(self, name: str) -> Tensor:
        """A parameter shared with a head; see `vlp.contracts.Model`."""
        return self.embedder.tied(name)  # type: ignore[operator]

    def layer_order(self) -> list[list[str]]:
        """The embedder, then the layers by how many follow in the schedule on the longer way; see
        `vlp.contracts.AnyModel`.
        """
        above = {"text": 0, "visual": 0}  # layers that the streams still go through
        left = {"text": len(self.text_layers), "visual": len(self.visual_layers), "cross": len(self.cross_layers)}
        order: dict[int, list[str]] = {}
        for kind in reversed(self.schedule):
            left[kind] -= 1
            height = max(above.values()) if kind == "cross" else above[kind]
            order.setdefault(height, []).append(f"{kind}_layers.{left[kind]}")
            above |= {"text": height + 1, "visual": height + 1} if kind == "cross" else {kind: height + 1}
        return [["embedder"], *(order[height] for height in sorted(order, reverse=True))]

    def forward(self, batch: Batch, planned: TwoStreamPlan | None = None) -> Encoded:
        """Encode every pair; either side of a pair may be absent.

        Raises:
            ValueError: see `TwoStreamPlanner`.
        """
        planned = self.plan(batch) if planned is None else planned
        plans = planned.attention
        embedded = () if planned.embedded is None else (planned.embedded,)
        text, visual = self.embedder(batch, planned.text, planned.visual, *embedded)
        layers = {"text": iter(self.text_layers), "visual": iter(self.visual_layers), "cross": iter(self.cross_layers)}
        gates = iter(self.visual_gates)
        for kind in self.schedule:
            layer = next(layers[kind])
            if kind == "text":
                text = layer(text, plans[0])
            elif kind == "visual":
                gate = next(gates, None)
                scale = None if gate is None or planned.gates is None else _scale(gate, text, planned.gates)
                visual = layer(visual, plans[1], scale)
            else:
                text, visual = layer(text, visual, plans, planned.cross)
        return Encoded(
            text=Ragged(text, planned.places.text),
            visual=Ragged(visual, planned.places.visual),
            places=planned.places,
            pooled=self.pool(text, visual, planned.first),
            computed_rows=plans[0].computed_rows + plans[1].computed_rows,
        )

    def pool(self, text: Tensor, visual: Tensor, first: list[FirstRows]) -> dict[str, Tensor]:
        """Pooled vectors [P, pooled_size] of the streams' first rows."""
        of_text = project_first(self.text_pooler, text, first[0])
        if self.visual_pooler is None:
            return {"pair": torch.tanh(of_text)}
        pooled = {
            "text": torch.relu(of_text),
            "visual": torch.relu(project_first(self.visual_pooler, visual, first[1])),
        }
        fuse = torch.mul if self.pooling == "product" else torch.add
        return {**pooled, "pair": self.dropout(fuse(pooled["text"], pooled["visual"]))}


def _scale(gate: nn.Module, text: Tensor, planned: GatePlan) -> Tensor:
    """Factors [N, 2 H] of the queries and keys of the visual rows, by the text rows of their pairs."""
    means = mean_of_rows(text, planned.texts)
    means = means.new_zeros(planned.pairs, means.shape[1]).index_copy(0, planned.present, means)
    return (1 + torch.sigmoid(gate(means))).index_select(0, planned.pair)
