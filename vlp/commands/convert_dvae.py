"""Turn OpenAI's two pickles of DALL-E's coder of pictures into one file of weights, without running what they may hold.

encoder.pkl and decoder.pkl, as OpenAI published them, are whole modules that torch saved: pickles, which can do
anything when they are loaded. Here they are first read instruction by instruction, and of what they name nothing is
loaded; the numbers are read as bytes. OUT is imported by `vlp import openai_dvae OUT`.
"""

from __future__ import annotations

import argparse
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from data_pipelines.pickles import ConversionError, Held, read_objects
from vlp.checkpoints.key_map import KeyMismatchError, import_state
from vlp.checkpoints.load import write_atomically
from vlp.commands.command import open_console, options_of, run_command
from vlp.registry import IMPORTERS

LAYOUT = "openai_dvae"
PACKAGES = ("collections", "dall_e", "torch")  # whose names such modules have
DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
}
DEEPEST = 32  # modules in modules


@dataclass(frozen=True)
class Storage:
    """Numbers of one dtype that lie in the member `key` of the archive, so many of them."""

    dtype: torch.dtype
    key: str
    numbers: int


def storage_of(pid: Any) -> Storage:
    """What torch's persistent id means: ("storage", class, key, device, numbers).

    Raises:
        ConversionError: it is no such id.
    """
    if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], type)):
        raise ConversionError("it refers to something outside itself that is no storage")
    _, kind, key, _, numbers = pid
    dtype = DTYPES.get(getattr(kind, "name", ""))
    if dtype is None or not isinstance(key, str) or type(numbers) is not int:
        raise ConversionError(f"it has a storage of the kind {getattr(kind, 'name', kind)}, which is not read")
    return Storage(dtype, key, numbers)


def parts_of(module: Any, most: int) -> dict[str, Held]:
    """Parameters and buffers of a module of torch and of those in it, by the names of its state dict.

    most: how many modules there may be.

    Raises:
        ConversionError: it is no module, or modules hold each other.
    """
    found: dict[str, Held] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), module)]
    seen = 0
    while waiting:
        place, own = waiting.pop()
        seen += 1
        if seen > most or len(place) > DEEPEST:
            raise ConversionError("its modules hold each other, or one very many times")
        state = own.state if isinstance(own, Held) else None
        if not isinstance(state, dict) or "_modules" not in state:
            what = own.name if isinstance(own, Held) else type(own).__name__
            raise ConversionError(f"{'.'.join(place) or 'what it holds'} is a {what}, not a module of torch")
        for kind in ("_parameters", "_buffers"):
            found |= {
                ".".join([*place, name]): value for name, value in _items(state.get(kind, {})) if value is not None
            }
        waiting += [((*place, name), inner) for name, inner in _items(state["_modules"]) if inner is not None]
    return found


def _items(table: Any) -> list[tuple[str, Any]]:
    """Of a dict, or an OrderedDict, with names."""
    items = table if isinstance(table, dict) else getattr(table, "items", None)
    if not isinstance(items, dict) or not all(isinstance(name, str) for name in items):
        raise ConversionError("a module's table of parameters, buffers or modules is none")
    return list(items.items())


def tensor_of(held: Any, read: Callable[[str], bytes]) -> Tensor:
    """The tensor that torch would make.

    read: gives the bytes of a storage by its key.

    Raises:
        ConversionError: it is no tensor, or reaches beyond its storage.
    """
    if getattr(held, "name", "") == "torch._utils._rebuild_parameter" and held.args:
        held = held.args[0]
    if getattr(held, "name", "") != "torch._utils._rebuild_tensor_v2" or len(held.args) < 4:
        raise ConversionError(f"it is no plain tensor, but {getattr(held, 'name', type(held).__name__)}")
    storage, offset, size, stride = held.args[:4]
    whole = [size, stride, (offset,)]
    if not isinstance(storage, Storage) or not all(
        isinstance(numbers, tuple) and all(type(n) is int and n >= 0 for n in numbers) for numbers in whole
    ):
        raise ConversionError("it has a size, a stride or an offset that is none")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=False))
    if len(size) != len(stride) or 0 in size or last >= storage.numbers or math.prod(size) > storage.numbers:
        raise ConversionError(f"its size {size} doesn't fit its storage of {storage.numbers} numbers")
    data = read(storage.key)
    if len(data) != storage.numbers * storage.dtype.itemsize:
        raise ConversionError(f"its storage has {len(data)} bytes, not those of {storage.numbers} numbers")
    numbers = torch.frombuffer(bytearray(data), dtype=storage.dtype)
    return numbers.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


