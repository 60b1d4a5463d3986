"""WenLan's text tower: a text as the set of its tokens' states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlp.nn.ragged import offsets_of, ranges
from vlp.nn.towers.bert_text import BertSizes, BertTrunk, TextPlan, plan_text
from vlp.nn.towers.set_head import HeadSizes, SetHead, SetPlan, plan_sets, train_only


@dataclass(frozen=True)
class WenlanTextPlan:
    """`text`: what BERT sees. `real` int64 [N]: of the states that it gives those of no padding; None: all. `head`: the
    sets of those.
    """

    text: TextPlan
    real: Tensor | None
    head: SetPlan


@dataclass(frozen=True)
class WenlanTextPlanner:
    """What of `WenlanText`'s work needs lengths; a tower's `plan`. `context_length`: of texts whose padding is seen;
    None: it isn't.
    """

    context_length: int | None

    def __call__(self, lengths: Tensor, width: int) -> WenlanTextPlan:
        """The plan of texts of `lengths` int64 [T], padded to `width`.

        Raises:
            ValueError: padding is to be seen, and ids are not padded to `context_length`; or a text is empty.
        """
        head = plan_sets(offsets_of(lengths))
        if self.context_length is None:
            return WenlanTextPlan(plan_text(lengths, width), None, head)
        if width != self.context_length:
            raise ValueError(f"texts are padded to {width} tokens, not to context_length {self.context_length}")
        real, _ = ranges(torch.arange(len(lengths), device=lengths.device) * width, lengths)
        return WenlanTextPlan(plan_text(torch.full_like(lengths, width), width), real, head)


class WenlanText(nn.Module):
    """A text's embedding, of the set of BERT's states of its tokens, special ones too.

    Source: WenLan (Huo et al. 2021), models/vl_model.py.

    Args:
        bert: sizes of BERT.
        special: ids of special tokens by name; PAD, if padding is seen.
        embedding_size: D.
        head: sizes of the `SetHead`.
        context_length: most tokens of a text, special ones included.
        see_padding: BERT attends to padding too, which fills every text up to `context_length`; as the original, which
            gives it no mask. For its weights. The set is of real tokens either way, the vector of padding not trained.
        trained: regular expressions; parameters of BERT in whose names none is found are frozen. None: all train.

    Attributes:
        full_length: whether `forward` wants ids padded to `context_length`.

    Raises:
        ValueError: there are fewer positions than `context_length`, or a pattern of `trained` is found nowhere.
    """

    def __init__(
        self,
        bert: BertSizes,
        special: dict[str, int],
        embedding_size: int,
        head: HeadSizes,
        context_length: int,
        see_padding: bool = False,
        trained: list[str] | None = None,
    ):
        super().__init__()
        if context_length > bert.positions:
            raise ValueError(f"context_length is {context_length}, but bert.positions only {bert.positions}")
        self.embedding_size, self.context_length, self.full_length = embedding_size, context_length, see_padding
        self.plan = WenlanTextPlanner(context_length if see_padding else None)
        self.backbone = BertTrunk(bert, padding=special["PAD"] if see_padding else None)
        if trained is not None:
            train_only(self.backbone, trained)
        self.head = SetHead(bert.hidden_size, embedding_size, head)

    @property
    def word_embeddings(self) -> Tensor:
        """The word table [V, H]."""
        return self.backbone.word_embeddings

    def layer_order(self) -> list[list[str]]:
        """BERT's layers, as `vlp.contracts.AnyModel.layer_order`; the head stands above them."""
        return [[f"backbone.{part}" for part in parts] for parts in self.backbone.layer_order()]

    def forward(self, ids: Tensor, lengths: Tensor, planned: WenlanTextPlan | None = None) -> Tensor:
        """Embeddings [T, D], not normalised; ids int64 [T, L] padded at the end, lengths int64 [T].

        Raises:
            ValueError: see `WenlanTextPlanner`.
        """
        planned = self.plan(lengths, ids.shape[1]) if planned is None else planned
        return self.head(self.states(ids, lengths, planned), planned.head)

    def states(self, ids: Tensor, lengths: Tensor, planned: WenlanTextPlan) -> Tensor:
        """BERT's states [N, H] of all tokens but padding."""
        states = self.backbone(ids, lengths, planned.text)
        return states if planned.real is None else states.index_select(0, planned.real)
