"""Images with one class each, for classification: folders of pictures, data sets of ours, CLIP_benchmark's tars."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipelines.shards.format import IMAGE_FORMATS, BadSampleError, ShardError
from data_pipelines.shards.pictures import MOST_FILE_BYTES, ImageError, sized_pixels
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.images import all_images
from vlp.interfaces import Loads, PixelSize, Regions, SquareSize

TAR_FORMATS = (*IMAGE_FORMATS, "jpeg")
MOST = {"cls": 64, **dict.fromkeys(TAR_FORMATS, MOST_FILE_BYTES)}  # bytes of a tar's member, by its ending


@dataclass(frozen=True)
class LabelledImages:
    """Images whose classes are known. `classes`: their names in the data, in order. `read()` goes through the images
    once: name, number of its class, and the image in the form that the model sees, or a phrase that says what is wrong
    with it. `names`, `templates`: what the data itself says that classes are called, and its prompts, or None.
    """

    classes: list[str]
    count: int | None
    read: Callable[[], Iterator[tuple[str, int, Regions | str]]]
    names: list[str] | None = None
    templates: list[str] | None = None


def open_labelled(data: Path, loads: Loads, split: str, fact: str) -> LabelledImages:
    """The images of a folder.

    Args:
        data: `CLASS/.../IMAGE` files as torchvision's ImageFolder has them; or a data set of ours; or the webdataset
            layout of CLIP_benchmark: `SPLIT/*.tar` with members KEY.cls beside KEY.jpg, and `classnames.txt`.
        loads: what the model wants of the data; only a data set of ours has regions.
        split: of a data set (empty: val) or of tars (empty: test).
        fact: key of a sample's facts that holds the name of its class.

    Raises:
        ShardError: there are no such images, or all are of one class.
    """
    if not data.is_dir():
        raise ShardError(f"there is no folder {data}")
    found = _open(data, loads, split, fact)
    if len(found.classes) < 2:
        raise ShardError(
            f"{data} has one class, {found.classes[0]!r}: there is nothing to tell apart; give the folder that holds"
            " the folders of all classes"
        )
    return found


def _open(data: Path, loads: Loads, split: str, fact: str) -> LabelledImages:
    if (data / "manifest.json").is_file():
        return _of_shards(ShardReader(data, split or "val"), loads, fact)
    pixels = loads.pixels
    if pixels is None:
        raise ShardError(f"{data} holds pictures, and this model sees region features: take a data set that has them")
    if (data / "classnames.txt").is_file():
        return _of_tars(data, split or "test", pixels)
    if split:
        raise ShardError(f"{data} holds folders of pictures, which have no splits: give the folder of the split itself")
    return _of_folder(data, pixels)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, blank ones left out.

    Raises:
        ShardError: it is not there or is no text.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{path} can't be read as a text file: {error}") from error


def _decode(data: bytes, pixels: PixelSize | SquareSize) -> Regions | str:
    try:
        return Regions.from_pixels(torch.from_numpy(sized_pixels(data, pixels)))
    except ImageError as error:
        return str(error)


def _of_folder(folder: Path, pixels: PixelSize | SquareSize) -> LabelledImages:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise ShardError(
            f"{folder} holds neither folders of pictures (CLASS/IMAGE.png), nor a data set (manifest.json), nor tars of"
            " pictures with classnames.txt"
        )
    files: list[tuple[Path, int]] = []
    loose = sorted(path.name for path in folder.iterdir() if not path.is_dir() and not path.name.startswith("."))
    for label, name in enumerate(classes):
        for place, folders, names in os.walk(folder / name, followlinks=True):
            folders.sort()
            files += [(Path(place) / n, label) for n in sorted(names) if not n.startswith(".")]

    def read() -> Iterator[tuple[str, int, Regions | str]]:
        for name in loose:
            yield name, 0, "lies beside the folders of the classes, so it has none"
        for path, label in files:
            try:
                yield path.relative_to(folder).as_posix(), label, _decode(path.read_bytes(), pixels)
            except OSError as error:
                yield path.relative_to(folder).as_posix(), label, f"can't be read: {error.strerror}"

    return LabelledImages(classes, len(loose) + len(files), read)


def _of_shards(reader: ShardReader, loads: Loads, fact: str) -> LabelledImages:
    labels: dict[int, str] = {}
    broken: dict[int, str] = {}
    for number in range(len(reader)):
        try:
            value = reader.facts(number).get(fact)
        except BadSampleError as error:
            broken[number] = error.reason
            continue
        if isinstance(value, str) and value.strip():
            labels[number] = value
        else:
            broken[number] = f"has no class: its fact {fact!r} is {value!r}"
    if not labels:
        raise ShardError(
            f"no sample of split {reader.split!r} of {reader.folder} has a text as its fact {fact!r}, which is to name"
            " its class; fact=NAME says which fact does"
        )
    classes = sorted(set(labels.values()))
    number_of = {name: label for label, name in enumerate(classes)}
    images = all_images(reader, loads)

    def read() -> Iterator[tuple[str, int, Regions | str]]:
        for number in range(len(reader)):
            if number in broken:
                yield reader.key(number), -1, broken[number]
                continue
            try:
                missing = "has no regions" if loads.pixels is None else "has no picture"
                image = images.load(number, 0) if images.shown[number] else missing
                yield reader.key(number), number_of[labels[number]], image
            except BadSampleError as error:
                yield reader.key(number), number_of[labels[number]], error.reason

    return LabelledImages(classes, len(reader), read)


def _of_tars(folder: Path, split: str, pixels: PixelSize | SquareSize) -> LabelledImages:
    names = read_lines(folder / "classnames.txt")
    paths = sorted((folder / split).glob("*.tar"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        found = ", ".join(sorted({path.parent.name for path in folder.glob("*/*.tar")})) or "none"
        raise ShardError(f"{folder / split} has no tar; splits there: {found}")
    listed = folder / split / "nshards.txt"
    if listed.is_file() and read_lines(listed) != [str(len(paths))]:
        raise ShardError(f"{listed} says {' '.join(read_lines(listed))}, but there are {len(paths)} tars")
    templates = folder / "zeroshot_classification_templates.txt"

    def read() -> Iterator[tuple[str, int, Regions | str]]:
        for path in paths:
            for key, members in _samples(path):
                label = members.get("cls", b"").decode(errors="replace").strip()
                image = next((members[kind] for kind in TAR_FORMATS if kind in members), None)
                name = f"{path.name}/{key}"
                if not label.isdecimal() or int(label) >= len(names):
                    yield name, -1, f"has no class: its member cls is {label!r}, not one of 0 to {len(names) - 1}"
                elif image is None:
                    yield name, int(label), "has no picture"
                elif not image:
                    yield name, int(label), f"image is empty, or has more than {MOST_FILE_BYTES >> 20} MiB"
                else:
                    yield name, int(label), _decode(image, pixels)

    return LabelledImages(
        names, None, read, names=names, templates=read_lines(templates) if templates.is_file() else None
    )


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Class and picture of neighbouring members of a tar with one key, as webdataset has them; what is larger than
    `MOST` says is not read, and stands as empty.
    """
    key = ""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as tar, open(path, "rb") as plain:
            for info in tar:
                file = tar.extractfile(info)
                if file is None:
                    continue
                place, slash, name = info.name.rpartition("/")
                base, _, kind = name.partition(".")
                if place + slash + base != key and members:
                    yield key, members
                    members = {}
                key = place + slash + base
                most = MOST.get(kind.lower())
                if most is not None:
                    members[kind.lower()] = file.read() if info.size <= most else b""
            plain.seek(tar.offset)
            if plain.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ShardError(f"{path} is cut short: it lacks a tar's end mark")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ShardError(f"{path} can't be read as a tar: {error}") from error
    if members:
        yield key, members