def read_module(path: Path) -> dict[str, Tensor]:
    """The tensors of a whole module that torch saved, by the names of its state dict; nothing in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ConversionError: it is no such file, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path.stat().st_size)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged archives raise errors of many kinds
        raise ConversionError(
            f"{path} is damaged, cut short, or no file that torch saved since version 1.6 ({error})"
        ) from error


def _read(archive: zipfile.ZipFile, size: int) -> dict[str, Tensor]:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise ConversionError("it is no file that torch saved: it has no data.pkl, or several")
    begin = names[0].removesuffix("data.pkl")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ConversionError("it has compressed parts, which torch doesn't write")
    if f"{begin}byteorder" in archive.namelist() and archive.read(f"{begin}byteorder") != b"little":
        raise ConversionError("it was written on a machine with another order of bytes")
    module, count = read_objects(archive.read(names[0]), PACKAGES, storage_of)
    storages: dict[str, bytes] = {}

    def read(key: str) -> bytes:
        if key not in storages:
            storages[key] = archive.read(f"{begin}data/{key}")
        return storages[key]

    tensors, total = {}, 0
    for name, held in parts_of(module, count).items():
        try:
            tensors[name] = tensor_of(held, read)
        except ConversionError as error:
            raise ConversionError(f"{name}: {error}") from error
        total += tensors[name].nbytes
        if total > size:
            raise ConversionError("its tensors are larger than the file: several are the same numbers")
    return tensors


def convert(options: argparse.Namespace) -> None:
    """Read both, check that they are the two parts of a coder, write."""
    if options.out.suffix != ".safetensors":
        raise ConversionError(f"{options.out}: name a file *.safetensors")
    if options.out.exists():
        raise ConversionError(f"{options.out} is there already; remove it or choose another name")
    tensors: dict[str, Tensor] = {}
    for side in ("encoder", "decoder"):
        tensors |= {f"{side}.{name}": value for name, value in read_module(getattr(options, side)).items()}
    try:
        import_state(tensors, IMPORTERS[LAYOUT])
    except KeyMismatchError as error:
        raise ConversionError(f"these are not the two parts of OpenAI's coder: {error}") from error
    if tensors["encoder.blocks.input.w"].shape[1:2] != (3,):  # the colours of a picture
        raise ConversionError(f"{options.encoder} is no encoder of pictures: give encoder.pkl first, then decoder.pkl")
    write_atomically(options.out, save(tensors))
    told = f"written: {options.out} ({len(tensors)} tensors); import it by `vlp import {LAYOUT}`"
    open_console(markup=False).print(told, soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    parser = options_of(
        "convert-dvae",
        __doc__,
        [
            "convert-dvae encoder.pkl decoder.pkl dvae.safetensors",
            "convert-dvae openai/encoder.pkl openai/decoder.pkl data/dvae.safetensors",
        ],
    )
    parser.add_argument("encoder", type=Path, metavar="ENCODER", help="encoder.pkl")
    parser.add_argument("decoder", type=Path, metavar="DECODER", help="decoder.pkl")
    parser.add_argument("out", type=Path, metavar="OUT", help="a file *.safetensors that isn't there yet")
    return run_command(lambda given: convert(parser.read(given)), arguments)
