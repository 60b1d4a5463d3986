"""From places in the run to batches: plan, sources and tokenizer together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from data_pipelines.sources.plan import Plan
from data_pipelines.sources.source import LoadedPair, Source
from vlp.distributed import derive_seed
from vlp.interfaces import NONE, AnswerScores, Batch, BoxChoices, Images, Phrases, Regions, Replacement, Segment, Texts


@dataclass(frozen=True)
class MicroBatchLoader:
    """Called with (step, micro-batch), gives that batch, always the same one."""

    plan: Plan
    sources: list[Source]

    def __call__(self, step: int, micro_batch: int) -> Batch:
        """Load a micro-batch; broken samples are replaced and reported in it.

        Raises:
            ShardError: too many samples in a row are broken.
        """
        return self._load(step, [micro_batch], micro_batch)

    def joined(self, step: int, part: int, parts: int) -> Batch:
        """The micro-batches of a step as `parts` undivided batches; gives one of them.

        A loss that compares every pair with all others spans them: so it is the same for every number of processes.

        Raises:
            ShardError: as when called.
        """
        each = self.plan.micro_batches_per_step // parts
        return self._load(step, list(range(part * each, (part + 1) * each)), part)

    def _load(self, step: int, micro_batches: list[int], number: int) -> Batch:
        loaded, replaced = [], []
        for micro_batch in micro_batches:
            chosen, pairs = self.plan.pairs_of(step, micro_batch)  # all micro-batches of a step are of one source
            source = self.sources[chosen]
            draw = derive_seed("texts", source.reader.fingerprint, self.plan.seed, step, micro_batch)
            # of the step, not the micro-batch: an image of several captions is in a batch once, however it is joined
            crop = derive_seed("crop", source.reader.fingerprint, self.plan.seed, step)
            for pair in pairs.tolist():
                good, failures = source.load_or_replace(pair, draw, crop)
                loaded.append(good)
                replaced += [Replacement(source.name, error.key, error.reason) for error in failures]
        return collate(loaded, source.name, step, number, replaced)


def collate(loaded: list[LoadedPair], source: str, step: int, micro_batch: int, replaced: list[Replacement]) -> Batch:
    """Pairs as a clean batch; an image that several captions share is in it once. Texts alone have none, and questions
    about two images have two. The choices of a question are pairs side by side. Where no segment is loaded, pairs have
    no text.

    A batch without any image holds one without regions, which no pair shows.
    """
    rows: dict[int, int] = {}
    images: list[Regions] = []
    for pair in loaded:
        for sample, regions in (
            (pair.sample, pair.regions),
            *([] if pair.second is None else [pair.second]),
            *pair.hard,
        ):
            shown = len(regions.boxes) or regions.pixels is not None or regions.codes is not None
            if sample not in rows and shown:
                rows[sample] = len(images)
                images.append(regions)
    segments = loaded[0].segments if loaded else {}
    asked = "question" in segments
    boxes = any(pair.box is not None for pair in loaded)
    questions, loaded = loaded, [one for pair in loaded for one in _choices(pair)]
    numbers = torch.arange(len(loaded)) if segments else torch.full((len(loaded),), NONE)
    slots = [torch.tensor([rows.get(pair.sample, NONE) for pair in loaded])]
    if any(pair.second is not None for pair in loaded):
        slots.append(torch.tensor([NONE if pair.second is None else rows[pair.second[0]] for pair in loaded]))
    most = max((len(pair.hard) for pair in loaded), default=0)
    hard = [[rows[n] for n, _ in pair.hard] + [NONE] * (most - len(pair.hard)) for pair in loaded]
    return Batch(
        texts=Texts(
            segments={name: Segment.from_tokens([pair.segments[name] for pair in loaded]) for name in segments},
            ids=torch.tensor([pair.text for pair in loaded if segments], dtype=torch.int64),
        ),
        images=Images.from_regions(images or [loaded[0].regions], list(rows) or [NONE]),
        pairs=torch.stack([numbers, *slots], 1),
        matched=torch.ones(len(loaded), dtype=torch.bool),
        answers=torch.tensor([pair.answer for pair in questions]) if asked else None,
        answer_scores=AnswerScores.from_dicts([pair.answers for pair in questions]) if asked else None,
        target_boxes=torch.tensor([pair.box or (0.0,) * 4 for pair in loaded]) if boxes else None,
        box_choices=_box_choices(loaded),
        phrases=_phrases(loaded),
        hard_images=torch.tensor(hard) if most else None,
        source=source,
        step=step,
        micro_batch=micro_batch,
        replaced=replaced,
    )


def _choices(pair: LoadedPair) -> list[LoadedPair]:
    """A pair for each choice of a question, with a text number of its own; the pair itself if it has none."""
    every = (pair.segments, *pair.more)
    return [
        replace(pair, segments=segments, text=pair.text * len(every) + number, more=())
        for number, segments in enumerate(every)
    ]


def _box_choices(loaded: list[LoadedPair]) -> BoxChoices | None:
    """The boxes that the questions of pairs choose from; None where no pair has any."""
    if not any(pair.choices for pair in loaded):
        return None
    return BoxChoices(
        boxes=torch.tensor([box for pair in loaded for box in pair.choices], dtype=torch.float32),
        offsets=torch.tensor([0, *(len(pair.choices) for pair in loaded)]).cumsum(0),
    )


def _phrases(loaded: list[LoadedPair]) -> Phrases | None:
    """The phrases of pairs; None where no pair has any, not even such as are cut off."""
    if all(pair.phrases is None for pair in loaded):
        return None
    every = [(n, token, boxes) for n, pair in enumerate(loaded) for token, boxes in pair.phrases or ()]
    starts = [0, *accumulate(len(pair.segments["question"].ids) for pair in loaded)]
    return Phrases(
        pair=torch.tensor([pair for pair, _, _ in every], dtype=torch.int64),
        token=torch.tensor([starts[pair] + token for pair, token, _ in every], dtype=torch.int64),
        boxes=torch.tensor([box for _, _, boxes in every for box in boxes], dtype=torch.float32).view(-1, 4),
        offsets=torch.tensor([0, *(len(boxes) for _, _, boxes in every)]).cumsum(0),
    )
