"""Square pictures for dual encoders, batches that span a step, and tokenizers other than WordPiece."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_shards import loads, make_data_set, make_sample, write_vocabulary
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from data_pipelines.batches import MicroBatchLoader
from data_pipelines.datamodule import MicroBatches
from data_pipelines.prepare import some_images
from data_pipelines.shards.format import Sample, ShardError
from data_pipelines.shards.pictures import random_box, sized_pixels
from data_pipelines.sources.plan import Plan
from data_pipelines.sources.source import Source
from vlp.build import pixel_size
from vlp.config import ConfigError
from vlp.distributed import derive_seed
from vlp.interfaces import PixelSize, SquareSize
from vlp.text.choose import open_tokenizer
from vlp.text.wordpiece import VocabularyError, WordPiece

SHAPES = [(40, 60), (64, 16), (33, 47), (30, 30)]  # of pictures: height, width


def encoded(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("shape", [*SHAPES, (427, 640), (500, 333), (401, 37), (50, 3)])
def test_squares_are_those_of_open_clip(shape: tuple[int, int], resize: str) -> None:
    """Its own transform, without what it does to numbers, gives every pixel."""
    from open_clip.transform import image_transform

    pixels = noise(*shape)
    transform = image_transform(48, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode=resize)
    expected = (transform(Image.fromarray(pixels)).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    assert np.array_equal(sized_pixels(encoded(pixels), SquareSize(48, resize)), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(1, 60_000), (60_000, 1), (2, 10_000)])
def test_threads_of_pixels_do_not_become_giants(height: int, width: int) -> None:
    """Scaled whole, they would be pictures of 3 and more gigabytes; the middle is what is seen."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    middle = (height // 2, slice(width // 2 - 8, width // 2 + 8)) if width > height else (slice(29_992, 30_008), 0)
    pixels[middle] = 255
    square = sized_pixels(encoded(pixels), SquareSize(32))
    assert square.shape == (32, 32, 3)
    assert square[16, 16].min() > 0


def test_random_boxes_keep_to_their_shares() -> None:
    """Areas and ratios in range, all places reached; as torchvision draws them, so their means agree."""
    from torchvision.transforms import RandomResizedCrop

    rng, boxes = np.random.default_rng(0), []
    for _ in range(2000):
        left, top, right, bottom = random_box(100, 80, (0.5, 0.9), rng)
        assert 0 <= left < right <= 100
        assert 0 <= top < bottom <= 80
        boxes.append((left, top, right - left, bottom - top))
    drawn = np.array(boxes)
    areas, ratios = drawn[:, 2] * drawn[:, 3] / 8000, drawn[:, 2] / drawn[:, 3]
    assert 0.48 < areas.min() < 0.52
    assert 0.85 < areas.max() < 0.92
    assert 0.73 < ratios.min() < 0.78
    assert ratios.max() < 1.36
    torch.manual_seed(0)
    picture = torch.zeros(3, 80, 100)
    theirs = np.array(
        [RandomResizedCrop.get_params(picture, [0.5, 0.9], [3 / 4, 4 / 3]) for _ in range(2000)], dtype=float
    )
    np.testing.assert_allclose(drawn[:, [1, 0, 3, 2]].mean(0), theirs.mean(0), atol=1.0)
    assert random_box(1000, 10, (0.9, 1.0), rng) == (493, 0, 506, 10)  # none fits: the largest one in the middle


def test_random_crops_are_of_training_alone_and_of_their_seed() -> None:
    data, size = encoded(noise(40, 60)), SquareSize(24, "shortest", (0.3, 0.6))
    assert np.array_equal(sized_pixels(data, size), sized_pixels(data, SquareSize(24)))
    first, again, other = (sized_pixels(data, size, seed) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "size", [SquareSize(24), PixelSize(shorter=24, longer=48, multiple=8)], ids=["square", "scaled"]
)
def test_augmentation_is_that_of_torchvision(size: SquareSize | PixelSize) -> None:
    """Of training alone, of its seed alone, before the picture is scaled; the generator of the rest isn't touched."""
    image = Image.fromarray(noise(40, 60))
    asked = replace(size, rand_augment=(2, 9), flip=True)
    assert np.array_equal(sized_pixels(image, asked), sized_pixels(image, size))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    drawn = [sized_pixels(image, asked, seed) for seed in range(40)]
    assert torch.equal(torch.get_rng_state(), before)
    for seed in (0, 7, 20):
        torch.manual_seed(derive_seed("augment", seed))
        mirrored = v2.RandomHorizontalFlip()(image)
        assert np.array_equal(drawn[seed], sized_pixels(v2.RandAugment(2, 9)(mirrored), size))
    assert len({pixels.tobytes() for pixels in drawn}) > 25


