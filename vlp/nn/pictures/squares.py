"""Square pictures, from a batch and back to bytes.

Letters: I pictures, s their side in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlp.interfaces import Images


def require_squares(images: Images, side: int) -> None:
    """Check that all pictures are squares of that side.

    Raises:
        ValueError: they are not, or there are none.
    """
    if images.pixels is None or images.sizes is None:
        raise ValueError("this model sees pixels, and the batch has none; see vlp.interfaces.Regions.from_pixels")
    for height, width in images.sizes:
        if (height, width) != (side, side):
            raise ValueError(
                f"this coder takes pictures of {side} x {side} pixels, and there is one of {height} x {width}"
            )


def squares_of(images: Images, side: int, like: Tensor) -> Tensor:
    """The pictures, float [I, 3, s, s] from 0 to 1, of the type of `like`.

    Raises:
        ValueError: see `require_squares`.
    """
    require_squares(images, side)
    assert images.pixels is not None
    pixels = images.pixels.view(-1, side, side, 3).permute(0, 3, 1, 2)
    return pixels.to(like.dtype) if pixels.is_floating_point() else pixels.to(like.dtype) / 255


def bytes_of(pictures: Tensor) -> Tensor:
    """Pictures float [I, 3, s, s] from 0 to 1 as uint8 [I, s, s, 3], 0 to 255."""
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
