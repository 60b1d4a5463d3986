"""What makes regions of pictures, as the commands and a manifest name it: trunks of timm, detectors of torchvision."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from vlp.checkpoints.importers.mobilenet_v2 import MOBILENET_V2, MOBILENET_V2_FLAT
from vlp.checkpoints.key_map import KeyMap, import_state, listed
from vlp.checkpoints.load import load_strictly, read_checkpoint
from vlp.checkpoints.prefixes import without_prefix
from vlp.convert import unknown_key
from vlp.strict_yaml import ConfigError

if TYPE_CHECKING:
    from data_pipelines.features.detectors import Choice, Detector
    from data_pipelines.features.regions import RegionExtractor
    from data_pipelines.shards.format import RegionArrays

Extract = Callable[[Image.Image, str], "RegionArrays"]  # regions of an RGB picture, by its name in messages
ANNOTATED = ", then annotated boxes"
SEED = 0  # of the random weights
# torchvision sets the epsilon of norms to 0 for these files of its own, by the beginning of their sha256
WITHOUT_EPSILON = ("258fb6c6", "eeacb38b")
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
    tensors = _tensors(weights, say)
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
    load_strictly(trunk, {**_counters(trunk), **tensors}, str(weights))
    return trunk, f"timm:{name}, {_of_file(weights)}"


def open_detector(
    name: str, weights: Path | None, choice: Choice, say: Callable[[str], None], box_head: bool = True
) -> tuple[Detector, list[str], str]:
    """A detector of torchvision with its weights, the names of its classes, and how it was made, in words.

    The number of classes is that of the weights. Their names are torchvision's, if they are as many; else
    `background`, `class 1`, `class 2` and so on.

    say: told what of the file is not used. box_head: see `Detector`.

    Raises:
        ConfigError: torchvision has no such detector, or there is no file, or it holds no weights.
        FileNotFoundError: there is no such file.
        KeyMismatchError: the weights are another detector's.
    """
    import torchvision

    from data_pipelines.features.detectors import DETECTORS, Detector

    if name not in DETECTORS:
        raise unknown_key("--boxes detector:", name, DETECTORS)
    published = torchvision.models.get_model_weights(name).DEFAULT
    if weights is None:
        raise ConfigError(
            f"detector:{name} needs its weights (--weights FILE), since those of a detector that learned nothing find"
            f" nothing. torchvision's own, of COCO, are {published.url}; of a model that you trained,"
            " torch.save(model.state_dict(), FILE) makes them"
        )
    tensors = _tensors(weights, say)
    rows, anchors = DETECTORS[name]
    classes = len(published.meta["categories"])
    if rows in tensors:
        classes = max(len(tensors[rows]) // anchors, 2)
    with torch.random.fork_rng():
        model: Any = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    load_strictly(model, {**_counters(model), **tensors}, f"{weights} for detector:{name}")
    made = _of_file(weights)
    if made.rpartition("sha256 ")[2].startswith(WITHOUT_EPSILON):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    known = ["background", *published.meta["categories"][1:]]
    names = known if len(known) == classes else ["background", *(f"class {n}" for n in range(1, classes))]
    return Detector(model, choice, _device(), box_head), names, f"detector:{name}, {made}"


def _tensors(weights: Path, say: Callable[[str], None]) -> dict[str, Tensor]:
    try:
        return read_checkpoint(weights, lambda line: say(f"{weights.name}: {line}"))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _counters(model: nn.Module) -> dict[str, Any]:
    """Counters of training steps, which some files lack and no feature depends on."""
    return {key: value for key, value in model.state_dict().items() if key.endswith(".num_batches_tracked")}


def _of_file(weights: Path) -> str:
    return f"weights {weights.name} (sha256 {_digest(weights)})"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def described(made: str, image_size: int, grid: tuple[int, int] | None) -> str:
    """What a manifest says of its extractor: the trunk, as `open_trunk` tells how it was made, and the boxes."""
    return f"RoIAlign over {made}; image size {image_size}; whole image, then {boxes_described(grid)}"


def boxes_described(grid: tuple[int, int] | None) -> str:
    """Which boxes the regions are, in words."""
    return "annotated boxes" if grid is None else f"grid {grid[0]}x{grid[1]}"


def described_detector(made: str, choice: Choice, trunk: tuple[str, int] | None, annotated: bool) -> str:
    """What a manifest says of a detector: how it was made, as `open_detector` tells, which boxes are taken, and whose
    features they have. trunk: how that was made, as `open_trunk` tells, and its image size; None: the box head.
    annotated: whether annotated boxes follow.
    """
    whose = "of its box head" if trunk is None else f"by RoIAlign over {trunk[0]}; image size {trunk[1]}"
    return (
        f"{made}; scores above {choice.threshold:g}, {choice.least} to {choice.most} boxes, NMS {choice.nms:g};"
        f" features {whose}; whole image, then its boxes{ANNOTATED * annotated}"
    )


def open_extractor(text: str, files: Sequence[Path], say: Callable[[str], None]) -> Extract:
    """What a manifest describes, to make regions of another picture as its data's were. Of a detector's boxes that are
    followed by annotated ones it has the first alone, since nobody annotated it.

    files: of the weights, if it had such, in any order; they are known by their SHA-256.

    Raises:
        ConfigError: it is no extractor of this program, its boxes were annotated, or a file is missing or is another.
    """
    from data_pipelines.features.detectors import Choice, detected
    from data_pipelines.features.regions import RegionExtractor, regions_of_grid

    left = {_digest(path): path for path in files}

    def trunk_of(option: str, made: str, image_size: str) -> RegionExtractor:
        trunk, _ = open_trunk(option, _recorded(made, left, text), say)
        return RegionExtractor(trunk, int(image_size), _device())

    roi_align = r"RoIAlign over (timm:[^,;]+), (.*); image size (\d+)"
    grid = re.fullmatch(rf"{roi_align}; whole image, then grid (\d+)x(\d+)", text)
    found = re.fullmatch(
        r"detector:(\w+), (weights .* \(sha256 \w+\)); scores above (\S+), (\d+) to (\d+) boxes, NMS (\S+);"
        rf" features (?:of its box head|by {roi_align}); whole image, then its boxes(?:{ANNOTATED})?",
        text,
    )
    if grid:
        extractor, cells = trunk_of(*grid.groups()[:3]), (int(grid[4]), int(grid[5]))

        def extract(picture: Image.Image, name: str) -> RegionArrays:
            return regions_of_grid(picture, extractor, cells)

    elif found:
        choice = Choice(float(found[3]), int(found[4]), int(found[5]), float(found[6]))
        detector, _, _ = open_detector(found[1], _recorded(found[2], left, text), choice, say, not found[7])
        features_of = trunk_of(found[7], found[8], found[9]) if found[7] else None

        def extract(picture: Image.Image, name: str) -> RegionArrays:
            return detected([(name, picture)], detector, features_of)[0].regions

    else:
        raise ConfigError(
            "regions of a picture can be made in a grid, or of the boxes that a detector finds, but the data's were"
            f" made so: {text}"
        )
    if left:
        raise ConfigError(f"the data's regions were made so: {text}; not with {', '.join(map(str, left.values()))}")
    return extract


def _recorded(made: str, files: dict[str, Path], text: str) -> Path | None:
    """The file of weights that is meant, taken out of those that are given by their SHA-256; None if there was none."""
    of_file = re.search(r"weights .* \(sha256 (\w+)\)$", made)
    if of_file is None:
        return None
    if of_file[1] not in files:
        other = f", not {', '.join(map(str, files.values()))}" if files else ""
        raise ConfigError(
            f"the data's regions were made so: {text}; give that file of weights (--weights FILE, or extractor=FILE"
            f" from Python){other}"
        )
    return files.pop(of_file[1])
