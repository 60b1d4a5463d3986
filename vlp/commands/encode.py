"""Make the codes of a data set's pictures before training.

RUN is the run of a picture coder (vqvae_small, dvae_small) or of a token decoder, whose coder is inside: its folder, or
one of its weight files. DATA is a data set's folder. Written is DATA/codes/NAME: for each split SPLIT.npy, uint16
[samples, codes of a picture], SPLIT.left_out.jsonl, the samples without codes (no picture, or none that can be read),
and codes.json. A token decoder with the same coder reads them in the place of pictures: `data.sources.N.codes: NAME`.

Codes are made in parts, in float32. Stopped or killed, the same command goes on with the next part; several processes
or machines each make a share with --part 1/3, 2/3 and 3/3, and the last of them joins all.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

import vlp
from data_pipelines.codes import PART, SplitCodes
from data_pipelines.shards.format import ShardError, read_manifest
from data_pipelines.shards.index import indexed_splits
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.codes import MOST_CODES, Coder, Record, StoredCodes, files_of
from data_pipelines.sources.images import all_images
from data_pipelines.sources.source import Source
from vlp.build import has_frozen_coder
from vlp.checkpoints.digest import digest
from vlp.config import ConfigError, RunConfig
from vlp.convert import chosen
from vlp.interfaces import Images, Loads, SquareSize, map_tensors
from vlp.picture_contracts import PictureCodes
from vlp.registry import PICTURES
from vlp.run_folder import RunFolder, weights_file

EXAMPLE = "runs/vqvae_small data/scenes"


def read_part(text: str) -> tuple[int, int]:
    """`3/8` as (3, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share as 3/8, the third of eight")
    return int(match[1]), int(match[2])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of `vlp data encode`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or one of its weight files")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of a data set")
    parser.add_argument("--split", action="append", help="of the data set; may be given again (default: all)")
    parser.add_argument("--name", help="of the codes (default: that of the run's folder)")
    parser.add_argument("--part", type=read_part, default=(1, 1), metavar="K/N", help="a share alone (default: all)")


def coder_of(pictures: Any) -> Coder:
    """What tells a coder of pictures (`vlp.picture_contracts.PictureCodes`, a module) from others. Its weights count as
    float32, in whatever type they are computed with.
    """
    state = sorted(pictures.state_dict().items())
    weights = {name: value.float() if value.is_floating_point() else value for name, value in state}
    size: SquareSize = pictures.size
    return Coder(digest(weights), pictures.codes, tuple(pictures.grid), size.size, size.resize)


def check_reads_codes(config: RunConfig) -> None:
    """Refuse sources with codes where the model can't read them, or where it is known that they aren't its coder's.

    Raises:
        ConfigError: the model is no token decoder, crops pictures at random, or has its coder made when its run begins.
    """
    for number, source in enumerate(config.data.sources):
        if source.codes is None:
            continue
        where = f"data.sources.{number}.codes"
        if not has_frozen_coder(config.model):
            raise ConfigError(
                f"{where}: a model of the type {config.model['type']} reads no codes of pictures, a token_decoder does;"
                " leave it out"
            )
        for key in ("random_crop", "rand_augment", "flip"):
            if (config.model.get("pixels") or {}).get(key):
                raise ConfigError(f"{where}: codes are those of whole pictures; leave model.pixels.{key} out")
        coder = config.model.get("pictures") or {}
        if hasattr(chosen("model.pictures", coder, PICTURES), "calibrate") and coder.get("weights") is None:
            raise ConfigError(
                f"{where}: the coder {coder['type']} is made from pictures when a run begins, so it isn't the one that"
                " made codes before; name the run that they were made with: model.pictures.weights=RUN"
            )


def check_coder(config: RunConfig, model: Any, sources: list[Source]) -> None:
    """Refuse codes that the coder of a model hasn't made.

    Raises:
        ConfigError: such are a source's.
    """
    names = {source.name: source.codes for source in config.data.sources}
    own = coder_of(model.pictures) if any(names.values()) else None
    for source in sources:
        if own is None or source.codes is None:
            continue
        unlike = source.codes.record.coder.unlike(own)
        if unlike:
            run = (config.model["pictures"] or {}).get("weights") or "RUN"
            raise ConfigError(
                f"source {source.name!r}: the codes {names[source.name]!r} were made by another coder than the model's,"
                f" that of {source.codes.record.made_by} ({'; '.join(unlike)}); name that run"
                f" (model.pictures.weights={source.codes.record.made_by}), or make codes with the model's coder: `vlp"
                f" data encode {run} {source.reader.folder} --name OTHER`"
            )


