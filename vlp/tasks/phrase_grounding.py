"""Phrase grounding: the region of the image that each phrase of a text means (Flickr30k Entities)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlp.contracts import Ability, Encoded, Losses, Model, Places, Report, located
from vlp.evaluation.phrases import PhraseEvaluation
from vlp.evaluation.regions import boxes_of_pairs
from vlp.interfaces import Batch
from vlp.metrics.boxes import RIGHT, overlaps
from vlp.needs import Needs
from vlp.nn.precision import at_least_float32
from vlp.nn.ragged import Padded, lengths_of, owner_of_rows
from vlp.nn.transformer import initialise
from vlp.objectives.masked_region import region_rows
from vlp.tasks.answer_classification import asked_of
from vlp.tasks.region_choice import regions_of_pairs


@dataclass(frozen=True)
class PhraseRows:
    """What `PhraseTargets` has of the n phrases whose last word is in the text, of pairs with regions. `words` int64
    [n]: the rows of text that these stand in; `regions`: see `regions_of_pairs`. `questions`: pairs with phrases.
    """

    words: Tensor
    pairs: Tensor
    right: Tensor
    regions: Padded
    questions: int


@dataclass(frozen=True)
class PhraseTargets:
    """Of each phrase: `pair` and `token` int64 [n], as in `Phrases`; `right` bool [n, most regions]: the region
    overlaps by half or more with one of the boxes that it means. `asked` bool [n]: its pair asks something and has
    regions.
    """

    pair: Tensor
    token: Tensor
    right: Tensor
    asked: Tensor

    def locate(self, places: Places) -> PhraseRows:
        """The rows of the last words."""
        rows = places.tokens["question"]
        same = (rows.source == self.token[:, None]) & (rows.pair == self.pair[:, None])
        kept = (same.any(1) & self.asked).nonzero()[:, 0]
        pairs = self.pair.index_select(0, kept)
        words = rows.row.index_select(0, same.index_select(0, kept).int().argmax(1)) if len(kept) else pairs
        right = self.right.index_select(0, kept)
        return PhraseRows(words, pairs, right, regions_of_pairs(places), len(pairs.unique()))


def phrase_targets(batch: Batch, generator: torch.Generator) -> tuple[Batch, PhraseTargets]:
    """What `PhraseGrounding` does to a batch, which stays as it is.

    Raises:
        ValueError: its texts are not questions with phrases.
    """
    asked, phrases = asked_of(batch), batch.phrases
    if phrases is None:
        raise ValueError(
            f"the questions of source {batch.source!r} have no phrases; phrase_grounding needs data whose samples have"
            " the fact expressions, and these their phrases with boxes"
        )
    boxes, real = boxes_of_pairs(batch)
    owner = owner_of_rows(lengths_of(phrases.offsets))  # of each box the phrase
    pair = phrases.pair.index_select(0, owner)
    found = overlaps(boxes.index_select(0, pair), phrases.boxes[:, None].to(boxes.dtype)) >= RIGHT
    found = (found & real.index_select(0, pair)).int()
    right = found.new_zeros(len(phrases.pair), real.shape[1]).index_add(0, owner, found) > 0
    known = (asked & real.any(1)).index_select(0, phrases.pair)
    return batch, PhraseTargets(phrases.pair, phrases.token, right, known)


class PhraseGrounding(nn.Module):
    """Choose among the regions of a pair's image that which each phrase of its segment `question` means, by one head of
    attention: the score of a region is the query of the phrase's last word times its key, over the root of their size.

    It corrupts nothing. A region is right if its overlap (intersection over union) with one of the boxes that the
    phrase means is at least 0.5. The loss is the divergence of the soft maximum over the image's regions from the even
    distribution over the right ones, summed over phrases, mean over pairs with phrases; a phrase without a right region
    adds nothing.
    Source: VisualBERT (Li et al. 2019), section 4.4; uclanlp/visualbert, dataloaders/flickr_dataset.py.

    Args:
        model: the model to be trained; it must have rows of regions.
        head_size: of queries and keys.

    Raises:
        ValueError: `head_size` is not positive.
    """

    abilities: frozenset[Ability] = frozenset({"task", "answers"})
    evaluation = PhraseEvaluation()

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        """See `vlp.needs.Needs`."""
        return Needs(region_rows=True, given_regions=True, truth="boxes")

    def __init__(self, model: Model, head_size: int = 64):
        super().__init__()
        if head_size < 1:
            raise ValueError(f"head_size={head_size} must be positive")
        self.corrupt = phrase_targets
        self.query, self.key = nn.Linear(model.hidden_size, head_size), nn.Linear(model.visual_size, head_size)
        initialise(self, model.initial_std)

    def logits(self, encoded: Encoded) -> Tensor:
        """Scores float32 [n, most regions] for each of the n tokens of the segment `question`, in their order, of
        which a phrase takes that of its last; regions in the order of the images, -inf where there is none.
        """
        rows = encoded.places.tokens["question"]
        return self.scores(encoded, rows.row, rows.pair, regions_of_pairs(encoded.places))

    def scores(self, encoded: Encoded, words: Tensor, pairs: Tensor, regions: Padded) -> Tensor:
        """The same for some rows of text, `words` int64 [n], and their `pairs`. regions: see `regions_of_pairs`."""
        queries = self.query(encoded.text.values.index_select(0, words))
        keys = regions.of(self.key(encoded.visual.values.index_select(0, region_rows(encoded.places).row)))
        table = torch.einsum("nh,nrh->nr", queries, keys.index_select(0, pairs)) / queries.shape[1] ** 0.5
        return at_least_float32(table).masked_fill(~regions.real.index_select(0, pairs), -torch.inf)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Scores to numbers that sum to one."""
        return logits.softmax(1)

    def loss(self, encoded: Encoded, targets: PhraseTargets | PhraseRows, model: Model) -> tuple[Losses, Report]:
        """Losses: `phrase_grounding`. Report: `grounding_accuracy`, the share of phrases whose best region is right."""
        at = located(targets, encoded.places)
        if not len(at.words):
            nothing = encoded.visual.values.sum() * 0
            return {"phrase_grounding": nothing}, {"grounding_accuracy": nothing.new_zeros(())}
        scores = self.scores(encoded, at.words, at.pairs, at.regions)
        chosen = scores.detach().argmax(1, keepdim=True)
        share = at.right / at.right.sum(1, keepdim=True).clamp(min=1)
        # 0 where nothing is right, not 0 times the infinity of a region that isn't there
        each = torch.where(at.right, torch.xlogy(share, share) - share * scores.log_softmax(1), 0)
        accuracy = at.right.gather(1, chosen).float().mean()
        return {"phrase_grounding": each.sum() / at.questions}, {"grounding_accuracy": accuracy}
