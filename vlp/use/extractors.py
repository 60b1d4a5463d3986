"""What makes region features of pictures: a trunk of timm, as the commands and a manifest name it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import nn

from vlp.checkpoints.importers.mobilenet_v2 import MOBILENET_V2, MOBILENET_V2_FLAT
from vlp.checkpoints.key_map import KeyMap, import_state, listed
from vlp.checkpoints.load import load_strictly, read_checkpoint
from vlp.checkpoints.prefixes import without_prefix
from vlp.convert import unknown_key
from vlp.strict_yaml import ConfigError

if TYPE_CHECKING:
    from data_pipelines.features.regions import RegionExtractor

SEED = 0  # of the random weights
# other layouts of a trunk's weights, by a key that only they have
LAYOUTS: dict[str, dict[str, KeyMap]] = {
    "mobilenetv2_100": {
        "features.1.conv.0.0.weight": MOBILENET_V2,
        "features.1.conv.0.weight": MOBILENET_V2_FLAT,
    }
}


def open_trunk(option: str, weights: Path | None, say: Callable[[str], None]) -> tuple[nn.Module, str]:
    """The trunk with its weights, and how it was made, in words.

    say: told what of the file is not used, or that the weights are random.

    Raises:
        ConfigError: timm has no such model, or the file holds no weights.
        FileNotFoundError: there is no such file.
        KeyMismatchError: the weights are another model's.
    """
    kind, _, name = option.partition(":")
    if kind != "timm" or not name:
        raise ConfigError(f"--trunk {option!r} is not timm:NAME, as in timm:mobilenetv2_100")
    if not timm.is_model(name):
        raise unknown_key("--trunk", name, timm.list_models())
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        trunk: Any = timm.create_model(name, pretrained=False, num_classes=0)
    if weights is None:
        say(f"no weights: the trunk's are random numbers of seed {SEED}, so the features mean little")
        return trunk, f"timm:{name}, random weights of seed {SEED}"
    try:
        tensors = read_checkpoint(weights, lambda line: say(f"{weights.name}: {line}"))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    layouts = LAYOUTS.get(name.partition(".")[0], {})
    known = trunk.state_dict().keys() | layouts.keys()
    tensors = without_prefix(
        tensors, lambda named: len(named.keys() - known), lambda line: say(f"{weights.name}: {line}")
    )
    heads = trunk.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    unused = sorted(key for key in tensors if key.startswith(heads))
    if unused:
        say(f"{weights.name}: not used, since regions need no classifier: {listed(unused)}")
    tensors = {key: value for key, value in tensors.items() if key not in unused}
    for key, key_map in layouts.items():
        if key in tensors:
            tensors = import_state(tensors, key_map)
            say(f"{weights.name}: {len(tensors)} tensors of another layout, renamed to timm's names")
    # counters of training steps, which some files lack and no feature depends on
    counters = {k: v for k, v in trunk.state_dict().items() if k.endswith(".num_batches_tracked")}
    load_strictly(trunk, {**counters, **tensors}, str(weights))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return trunk, f"timm:{name}, weights {weights.name} (sha256 {digest})"


def described(made: str, image_size: int, grid: tuple[int, int] | None) -> str:
    """What a manifest says of its extractor: the trunk, as `open_trunk` tells how it was made, and the boxes."""
    return f"RoIAlign over {made}; image size {image_size}; whole image, then {boxes_described(grid)}"


def boxes_described(grid: tuple[int, int] | None) -> str:
    """Which boxes the regions are, in words."""
    return "annotated boxes" if grid is None else f"grid {grid[0]}x{grid[1]}"


def grid_extractor(
    text: str, weights: Path | None, say: Callable[[str], None]
) -> tuple[RegionExtractor, tuple[int, int]]:
    """The extractor that a manifest describes, and its grid, to make regions of another picture as its data's were.

    weights: the trunk's file, where it had one.

    Raises:
        ConfigError: it is no extractor of this program, its boxes were annotated, or the weights are another file.
    """
    from data_pipelines.features.regions import RegionExtractor

    found = re.fullmatch(r"RoIAlign over (timm:[^,;]+), .*; image size (\d+); whole image, then grid (\d+)x(\d+)", text)
    if found is None:
        raise ConfigError(f"regions of a picture can be made as in a grid alone, but the data's were made so: {text}")
    grid = int(found[3]), int(found[4])
    trunk, made = open_trunk(found[1], weights, say)
    if described(made, int(found[2]), grid) != text:
        raise ConfigError(f"the data's regions were made so: {text}; give that file of weights, not: {made}")
    return RegionExtractor(trunk, int(found[2]), "cuda" if torch.cuda.is_available() else "cpu"), grid
