"""Files of hard negatives: read, refused, and brought into batches as negatives of their pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import samples
import torch
from made_up_shards import loads

from data_pipelines.batches import collate
from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.format import ShardError
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.neighbours import read_neighbours, write_neighbours
from data_pipelines.sources.source import Source
from vlp.distributed import generator_for
from vlp.tasks.pair_ranking import PairRanking, draw_negatives
from vlp.text.wordpiece import WordPiece


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data") / "scenes"
    build_scenes(made, 8, 3, 0, lambda text: None, processes=1)
    return made


def written(folder: Path, path: Path) -> ShardReader:
    """Each sample's neighbours are the next two."""
    reader = ShardReader(folder, "train")
    keys = [reader.key(n) for n in range(8)]
    write_neighbours(path, reader, {k: [keys[(n + 1) % 8], keys[(n + 2) % 8]] for n, k in enumerate(keys[:7])}, "run")
    return reader


def test_read_and_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "n.parquet"
    reader = written(folder, path)
    found = read_neighbours(path, reader)
    assert [own.tolist() for own in found] == [*([(n + 1) % 8, (n + 2) % 8] for n in range(7)), []]
    with pytest.raises(ShardError, match=r"neighbours in .*n\.parquet are those of other data"):
        read_neighbours(path, ShardReader(folder, "val"))
    with pytest.raises(ShardError, match=r"no file of neighbours .*none\.parquet; mine them"):
        read_neighbours(tmp_path / "none.parquet", reader)
    for content in (b"no parquet", (folder / "train.parquet").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ShardError, match="is no file of neighbours"):
            read_neighbours(path, reader)
    write_neighbours(path, reader, {reader.key(0): ["nobody"]}, "run")
    with pytest.raises(ShardError, match="names nobody, which is no sample"):
        read_neighbours(path, reader)


@pytest.mark.parametrize("images", [1, 2, 5])
def test_they_are_negatives_of_their_pairs(folder: Path, tmp_path: Path, images: int) -> None:
    path = tmp_path / "n.parquet"
    written(folder, path)
    tokenizer = WordPiece(folder / "vocabulary.txt", lowercase=True)
    source = Source("scenes", folder, "train", tokenizer, loads({"caption": 20}, 10))
    without = collate([source.load(pair) for pair in range(4)], "scenes", 0, 0, [])
    assert without.hard_images is None
    source.bring_neighbours(path, images)
    _, first = np.unique(source.sample_of, return_index=True)
    chosen = first[[0, 1, 4, 7]]  # the last has none
    loaded = [source.load(int(pair), draw=3) for pair in chosen]
    assert [n for n, _ in source.load(int(chosen[0]), draw=3).hard] == [n for n, _ in loaded[0].hard]
    batch = collate(loaded, "scenes", 0, 0, [])
    assert batch.hard_images is not None
    assert batch.hard_images.shape == (4, min(images, 2))
    assert len(set(batch.images.ids.tolist())) == len(batch.images.ids)  # each image once
    assert batch.hard_images[3].tolist() == [-1] * min(images, 2)
    pairs, owner, side = draw_negatives(batch, 1, generator_for("cpu", 0))
    shown = {(int(o), int(batch.images.ids[p[1]])) for p, o, s in zip(pairs, owner, side, strict=True) if s == 0}
    for pair in range(3):
        sample = int(source.sample_of[chosen[pair]])
        wanted = {(pair, n) for n, _ in loaded[pair].hard}
        assert len(wanted) == min(images, 2)
        assert all(n in ((sample + 1) % 8, (sample + 2) % 8) for _, n in wanted)
        assert wanted <= shown
        assert (pair, sample) not in shown
    # and one image beside them, drawn from the rest
    assert torch.bincount(owner[side == 0]).tolist() == [min(images, 2) + 1] * 3 + [1]
    assert len(shown) == int((side == 0).sum())


def test_the_loss_is_about_them() -> None:
    model = samples.model()
    task = PairRanking(model, negatives=1)
    batch = samples.batch([[7, 8], [9, 10]], [2, 3, 4], [[0, 0], [1, 1]])
    hard = replace(batch, hard_images=torch.tensor([[2], [-1]]))
    corrupted, targets = task.corrupt(hard, generator_for("cpu", 0))
    assert corrupted.hard_images is None
    assert [0, 2] in corrupted.pairs[targets.positives :].tolist()
    chosen = PairRanking(model, negatives=1, hardest=1)
    _, pool = chosen.corrupt(hard, generator_for("cpu", 0))
    assert pool.pool is not None
    assert [0, 2] in pool.pool.pairs.tolist()
    assert torch.isfinite(chosen.loss(model(hard), pool, model)[0]["pair_ranking"])
