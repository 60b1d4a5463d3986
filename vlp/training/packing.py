"""Many tensors as a few, so that a loader process can hand them over.

Each tensor that goes from process to process takes a file descriptor and a page of shared memory at least; a prepared
micro-batch has a hundred, most of them small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

from vlp.interfaces import map_tensors

ALIGNMENT = 64  # bytes, as of memory that PyTorch allots: sums may depend on it in their last bit


@dataclass(frozen=True)
class _Part:
    """A tensor, as where it begins in the buffer of its type, and its shape."""

    dtype: torch.dtype
    start: int
    shape: torch.Size


@dataclass(frozen=True)
class Packed:
    """A value of nested dataclasses, dicts, lists and tuples, whose tensors lie end to end in a buffer for each type.

    A tensor that stands in it several times lies there once.
    """

    value: Any
    buffers: dict[torch.dtype, Tensor]

    def to(self, device: torch.device | str) -> Packed:
        """The same on a device. From page-locked memory a GPU copies while it computes; nobody waits."""
        return self._each(lambda buffer: buffer.to(device, non_blocking=buffer.device.type == "cpu"))

    def pin_memory(self) -> Packed:
        """The same in page-locked memory; the loader calls it on GPU machines."""
        return self._each(lambda buffer: buffer.pin_memory())

    def unpack(self) -> Any:
        """The value, whose tensors are views of the buffers."""
        return map_tensors(self.value, self._tensor, _Part)

    def _tensor(self, part: _Part) -> Tensor:
        view = self.buffers[part.dtype][part.start : part.start + part.shape.numel()].view(part.shape)
        return view.data  # which counts its changes for itself: one in place isn't taken for one of all others

    def _each(self, change: Callable[[Tensor], Tensor]) -> Packed:
        return replace(self, buffers={dtype: change(buffer) for dtype, buffer in self.buffers.items()})


def pack(value: Any) -> Packed:
    """Pack a value; its tensors are copied, without gradients.

    Raises:
        TypeError: something else in it can't go to another process.
    """
    places: dict[int, tuple[_Part, Tensor]] = {}  # by identity
    ends: dict[torch.dtype, int] = {}

    def place(tensor: Tensor) -> _Part:
        if id(tensor) not in places:
            start = ends.get(tensor.dtype, 0)
            step = ALIGNMENT // tensor.element_size()
            ends[tensor.dtype] = start + -(-tensor.numel() // step) * step
            places[id(tensor)] = _Part(tensor.dtype, start, tensor.shape), tensor
        return places[id(tensor)][0]

    parts = map_tensors(value, place)
    buffers = {dtype: torch.empty(end, dtype=dtype) for dtype, end in ends.items()}
    for part, tensor in places.values():
        buffers[part.dtype][part.start : part.start + tensor.numel()] = tensor.detach().flatten()
    require_sendable(parts)
    return Packed(parts, buffers)


def require_sendable(value: Any) -> None:
    """Check that a value can go to another process, before one hangs that can't hand it over.

    Raises:
        TypeError: it can't.
    """
    try:
        ForkingPickler.dumps(value)
    except Exception as error:  # of any kind
        raise TypeError(f"this can't be handed over to another process: {error}") from error
