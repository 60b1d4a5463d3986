"""Pictures for models that see pixels: their size, their loading, and what becomes of those that are broken."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_shards import loads, make_data_set, make_sample, write_vocabulary
from PIL import Image

from data_pipelines.batches import MicroBatchLoader, collate
from data_pipelines.shards.format import Sample, ShardError
from data_pipelines.shards.pictures import ImageError, sized_pixels
from data_pipelines.sources.plan import Plan
from data_pipelines.sources.source import Source
from vlp.interfaces import PixelSize
from vlp.text.wordpiece import WordPiece

SIZE = PixelSize(shorter=16, longer=24, multiple=8)
SHAPES = [(20, 30), (64, 16), (16, 16), (33, 47)]  # of pictures: height, width


@pytest.fixture
def tokenizer(tmp_path: Path) -> WordPiece:
    return WordPiece(write_vocabulary(tmp_path / "vocabulary.txt"), lowercase=True)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*SHAPES[number % len(SHAPES)], 3), dtype=np.uint8)


def encoded(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def pictured(number: int, regions: int | None = 0, captions: int = 2) -> Sample:
    height, width = SHAPES[number % len(SHAPES)]
    sample = make_sample(number, captions, regions)
    return replace(sample, image=encoded(picture(number)), facts={"height": height, "width": width})


def source(folder: Path, tokenizer: WordPiece, pixels: PixelSize | None = SIZE) -> Source:
    return Source("made_up", folder, "train", tokenizer, loads({"caption": 60}, 100, pixels=pixels))


def loader(source: Source, pairs: int | None, tokens: int | None) -> MicroBatchLoader:
    return MicroBatchLoader(Plan([source.planned(1, tokens is not None)], 7, 1, pairs, tokens), [source])


def test_size_is_that_of_the_published_processor() -> None:
    """Hugging Face's port of ViLT's rule, with its own 800 and 1333 and with the recipe's 384, as oracle."""
    from transformers.models.vilt.image_processing_pil_vilt import get_resize_output_image_size

    rng = np.random.default_rng(0)
    for shorter, longer in ((384, 639), (800, 1333), (96, 159)):
        size = PixelSize(shorter, longer, 32)
        for height, width in [(480, 640), (640, 480), (96, 96), *rng.integers(60, 900, (300, 2)).tolist()]:
            if max(height, width) > 2.8 * min(height, width):
                continue  # of such narrow pictures theirs may leave nothing
            expected = get_resize_output_image_size(np.zeros((3, height, width)), shorter, longer, 32)
            assert size.of(height, width) == tuple(int(side) for side in expected), (shorter, height, width)
    assert PixelSize(384, 639, 32).of(480, 640) == (384, 512)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 7), (100, 1000)])
def test_every_picture_keeps_a_cell(shape: tuple[int, int]) -> None:
    size = SIZE.of(*shape)
    assert all(side % 8 == 0 and 8 <= side <= 24 for side in size), size


def test_pixels_are_those_of_the_scaled_picture() -> None:
    """A plain picture stays plain, a picture of the right size stays as it is, left stays left."""
    assert np.array_equal(sized_pixels(encoded(picture(2)), SIZE), picture(2))
    plain = np.full((40, 60, 3), 77, dtype=np.uint8)
    plain[:, :30] = (200, 10, 30)
    scaled = sized_pixels(encoded(plain), SIZE)
    assert scaled.dtype == np.uint8
    assert scaled.shape == (16, 24, 3)
    assert (scaled[:, :9] == (200, 10, 30)).all()
    assert (scaled[:, 15:] == 77).all()
    with pytest.raises(ImageError):
        sized_pixels(b"no picture", SIZE)


