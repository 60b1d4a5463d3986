"""The embedder of ViLBERT and of LXMERT, in which text and regions do not mix."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vlp.interfaces import Batch, Images
from vlp.needs import EmbedderOffers
from vlp.nn.embedders.geometry import box_geometry, whole_image
from vlp.nn.embedders.text_rows import TextSizes, text_rows, tied
from vlp.nn.embedders.whole_image import plan_wholes, whole_features
from vlp.nn.layout import Sequences
from vlp.nn.ragged import Padded


class TwoStreamEmbedder(nn.Module):
    """Text as BERT's; a region from its feature and its box, each projected.

    A masked region's feature is zero. The row of a whole image has the box 0 0 1 1 and the images' `whole` vector, or
    else the mean of its region features, the masked ones counting as zero.

    - ViLBERT (Lu et al. 2019, vilbert/vilbert.py, the first release's mean): norm(W feature + W box), five numbers.
    - LXMERT (Tan and Bansal 2019, lxrt/modeling.py): (norm(W feature) + norm(W box)) / 2, four numbers.

    Args:
        hidden_size, visual_hidden_size: widths of the two streams.
        text: rows of the tables of words, positions and types.
        feature_size: F, the width of region features.
        box_numbers: 4, x1 y1 x2 y2; or 5, the area too.
        separate_norms: the mean of two normed projections rather than the norm of their sum.
        dropout: on the rows of either stream.
        norm_eps: epsilon of every norm.
        frozen_first_rows: row 0 of the position and of the type table is not trained, as LXMERT's, where the first
            position and the first type keep their random start.
        whole_of_unmasked: the mean for the whole image leaves the masked regions out (VOLTA).
        tasks: rows of the table of tasks, of which one stands in the text as the layout's item TASK, without position
            and type (12-in-1, Lu et al. 2020, vilbert/vilbert.py with task_specific_tokens). 0: no table.
        task_tokens: the row of that table for each source of data, by the source's name. The name of batches that no
            source gave, as of pairs scored one by one, is ''.

    Raises:
        ValueError: a row that the table of tasks does not have, or a table without sources.
    """

    offers = EmbedderOffers()

    def __init__(
        self,
        hidden_size: int,
        visual_hidden_size: int,
        text: TextSizes,
        feature_size: int,
        box_numbers: Literal[4, 5],
        separate_norms: bool,
        dropout: float,
        norm_eps: float,
        frozen_first_rows: bool = False,
        whole_of_unmasked: bool = False,
        tasks: int = 0,
        task_tokens: dict[str, int] | None = None,
    ):
        super().__init__()
        self.task_tokens = task_tokens or {}
        for source, row in self.task_tokens.items():
            if not 0 <= row < tasks:
                raise ValueError(f"task_tokens.{source} is {row}, but the table has {tasks} rows (tasks)")
        if tasks and not self.task_tokens:
            raise ValueError("tasks needs task_tokens: the row of each source of data")
        special = {"TASK": text.vocab_size} if tasks else {}
        self.offers = EmbedderOffers(special=special, unplaced=frozenset(special))
        frozen = 0 if frozen_first_rows else None
        self.whole_of_unmasked = whole_of_unmasked
        self.feature_size, self.box_numbers = feature_size, box_numbers
        self.word_table = nn.Embedding(text.vocab_size, hidden_size)
        self.position_table = nn.Embedding(text.positions, hidden_size, padding_idx=frozen)
        self.type_table = nn.Embedding(text.types, hidden_size, padding_idx=frozen)
        self.task_table = nn.Embedding(tasks, hidden_size) if tasks else None
        self.text_norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.feature_projection = nn.Linear(feature_size, visual_hidden_size)
        self.box_projection = nn.Linear(box_numbers, visual_hidden_size)
        self.region_norm = nn.LayerNorm(visual_hidden_size, eps=norm_eps)  # of the features alone where separate
        self.box_norm = nn.LayerNorm(visual_hidden_size, eps=norm_eps) if separate_norms else None
        self.dropout = nn.Dropout(dropout)

    def tied(self, name: str) -> Tensor:
        """See `text_rows.tied`."""
        return tied(name, self.word_table, self.feature_projection.weight)

    plan = staticmethod(plan_wholes)

    def forward(
        self, batch: Batch, text: Sequences, visual: Sequences, planned: Padded | None = None
    ) -> tuple[Tensor, Tensor]:
        """The rows of the text stream [N, H] and of the visual stream [N, visual H].

        Raises:
            ValueError: there is a table of tasks, and `task_tokens` has no row of it for the batch's source.
        """
        words = self.text_norm(self._words(batch, text)).index_select(0, text.order)
        images = batch.images
        features = images.features
        if images.masked is not None:
            features = features.masked_fill(images.masked[:, None], 0.0)
        # embedded once a region, however many pairs show it
        rows = self._embed(features, images.boxes).index_select(0, visual.regions.source)
        if len(visual.wholes.row):
            planned = self.plan(batch, text, visual) if planned is None else planned
            whole = whole_features(images, planned) if self.whole_of_unmasked else _whole(images, features, planned)
            whole = self._embed(whole, whole_image(len(whole), whole))
            rows = torch.cat([rows, whole.index_select(0, visual.wholes.source)])
        return self.dropout(words), self.dropout(rows.index_select(0, visual.order))

    def _words(self, batch: Batch, text: Sequences) -> Tensor:
        """The rows of text before their norm, as the sequences name them."""
        if self.task_table is None:
            return text_rows(self, text)
        if batch.source not in self.task_tokens:
            raise ValueError(
                f"no task token for source {batch.source!r}: give it a row in model.embedder.task_tokens, which has"
                f" {', '.join(map(repr, self.task_tokens))}"
            )
        is_task = text.token_ids == self.offers.special["TASK"]
        words = self.word_table(text.token_ids.masked_fill(is_task, 0))
        words = words + self.position_table(text.positions) + self.type_table(text.text_types)
        return torch.where(is_task[:, None], self.task_table.weight[self.task_tokens[batch.source]], words)

    def _embed(self, features: Tensor, boxes: Tensor) -> Tensor:
        if self.box_numbers == 5:
            boxes = torch.cat([boxes, box_geometry(boxes)[:, 6:]], 1)
        projected, place = self.feature_projection(features), self.box_projection(boxes)
        if self.box_norm is None:
            return self.region_norm(projected + place)
        return (self.region_norm(projected) + self.box_norm(place)) / 2


def _whole(images: Images, features: Tensor, regions: Padded | None) -> Tensor:
    """One vector for each image, [I, F]: the given one or the mean of its features."""
    if images.whole is not None:
        return images.whole
    assert regions is not None
    # a padded sum, for scattered additions have no fixed order on a GPU
    total = regions.of(features).masked_fill(~regions.real[:, :, None], 0.0).sum(1)
    return total / regions.real.sum(1, keepdim=True).clamp(min=1)