def open_coder(run: Path, device: str) -> tuple[Any, Loads, dict[str, Any]]:
    """The coder of a run, how pictures are loaded for it, and its block of the configuration.

    Raises:
        ConfigError: there is no run, it has no coder of pictures, or one of too many codes.
        FileNotFoundError, ValueError: see `vlp.load`.
    """
    config = RunFolder(weights_file(run).parent).read_config([])
    if "pictures" not in config.model:
        raise ConfigError(
            f"{run} is the run of a {config.model.get('type')}, which codes no pictures; take one of a picture coder"
            " (vqvae_small, dvae_small) or of a token decoder"
        )
    model = vlp.load(run, device)
    pictures: PictureCodes = model.model.pictures
    if pictures.codes > MOST_CODES:
        raise ConfigError(f"{run} has {pictures.codes:,} codes, and files have room for {MOST_CODES:,} (uint16)")
    return pictures, model.loads, config.model["pictures"]


def open_splits(data: Path, asked: list[str] | None) -> list[ShardReader]:
    """The splits whose pictures are to be coded: those asked for, or all that have pictures.

    Raises:
        ShardError: there is no data set or split, or no picture.
    """
    manifest = read_manifest(data)
    readers = [ShardReader(data, split) for split in asked or sorted({*manifest.samples, *indexed_splits(data)})]
    for reader in readers:
        if asked and not reader.has_image.any():
            raise ShardError(f"split {reader.split!r} of {data} holds no pictures to make codes of")
    if not any(reader.has_image.any() for reader in readers):
        raise ShardError(f"{data} holds no pictures to make codes of")
    return [reader for reader in readers if reader.has_image.any()]


def encode(options: argparse.Namespace, console: Console) -> None:
    """Make the codes, and say what became of the samples."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    readers = open_splits(options.data, options.split)
    pictures, loads, settings = open_coder(options.run, device)
    name = options.name or weights_file(options.run).resolve().parent.name
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"--name: {name!r} is not a name of letters, digits and the signs _ - . ; give another")
    record = Record(coder_of(pictures), str(options.run), settings)

    @torch.inference_mode()
    def codes_of(images: Images) -> np.ndarray:
        codes = pictures.encode(map_tensors(images, lambda tensor: tensor.to(device)))
        return codes.cpu().numpy().astype(np.uint16)

    for reader in readers:
        split = SplitCodes(reader, name, record)
        done = split.finished()
        if done is not None:
            report(split, done, "already there: ", console)
            continue
        images, coded, began = all_images(reader, loads), 0, time.perf_counter()
        parts = split.missing(options.part)
        columns = *Progress.get_default_columns(), MofNCompleteColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(f"parts of {PART:,} samples, {reader.split}", total=len(parts))
            for part in parts:
                coded += split.make(part, images, codes_of)
                progress.advance(task)
        taken = time.perf_counter() - began
        if coded:
            console.print(f"{reader.split}: {coded:,} pictures coded, {coded / taken:,.0f} a second")
        done = split.join()
        if done is None:
            left = len(split.missing())
            console.print(
                f"{reader.split}: {left} of {split.parts} parts are not there yet; who makes the last joins all",
                soft_wrap=True,
            )
        else:
            report(split, done, "written: ", console)


def report(split: SplitCodes, done: StoredCodes, what: str, console: Console) -> None:
    """Print the counts of a split, and the samples without codes by reason."""
    own, coder, reader = done.own, done.record.coder, split.reader
    share = own.codes_used / coder.codes
    console.print(
        f"{what}{done.path}, {own.samples:,} samples, {own.samples - own.left_out:,} of them with"
        f" {coder.grid[0]} x {coder.grid[1]} codes; {own.codes_used:,} of {coder.codes:,} codes are used ({share:.0%})",
        soft_wrap=True,
    )
    for reason, number in Counter(done.left_out.values()).most_common():
        first = next(sample for sample, why in done.left_out.items() if why == reason)
        told = f"without codes: {number:,} x {reason} (first: {reader.key(first)})"
        console.print(told, style="yellow", soft_wrap=True)
    if done.left_out:
        listed = files_of(split.folder, reader.split)[1]
        console.print(f"all of them: {listed}", style="yellow", soft_wrap=True)