def test_batches_hold_each_picture_once(tmp_path: Path, tokenizer: WordPiece) -> None:
    s = source(make_data_set(tmp_path / "d", [pictured(n) for n in range(4)]), tokenizer)
    batch = collate([s.load(n) for n in (0, 4, 1, 6, 3)], "made_up", 0, 0, [])
    images = batch.images
    assert images.ids.tolist() == [0, 2, 3, 1]
    expected = [torch.from_numpy(sized_pixels(encoded(picture(n)), SIZE)) for n in (0, 2, 3, 1)]
    assert images.sizes == [tuple(p.shape[:2]) for p in expected]
    assert len({*images.sizes}) > 1, "pictures of one size would show little"
    assert torch.equal(images.pixels, torch.cat([p.reshape(-1, 3) for p in expected]))
    assert images.offsets.tolist() == [0] * 5


def test_pictures_are_loaded_where_they_are_asked_for(tmp_path: Path, tokenizer: WordPiece) -> None:
    """Without `pixels` regions are loaded and no picture, with it the picture alone."""
    folder = make_data_set(tmp_path / "d", [pictured(n, regions=3) for n in range(4)])
    regions = collate([source(folder, tokenizer, None).load(0)], "made_up", 0, 0, []).images
    assert regions.pixels is None
    assert regions.sizes is None
    assert len(regions.boxes) == 3
    seen = collate([source(folder, tokenizer).load(0)], "made_up", 0, 0, []).images
    assert len(seen.boxes) == 0
    assert len(seen.pixels) == seen.sizes[0][0] * seen.sizes[0][1]


def test_pairs_are_captions_of_samples_with_pictures(tmp_path: Path, tokenizer: WordPiece) -> None:
    samples = [make_sample(0), pictured(1), pictured(2, captions=0), pictured(3, regions=2)]
    folder = make_data_set(tmp_path / "d", samples)
    s = source(folder, tokenizer)
    assert s.sample_of.tolist() == [1, 1, 3, 3]
    assert s.unusable_samples == 2
    with pytest.raises(ShardError, match="with both captions and a picture"):
        source(make_data_set(tmp_path / "e", [make_sample(0)]), tokenizer)
    with pytest.raises(ShardError, match="tags names regions"):
        Source("made_up", folder, "train", tokenizer, loads({"caption": 60, "tags": 9}, 100, pixels=SIZE))


def test_lengths_are_tokens_and_cells(tmp_path: Path, tokenizer: WordPiece) -> None:
    """A picture whose facts don't say its size counts as the largest."""
    samples = [pictured(n) for n in range(7)] + [replace(pictured(7), facts={})]
    folder = make_data_set(tmp_path / "d", samples)
    cells = [2 * 3, 3 * 1, 2 * 2, 2 * 2, 2 * 3, 3 * 1, 2 * 2, 2 * 3]
    expected = [len(c.split()) + n for n, sample in zip(cells, samples, strict=True) for c in sample.captions]
    for _ in range(2):  # the second time from the kept file
        assert source(folder, tokenizer).planned(1, with_lengths=True).lengths.tolist() == expected
    largest = source(folder, tokenizer, PixelSize(32, 48, 8))
    assert (largest.planned(1, with_lengths=True).lengths > expected).all(), "another size has lengths of its own"


@pytest.mark.parametrize(("pairs", "tokens"), [(5, None), (None, 64)])
def test_broken_pictures_are_replaced_and_counted(
    tmp_path: Path, tokenizer: WordPiece, pairs: int | None, tokens: int | None
) -> None:
    cut = encoded(picture(4))[:200]
    samples = [replace(pictured(n), image=cut) if n == 4 else pictured(n) for n in range(20)]
    folder = make_data_set(tmp_path / "d", samples)
    replaced = 0
    for step in range(10):
        batch = loader(source(folder, tokenizer), pairs, tokens)(step, 0)
        again = loader(source(folder, tokenizer), pairs, tokens)(step, 0)
        assert torch.equal(batch.images.pixels, again.images.pixels)
        assert torch.equal(batch.texts.ids, again.texts.ids)
        assert 4 not in batch.images.ids.tolist()
        assert {(r.key, r.reason) for r in batch.replaced} <= {("sample-0004", "image cannot be decoded")}
        replaced += len(batch.replaced)
    assert replaced > 0
