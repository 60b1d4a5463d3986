"""The forms of published features, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.features.published.arrays import ArraysReader
from data_pipelines.features.published.bottom_up import BottomUpReader
from data_pipelines.features.published.hdf5 import Hy5Reader, VlpReader
from data_pipelines.features.published.oscar import OscarReader
from data_pipelines.features.published.record import FeatureReader
from data_pipelines.features.published.uniter import UniterLmdbReader, UniterNpzReader
from data_pipelines.features.published.vilbert import VilbertReader
from data_pipelines.features.published.vlbert import VlbertReader


@dataclass(frozen=True)
class Files:
    """What is read. `files`: files or folders; the others belong to them, where their form has such."""

    files: list[Path]
    labels: Path | None = None
    boxes: Path | None = None
    ids: Path | None = None


@dataclass(frozen=True)
class Form:
    """A form. `what`: its files, for the help. `open`: gives its reader. `takes`: which of `Files` it may have."""

    what: str
    open: Callable[[Files], FeatureReader]
    takes: tuple[str, ...] = ()


FORMS = {
    "bottom_up": Form("TSV of bottom-up attention, LXMERT, ViLBERT", lambda given: BottomUpReader(given.files)),
    "uniter": Form("UNITER's folders of .npz", lambda given: UniterNpzReader(given.files)),
    "uniter_lmdb": Form("UNITER's LMDB", lambda given: UniterLmdbReader(given.files)),
    "oscar": Form(
        "TSV of Oscar and VinVL, with or without .lineidx; --labels predictions.tsv",
        lambda given: OscarReader(given.files, given.labels),
        ("labels",),
    ),
    "vilbert": Form("ViLBERT's LMDB of pickles, which are not run", lambda given: VilbertReader(given.files)),
    "vlbert": Form("VL-BERT's JSON, in folders or .zip", lambda given: VlbertReader(given.files)),
    "vlp": Form(
        "VLP's HDF5: PREFIX_featNNN.h5, with PREFIX_clsNNN.h5 beside them; --boxes FILE",
        lambda given: VlpReader(given.files, given.boxes),
        ("boxes",),
    ),
    "hy5": Form(
        "HDF5 of bottom-up attention for VQA; --ids imgid2idx.pkl or .json",
        lambda given: Hy5Reader(given.files, given.ids),
        ("ids",),
    ),
    "arrays": Form(
        "an .npz or .npy for each image; --boxes DIR where they lie apart",
        lambda given: ArraysReader(given.files, given.boxes),
        ("boxes",),
    ),
}
