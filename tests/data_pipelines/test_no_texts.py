"""Pictures without text: each sample once, whatever captions it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_pipelines.batches import collate
from data_pipelines.scenes.build import build_scenes
from data_pipelines.sources.source import Source
from vlp.interfaces import NONE, Loads, SquareSize
from vlp.text.no_text import NoText


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scenes", 12, 4, 0, lambda text: None, processes=1)
    return folder


def test_each_sample_once(root: Path) -> None:
    loads = Loads({}, pixels=SquareSize(24, "squash"), images="pixels")
    source = Source("s", root / "scenes", "train", NoText(), loads)
    assert len(source) == len(source.reader) == 12
    assert source.known_truths() == (0, 0)
    batch = collate([source.load(n) for n in range(5)], "s", 3, 1, [])
    assert batch.pairs.tolist() == [[NONE, n] for n in range(5)]
    assert batch.texts.segments == {}
    assert len(batch.texts.ids) == 0
    assert batch.images.ids.tolist() == [0, 1, 2, 3, 4]
    assert batch.images.sizes == [(24, 24)] * 5
    for number in range(5):
        pixels = source.reader.pixels(number, loads.pixels)
        assert torch.equal(batch.images.pixels[number * 576 : (number + 1) * 576], torch.from_numpy(pixels).view(-1, 3))


def test_with_captions_as_before(root: Path) -> None:
    with_captions = Source("s", root / "scenes", "train", NoText(), Loads({"caption": 5}))
    assert len(with_captions) == int(with_captions.reader.caption_counts.sum()) > 12
