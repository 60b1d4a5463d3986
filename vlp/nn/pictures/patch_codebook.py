"""The plainest coder: a code is the patch that is nearest.

Letters: I pictures, p side of a patch in pixels, N patches, V codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.interfaces import Images, SquareSize
from vlp.nn.pictures.quantise import negative_distances
from vlp.nn.pictures.squares import bytes_of, squares_of
from vlp.picture_contracts import Reconstructed

PATCHES = 40_000  # that centres are sought among
ROUNDS = 1  # more draw centres from rare patches to the shades of backgrounds, which are many
CHUNK = 8192  # patches that are compared at once


def nearest(patches: Tensor, centres: Tensor) -> Tensor:
    """The number of the nearest of centres [V, D] to each of patches [N, D]: int64 [N]."""
    parts = [negative_distances(part, centres).argmax(1) for part in patches.split(CHUNK)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=patches.device)


def centres_of(patches: Tensor, count: int, seed: int = 0) -> Tensor:
    """Centres [V, D] of k-means over patches [N, D]: those of Lloyd's rounds, from patches that are drawn one by one,
    each with a chance that is proportional to the fourth power of its distance from those before. A centre without a
    patch stays.

    Sources: Lloyd, Least squares quantization in PCM (1982); k-means++ (Arthur and Vassilvitskii, 2007), which draws by
    the second power. The fourth gives fewer codes to the noise of backgrounds and more to what is rare: of 1,024 codes
    of scenes the entropy falls from 5.8 to 4.6 nats, and what they show of objects is no worse.

    Raises:
        ValueError: there are fewer different patches than centres.
    """
    generator = torch.Generator(device=patches.device).manual_seed(seed)
    chosen = torch.randint(len(patches), (1,), generator=generator, device=patches.device)
    centres = patches[chosen]
    away = (patches - centres).square().sum(1)
    for number in range(1, count):
        if float(away.max()) <= 0:
            raise ValueError(f"the pictures have {number} different patches, too few for {count} codes")
        point = torch.rand((), generator=generator, device=patches.device, dtype=torch.float64)
        sums = away.double().square().cumsum(0)
        place = torch.searchsorted(sums, point * sums[-1], right=True).clamp(max=len(patches) - 1)
        centres = torch.cat([centres, patches[place][None]])
        away = torch.minimum(away, (patches - centres[-1]).square().sum(1))
    for _ in range(ROUNDS):
        owner = nearest(patches, centres)
        sizes = torch.zeros(count, device=patches.device, dtype=patches.dtype)
        sizes.index_add_(0, owner, torch.ones_like(patches[:, 0]))
        sums = torch.zeros_like(centres).index_add_(0, owner, patches)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
    return centres


class PatchCodebook(nn.Module):
    """Codes are patches, the centres of k-means over those of some pictures; nothing is trained. A code stands for the
    nearest patch, by squared difference of pixels.

    It lets a decoder of codes be trained where no trained coder is at hand, and tells what a trained coder has to beat.
    `calibrate` makes the centres; they are part of a run's weights.

    Args:
        size: of the pictures.
        codes: V.
        patch: p.
        calibration_pictures: how many pictures the centres are made from.

    Raises:
        ValueError: a number is below 1, or patches don't divide the side of a picture.
    """

    channels = 3
    draws = False
    patches: Tensor  # [V, 3 p p] from 0 to 1

    def __init__(self, size: SquareSize, codes: int, patch: int, calibration_pictures: int = 512):
        super().__init__()
        if min(codes, patch, calibration_pictures) < 1:
            raise ValueError("codes, patch and calibration_pictures must be at least 1")
        if size.size % patch:
            raise ValueError(f"patch: squares of {patch} pixels don't divide pictures of {size.size}")
        side = size.size // patch
        self.codes, self.size, self.grid, self.patch = codes, size, (side, side), patch
        self.calibration_pictures = calibration_pictures
        self.register_buffer("patches", torch.zeros(codes, 3 * patch * patch))

    @torch.no_grad()
    def calibrate(self, images: Images) -> None:
        """Make the codes from images with pixels: the same ones from the same images.

        Raises:
            ValueError: see `centres_of`.
        """
        found = self._cut(squares_of(images, self.size.size, self.patches))
        if len(found) > PATCHES:
            generator = torch.Generator(device=found.device).manual_seed(1)
            found = found[torch.randperm(len(found), generator=generator, device=found.device)[:PATCHES]]
        self.patches.copy_(centres_of(found, self.codes))

    def forward(self, pixels: Tensor, step: int = 0, noise: Tensor | None = None) -> Reconstructed:
        """See `vlp.picture_contracts.PictureCodes`."""
        codes = self._nearest(pixels)
        shown = self._joined(codes)
        return Reconstructed(pixels=pixels, shown=shown, pictures=pixels, reproduced=shown, codes=codes)

    def encode(self, images: Images) -> Tensor:
        """See `vlp.picture_contracts.PictureCodes`."""
        return self._nearest(squares_of(images, self.size.size, self.patches))

    def decode(self, codes: Tensor) -> Tensor:
        """See `vlp.picture_contracts.PictureCodes`."""
        return bytes_of(self._joined(codes))

    def after_step(self, taken: bool = True) -> None:
        """See `vlp.picture_contracts.PictureCodes`: nothing."""

    def _cut(self, pixels: Tensor) -> Tensor:
        """The patches [I n, 3 p p] of pictures [I, 3, s, s], line by line."""
        return F.unfold(pixels, self.patch, stride=self.patch).movedim(1, -1).flatten(0, 1)

    def _nearest(self, pixels: Tensor) -> Tensor:
        return nearest(self._cut(pixels), self.patches).view(len(pixels), -1)

    def _joined(self, codes: Tensor) -> Tensor:
        """The pictures [I, 3, s, s] of codes [I, n]."""
        patches = F.embedding(codes, self.patches).movedim(-1, 1)  # [I, 3 p p, n]
        return F.fold(patches, self.size.size, self.patch, stride=self.patch)
