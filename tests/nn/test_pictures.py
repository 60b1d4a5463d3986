"""Coders of pictures: sizes, codes and back, what is refused; schedules, noise, moving codes and patches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vlp.convert import construct
from vlp.interfaces import Images, Regions, SquareSize
from vlp.nn.pictures import patch_codebook
from vlp.nn.pictures.patch_codebook import PatchCodebook, centres_of
from vlp.nn.pictures.quantise import MovingCodebook, Schedule, gumbel_noise, relax
from vlp.nn.pictures.squares import bytes_of, squares_of
from vlp.registry import PICTURES
from vlp.strict_yaml import ConfigError

SETTINGS: dict[str, dict[str, Any]] = {
    "openai_dvae": {"codes": 9, "width": 4, "code_width": 3, "groups": 3, "blocks": 1},
    "discrete_vae": {"codes": 9, "code_size": 5, "width": 4, "strides": [2, 2], "blocks": 1},
    "vq_vae": {"codes": 9, "code_size": 5, "width": 8, "shrink": 4, "blocks": 1, "inner_width": 3},
    "patch_codebook": {"codes": 9, "patch": 4},
}


def pictures(count: int, side: int) -> Images:
    generator = torch.Generator().manual_seed(3)
    regions = [
        Regions.from_pixels(torch.randint(256, (side, side, 3), generator=generator, dtype=torch.uint8))
        for _ in range(count)
    ]
    return Images.from_regions(regions, list(range(count)))


def coder(kind: str, side: int = 24, **more: Any) -> Any:
    made = construct("model.pictures", {"type": kind, **SETTINGS[kind], **more}, PICTURES, size=SquareSize(side))
    if hasattr(made, "calibrate"):
        made.calibrate(pictures(3, side))
    return made


def test_every_type_is_tried() -> None:
    assert SETTINGS.keys() == PICTURES.keys()


@pytest.mark.parametrize("kind", SETTINGS)
def test_codes_and_back(kind: str) -> None:
    made, images = coder(kind).eval(), pictures(2, 24)
    codes = made.encode(images)
    assert made.grid == (6, 6)
    assert codes.shape == (2, 36)
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < made.codes == 9
    shown = made.decode(codes)
    assert shown.shape == (2, 24, 24, 3)
    assert shown.dtype == torch.uint8
    again = made(squares_of(images, 24, torch.zeros(())))
    assert torch.equal(again.codes, codes)
    assert torch.equal(bytes_of(again.shown), shown)
    assert again.reproduced.shape == (2, made.channels, 24, 24)
    assert again.rows == again.computed_rows == 72
    assert (again.code_logits is not None) == made.draws
    # codes are line by line: another last line changes the last line of the grid alone
    other = codes.clone()
    other[:, -6:] = (other[:, -6:] + 1) % 9
    different = (made.decode(other) != shown).any(-1).any(-1).any(0)  # by lines of pixels
    assert different[-4:].any()
    assert not different[:4].any()


@pytest.mark.parametrize("kind", SETTINGS)
def test_double(kind: str) -> None:
    made = coder(kind).double()
    pixels = squares_of(pictures(2, 24), 24, torch.zeros((), dtype=torch.float64))
    assert made(pixels).reproduced.dtype == torch.float64


@pytest.mark.parametrize("kind", SETTINGS)
def test_other_pictures_are_refused(kind: str) -> None:
    made = coder(kind)
    with pytest.raises(ValueError, match="takes pictures of 24 x 24 pixels"):
        made.encode(pictures(1, 20))
    nothing = Images.from_regions([Regions(torch.zeros(1, 2), torch.zeros(1, 4))], [0])
    with pytest.raises(ValueError, match="sees pixels, and the batch has none"):
        made.encode(nothing)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("openai_dvae", {"width": 3}, "must be at least 1, and width 4"),
        ("openai_dvae", {"groups": 5}, "5 groups make pictures 16 times smaller, which 24 pixels can't be"),
        ("openai_dvae", {"temperature": 0.0}, "temperature is 0.0, but must be above 0"),
        ("openai_dvae", {"temperature": {"first": 1, "last": -1, "steps": 9}}, "temperature is -1.0"),
        ("openai_dvae", {"temperature": {"first": 1, "last": 0.1, "steps": 0}}, "steps is 0, but must be at least 1"),
        ("openai_dvae", {"relaxation": "hard"}, "must be one of soft, straight_through, reinmax"),
        ("discrete_vae", {"strides": [2, 5]}, r"strides \[2, 5\] don't divide pictures of 24 pixels"),
        ("discrete_vae", {"strides": [1]}, "must have numbers of at least 2"),
        ("discrete_vae", {"strides": []}, "must have numbers of at least 2"),
        ("discrete_vae", {"codes": 0}, "codes, code_size and width must be at least 1"),
        ("vq_vae", {"shrink": 6}, "must be one of 4, 8"),
        ("vq_vae", {"shrink": 8, "size": 20}, "pictures of 20 pixels can't be made 8 times smaller"),
        ("vq_vae", {"decay": 1.0}, "decay is 1.0, but must be at least 0 and below 1"),
        ("vq_vae", {"restart_below": -0.1}, "restart_below is -0.1"),
        ("patch_codebook", {"patch": 5}, "squares of 5 pixels don't divide pictures of 24"),
        ("patch_codebook", {"codes": 0}, "must be at least 1"),
    ],
)
def test_bad_settings(kind: str, more: dict[str, Any], message: str) -> None:
    settings = {"type": kind, **SETTINGS[kind], **more}
    size = SquareSize(settings.pop("size", 24))
    with pytest.raises(ConfigError, match=message):
        construct("model.pictures", settings, PICTURES, size=size)


@pytest.mark.parametrize("strides", [[2], [3], [2, 3], [4, 2], [6], [2, 2, 2]])
def test_strides_are_exact(strides: list[int]) -> None:
    made = coder("discrete_vae", strides=strides)
    side = 24 // math.prod(strides)
    found = made(torch.rand(1, 3, 24, 24))
    assert made.grid == tuple(found.code_logits.shape[2:]) == (side, side)
    assert found.reproduced.shape == (1, 3, 24, 24)


@pytest.mark.parametrize(("even", "blocks"), [(True, 0), (True, 2), (False, 0), (False, 1)])
def test_eight_times_smaller(even: bool, blocks: int) -> None:
    made = coder("vq_vae", shrink=8, even=even, blocks=blocks)
    found = made(torch.rand(1, 3, 24, 24))
    assert made.grid == (3, 3)
    assert found.reproduced.shape == (1, 3, 24, 24)


def test_schedule() -> None:
    schedule = Schedule(1.0, 0.5, 10)
    assert schedule.at(0) == 1.0
    assert schedule.at(5) == pytest.approx(0.75)
    assert schedule.at(2) == pytest.approx(0.5 + 0.5 * (1 + math.cos(math.pi * 0.2)) / 2)
    assert schedule.at(10) == schedule.at(99) == 0.5


@pytest.mark.parametrize("kind", ["openai_dvae", "discrete_vae"])
def test_noise_and_temperature(kind: str) -> None:
    """The noise is that of torch's own generator; the temperature is the step's; in evaluation there is neither."""
    schedule = {"first": 5.0, "last": 0.01, "steps": 10}
    made, pixels = coder(kind, temperature=schedule), torch.rand(2, 3, 24, 24)
    torch.manual_seed(7)
    first = made(pixels, step=4).reproduced
    torch.manual_seed(7)
    assert torch.equal(made(pixels, step=4).reproduced, first)
    assert not torch.equal(made(pixels, step=4).reproduced, first)
    noise = gumbel_noise(made(pixels).code_logits)
    assert not torch.allclose(made(pixels, 0, noise).reproduced, made(pixels, 10, noise).reproduced)
    fixed = coder(kind, temperature=Schedule(5.0, 0.01, 10).at(4))
    fixed.load_state_dict(made.state_dict())
    assert torch.equal(made(pixels, 4, noise).reproduced, fixed(pixels, 0, noise).reproduced)
    made.eval()
    assert torch.equal(made(pixels, 0).reproduced, made(pixels, 10).reproduced)


def test_drawn_codes_have_the_probabilities_of_the_logits() -> None:
    """The Gumbel trick, against the softmax itself."""
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0]).view(1, 4, 1, 1).expand(20_000, 4, 1, 1)
    for relaxation in ("straight_through", "reinmax"):
        drawn = relax(logits, gumbel_noise(logits), 0.5, relaxation)  # type: ignore[arg-type]
        torch.testing.assert_close(drawn.sum(1), torch.ones(20_000, 1, 1))
        assert float((drawn.mean(0) - logits[0].softmax(0)).abs().max()) < 0.015
    soft = relax(logits, gumbel_noise(logits), 0.5, "soft")
    assert float((soft.max(1).values < 0.99).float().mean()) > 0.5


def moved(parts: list[Tensor], **more: Any) -> MovingCodebook:
    torch.manual_seed(1)
    book = MovingCodebook(6, 2, 0.9, **more)
    for _ in range(3):
        for part in parts:
            book.nearest(part)
        book.follow()
    return book


@pytest.mark.parametrize("more", [{}, {"restart_below": 0.3}])
def test_micro_batches_are_one(more: dict[str, Any]) -> None:
    vectors = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    whole, parts = moved([vectors], **more), moved([*vectors.split(10)][::-1], **more)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)


def test_moving_codes_by_hand() -> None:
    """One code that two vectors are near to, and one that none is near to."""
    book = MovingCodebook(2, 1, 0.5)
    with torch.no_grad():
        for name, value in (("vectors", [[0.0], [9.0]]), ("sums", [[0.0], [9.0]])):
            getattr(book, name).copy_(torch.tensor(value))
        book.counts.fill_(1.0)
    codes = book.nearest(torch.tensor([[1.0], [3.0]]))
    assert codes.tolist() == [0, 0]
    assert book.vectors.tolist() == [[0.0], [9.0]], "codes move after the step alone"
    book.follow()
    assert book.counts.tolist() == [1.5, 0.5]
    assert book.sums.tolist() == [[2.0], [4.5]]
    torch.testing.assert_close(book.vectors, torch.tensor([[2 / 1.5], [9.0]]), rtol=1e-4, atol=0)


def test_nothing_moves_in_evaluation_or_where_a_step_is_left_out() -> None:
    book = MovingCodebook(4, 2)
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book.nearest(torch.full((3, 2), torch.nan))
    book.follow(taken=False)
    book.eval().nearest(torch.randn(3, 2))
    book.follow()
    book.train().follow()
    for name, value in book.state_dict().items():
        assert torch.equal(value, before[name])


def test_rare_codes_are_moved() -> None:
    """All of them at first, for none has been counted; then those alone that nothing is near to."""
    vectors = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    stays = MovingCodebook(8, 2)
    with torch.no_grad():
        stays.vectors.add_(100.0)
    far = MovingCodebook(8, 2, restart_below=0.1)
    far.load_state_dict(stays.state_dict())
    for book in (stays, far):
        for _ in range(20):
            book.nearest(vectors)
            book.follow()
    assert len(far.nearest(vectors).unique()) == 8
    assert len(stays.nearest(vectors).unique()) == 1
    far.of_step, far.seen = None, []
    settled = far.vectors.clone()
    far.counts[3] = 0.0
    far.nearest(vectors[:40])
    far.follow()
    assert (vectors[:40] == far.vectors[3]).all(1).any(), "it stands where a vector is"
    assert float((far.vectors - settled).norm(dim=1)[torch.arange(8) != 3].max()) < 0.1


def test_centres_are_where_patches_are() -> None:
    """Of four well separated clusters the centres are their means."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 9.0]])
    patches = (corners[:, None] + torch.rand(4, 50, 2, generator=generator)).flatten(0, 1)
    centres = centres_of(patches, 4)
    expected = patches.view(4, 50, 2).mean(1)
    found = torch.cdist(expected, centres).argmin(1)
    assert sorted(found.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(centres[found], expected)
    assert torch.equal(centres_of(patches, 4), centres)


def test_patches_by_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_codebook, "CHUNK", 7)
    made, images = coder("patch_codebook"), pictures(2, 24)
    pixels = squares_of(images, 24, made.patches)
    codes = made.encode(images).view(2, 6, 6)
    shown = made(pixels).shown
    for image in range(2):
        for row in range(6):
            for column in range(6):
                place = (image, slice(None), slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
                away = [(pixels[place] - patch.view(3, 4, 4)).square().sum() for patch in made.patches]
                assert int(codes[image, row, column]) == int(torch.stack(away).argmin())
                assert torch.equal(shown[place], made.patches[codes[image, row, column]].view(3, 4, 4))


def test_a_codebook_of_all_patches_loses_nothing() -> None:
    images = pictures(2, 8)
    made = PatchCodebook(SquareSize(8), 8, 4)
    made.calibrate(images)
    again = made.decode(made.encode(images))
    assert images.pixels is not None
    assert torch.equal(again.flatten(0, 2), images.pixels)


def test_too_few_patches() -> None:
    made = PatchCodebook(SquareSize(8), 9, 4)
    with pytest.raises(ValueError, match="have 8 different patches, too few for 9 codes"):
        made.calibrate(pictures(2, 8))
