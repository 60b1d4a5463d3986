"""A source: the (image, caption) pairs of one split, their lengths, and their replacement where one is broken."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_pipelines.plan import LENGTH_STEP, PlannedSource
from data_pipelines.shards import BadSampleError, ShardError, ShardReader
from vlp.distributed import derive_seed
from vlp.interfaces import Regions, Tokens
from vlp.text.wordpiece import WordPiece

REPLACEMENT_TRIES = 20


@dataclass(frozen=True)
class LoadedPair:
    """One pair, ready for a batch. `sample` and `text` are numbers within the source."""

    sample: int
    text: int
    tokens: Tokens
    regions: Regions


class Source:
    """The pairs of a split: each caption of each sample that has regions.

    Args:
        name: what the mix and the log call it.
        folder, split: where it lies.
        tokenizer: of the captions.
        max_text_tokens, max_regions: what is kept of a longer text (the model cuts it) and of more regions.

    Raises:
        ShardError: the data set is damaged, or has no pair with regions and captions.
    """

    def __init__(
        self, name: str, folder: Path, split: str, tokenizer: WordPiece, max_text_tokens: int, max_regions: int
    ):
        self.name, self.tokenizer = name, tokenizer
        self.max_text_tokens, self.max_regions = max_text_tokens, max_regions
        self.reader = ShardReader(folder, split)
        usable = self.reader.region_counts > 0
        counts = np.where(usable, self.reader.caption_counts, 0)
        self.unusable_samples = int((counts == 0).sum())
        if not counts.sum():
            raise ShardError(
                f"split {split!r} of {folder} has no sample with both captions and region features;"
                " tools/extract_features.py makes features, tools/inspect_data.py shows what is there"
            )
        self.sample_of = np.repeat(np.arange(len(counts)), counts)
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self.caption_of = np.arange(len(self.sample_of)) - first[self.sample_of]
        self._lengths: np.ndarray | None = None
        self._by_length: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sample_of)

    def planned(self, ratio: int, with_lengths: bool) -> PlannedSource:
        """What the plan needs to know; the lengths are measured at first use and kept beside the index."""
        if with_lengths and self._lengths is None:
            self._lengths = self._measure_lengths()
            self._by_length = np.argsort(self._rounded(), kind="stable")
        return PlannedSource(self.name, self.reader.fingerprint, ratio, len(self), self._lengths)

    def _rounded(self) -> np.ndarray:
        assert self._lengths is not None
        return -(-self._lengths // LENGTH_STEP)

    def _measure_lengths(self) -> np.ndarray:
        identity = repr((self.reader.fingerprint, self.tokenizer.tokens, self.tokenizer.lowercase))
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        path = self.reader.folder / f"{self.reader.split}-tokens-{digest}.npy"
        if path.is_file():
            tokens = np.load(path, allow_pickle=False)
        else:
            tokens = np.zeros(len(self), dtype=np.int64)
            for sample in np.unique(self.sample_of):
                places = _span(self.sample_of, sample)
                try:
                    captions = self.reader.facts(int(sample))["captions"]
                except BadSampleError:
                    continue  # it is replaced when its turn comes
                tokens[places] = [len(t.ids) for t in self.tokenizer.encode(captions)][: places.stop - places.start]
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.npy")
            np.save(temporary, tokens)
            os.replace(temporary, path)
        regions = np.minimum(self.reader.region_counts[self.sample_of], self.max_regions)
        return np.minimum(tokens, self.max_text_tokens) + regions

    def load(self, pair: int) -> LoadedPair:
        """One pair.

        Raises:
            BadSampleError: it cannot be used.
        """
        sample, caption = int(self.sample_of[pair]), int(self.caption_of[pair])
        captions = self.reader.facts(sample)["captions"]
        text = captions[caption] if caption < len(captions) else ""
        if not text.strip():
            raise BadSampleError(self.reader.key(sample), f"caption {caption} is empty")
        stored = self.reader.regions(sample)
        assert stored is not None, "samples without regions have no pairs"
        kept = slice(self.max_regions)
        regions = Regions(
            features=torch.from_numpy(stored.features[kept]),
            boxes=torch.from_numpy(stored.boxes[kept]).clamp(0, 1),
            scores=None if stored.scores is None else torch.from_numpy(stored.scores[kept]),
        )
        return LoadedPair(sample, pair, self.tokenizer.encode([text])[0], regions)

    def load_or_replace(self, pair: int) -> tuple[LoadedPair, list[BadSampleError]]:
        """The pair, or one no longer than planned in its place, and what was wrong with those that were tried.

        The replacement is a pure function of the data and the pair.

        Raises:
            ShardError: so many in a row are broken that the data set itself must be.
        """
        failures: list[BadSampleError] = []
        chosen = pair
        for attempt in range(REPLACEMENT_TRIES):
            try:
                return self.load(chosen), failures
            except BadSampleError as error:
                failures.append(error)
                chosen = self._replacement(pair, attempt)
        raise ShardError(
            f"{REPLACEMENT_TRIES} samples of source {self.name!r} in a row cannot be used, the first: {failures[0]};"
            f" look at the data with tools/inspect_data.py {self.reader.folder}"
        )

    def _replacement(self, pair: int, attempt: int) -> int:
        draw = derive_seed("replacement", self.reader.fingerprint, pair, attempt)
        if self._by_length is None:
            return draw % len(self)
        rounded = self._rounded()
        shorter = int(np.searchsorted(rounded[self._by_length], rounded[pair], side="right"))
        return int(self._by_length[draw % shorter])


def _span(ordered: np.ndarray, value: int) -> slice:
    """Where `value` stands in an ascending array."""
    return slice(int(np.searchsorted(ordered, value, "left")), int(np.searchsorted(ordered, value, "right")))