def test_every_other_picture_is_mirrored() -> None:
    image, size = Image.fromarray(noise(24, 24)), SquareSize(24, flip=True)
    straight = sized_pixels(image, SquareSize(24))
    drawn = [sized_pixels(image, size, seed) for seed in range(60)]
    mirrored = [np.array_equal(pixels, straight[:, ::-1]) for pixels in drawn]
    assert all(same or np.array_equal(pixels, straight) for same, pixels in zip(mirrored, drawn, strict=True))
    assert 15 < sum(mirrored) < 45


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        ({"size": 24, "rand_augment": [0, 9]}, "a number of operations"),
        ({"size": 24, "rand_augment": [2, 31]}, "a number of operations"),
        ({"size": 24, "flip": True, "boxes": True}, "boxes would stay"),
        ({"size": 24, "rand_augment": [2, 9], "boxes": True}, "boxes would stay"),
    ],
)
def test_augmentation_that_is_refused(pixels: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        pixel_size({"type": "dual_encoder", "pixels": pixels})


@pytest.fixture
def tokenizer(tmp_path: Path) -> WordPiece:
    return WordPiece(write_vocabulary(tmp_path / "vocabulary.txt"), lowercase=True)


def pictured(number: int, regions: int | None = 0) -> Sample:
    height, width = SHAPES[number % len(SHAPES)]
    sample = make_sample(number, 2, regions)
    return replace(sample, image=encoded(noise(height, width, number)), facts={"height": height, "width": width})


def source(folder: Path, tokenizer: WordPiece, size: SquareSize, training: bool = True) -> Source:
    return Source("made_up", folder, "train", tokenizer, loads({"caption": 60}, 2, pixels=size), training=training)


def test_a_step_is_the_same_however_many_processes_share_it(tmp_path: Path, tokenizer: WordPiece) -> None:
    """Its micro-batches joined, in one, two or four parts: the same captions and pixels in the same order."""
    make_data_set(tmp_path / "d", [pictured(n) for n in range(13)])
    size = SquareSize(16, "shortest", (0.5, 1.0))
    plan_of = source(tmp_path / "d", tokenizer, size)
    loader = MicroBatchLoader(Plan([plan_of.planned(1, False)], 7, 4, 3, None), [plan_of])

    def content(parts: int) -> list[tuple[int, bytes]]:
        rows = []
        for part in range(parts):
            batch = loader.joined(5, part, parts)
            assert (batch.step, batch.micro_batch, len(batch.pairs)) == (5, part, 12 // parts)
            assert batch.images.pixels is not None
            squares = batch.images.pixels.view(-1, 16, 16, 3)
            rows += [(int(batch.texts.ids[t]), squares[i].numpy().tobytes()) for t, i in batch.pairs.tolist()]
        return rows

    whole = content(1)
    assert len({text for text, _ in whole}) == 12
    assert [t for t, _ in content(2)] == [t for t, _ in content(4)] == [t for t, _ in whole]
    assert content(4) == [row for m in range(4) for row in content_of(loader, m)]


def content_of(loader: MicroBatchLoader, micro_batch: int) -> list[tuple[int, bytes]]:
    batch = loader(5, micro_batch)
    assert batch.images.pixels is not None
    squares = batch.images.pixels.view(-1, 16, 16, 3)
    return [(int(batch.texts.ids[t]), squares[i].numpy().tobytes()) for t, i in batch.pairs.tolist()]


def test_boxes_come_with_pixels_if_they_are_asked_for(tmp_path: Path, tokenizer: WordPiece) -> None:
    make_data_set(tmp_path / "d", [pictured(0, 3), pictured(1, 0)])
    with_boxes = source(tmp_path / "d", tokenizer, SquareSize(16, "squash", boxes=True))
    assert len(with_boxes) == 2  # the captions of the sample that has regions
    regions = with_boxes.load(0).regions
    assert regions.boxes.shape == (2, 4)  # of three, max_regions being 2
    assert regions.features.shape == (2, 0)
    assert regions.pixels is not None
    without = source(tmp_path / "d", tokenizer, SquareSize(16))
    assert len(without) == 4
    assert len(without.load(0).regions.boxes) == 0
    make_data_set(tmp_path / "e", [pictured(1, 0)])
    with pytest.raises(ShardError, match="and a picture with regions"):
        source(tmp_path / "e", tokenizer, SquareSize(16, boxes=True))


def test_a_tokenizer_file(tmp_path: Path) -> None:
    """T5's way, as SigLIP has it: one token after a text, which pads too; and BERT's way."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "red": 3, "box": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = open_tokenizer(tmp_path / "tokenizer.json", lowercase=True)
    assert ours.special == {"SEP": 1, "PAD": 1}
    assert ours.encode(["A red, red box!", ""])[0].ids == [2, 3, 3, 4]  # canonicalized, and not cut
    plain = open_tokenizer(tmp_path / "tokenizer.json", lowercase=False).encode(["A red, box"])[0]
    assert plain.ids == [0, 3, 0, 4]
    assert plain.word_starts == [True] * 4
    tokenizer.post_processor = TemplateProcessing(single="red $A </s>", special_tokens=[("</s>", 1), ("red", 3)])
    tokenizer.enable_padding(pad_id=4)
    tokenizer.save(str(tmp_path / "other.json"))
    assert open_tokenizer(tmp_path / "other.json", lowercase=True).special == {"CLS": 3, "SEP": 1, "PAD": 4}
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(VocabularyError, match=r"broken.json: not a tokenizer.json"):
        open_tokenizer(tmp_path / "broken.json", lowercase=True)
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        open_tokenizer(tmp_path / "none.json", lowercase=True)


def test_broken_pictures_that_codes_would_be_made_from_are_counted(tmp_path: Path) -> None:
    samples = [replace(make_sample(n), image=encoded(noise(20, 20, n)) if n % 3 else b"no picture") for n in range(9)]
    make_data_set(tmp_path / "d", samples)
    tokenizer = WordPiece(write_vocabulary(tmp_path / "vocabulary.txt"), lowercase=True)
    source = Source("d", tmp_path / "d", "train", tokenizer, loads({"caption": 9}, pixels=SquareSize(20, "squash")))
    told: list[str] = []
    images = some_images(source, told.append, 9)
    assert len(images.ids) == 6
    assert len(told) == 1
    assert told[0].startswith("3 of 9 pictures that codes are made from are broken, as sample ")


def test_pictures_are_the_same_whoever_loads_them(tmp_path: Path, tokenizer: WordPiece) -> None:
    """Augmented in the trainer's process, in one or two others, or by a run that goes on from the third step; another
    step augments a picture in another way.
    """
    make_data_set(tmp_path / "d", [pictured(n) for n in range(13)])
    own = source(tmp_path / "d", tokenizer, SquareSize(16, rand_augment=(2, 20), flip=True))
    loader = MicroBatchLoader(Plan([own.planned(1, False)], 7, 2, 3, None), [own])
    places = [(step, number) for step in range(12) for number in range(2)]

    def loaded(workers: int, first: int = 0) -> list[tuple[list[int], bytes]]:
        torch.manual_seed(workers)
        kept = [place for place in places if place[0] >= first]
        batches = DataLoader(MicroBatches(loader), batch_size=None, sampler=kept, num_workers=workers)  # type: ignore[arg-type]
        return [(batch.images.ids.tolist(), batch.images.pixels.numpy().tobytes()) for batch in batches]

    here = loaded(0)
    assert loaded(1) == here
    assert loaded(2) == here
    assert loaded(0, first=2) == here[4:]
    ways: dict[int, set[bytes]] = {}
    for ids, pixels in here:
        for place, sample in enumerate(ids):
            ways.setdefault(sample, set()).add(pixels[place * 768 : place * 768 + 768])
    assert max(len(found) for found in ways.values()) > 3
