"""Speed of detectors as a ratio: python tools/benchmark_detectors.py PICTURES [--count N] [--boxes N ...].

Regions of the photographs in a folder by torchvision's Faster R-CNN on MobileNet at 320 pixels, with weights of a seed
(tests/made_up_detectors.py) and 91 classes, in turn in one process:

- as `vlp features regions` makes them of samples, with distributions and features (writing left out);
- the bare loop over torchvision's model, one picture after another, which gives boxes, classes and scores alone.

Both decode the pictures, 16 by the one and the same 16 by the other. Seconds are medians, the ratio is that of bare /
vlp, so that above 1 vlp is faster. OMP_NUM_THREADS=1 keeps the ratio on a loaded machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from made_up_detectors import SMALL, make_detector, tensor_of

from data_pipelines.features.detectors import Choice, Detector, with_detected
from data_pipelines.shards.format import Sample
from data_pipelines.shards.pictures import decode_image

CLASSES = 91
TOGETHER = 16  # photographs


def bare(model: Any, samples: list[Sample]) -> None:
    """torchvision's own, one picture after another."""
    with torch.inference_mode():
        for sample in samples:
            model([tensor_of(decode_image(sample.image or b""))])


def ours(detector: Detector, names: list[str], samples: list[Sample]) -> None:
    """As `vlp features regions` does it."""
    for sample in with_detected(samples, detector, names):
        assert sample.regions is not None


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="a folder of photographs (.jpg)")
    parser.add_argument("--count", type=int, default=96, help="how many of them (default: 96)")
    parser.add_argument("--boxes", type=int, nargs="+", default=[10, 36, 100], help="of each (default: 10 36 100)")
    options = parser.parse_args()
    files = sorted(options.pictures.glob("*.jpg"))[: options.count]
    samples = [Sample(file.stem, [], image=file.read_bytes(), image_format="jpg") for file in files]
    names = ["background", *(f"class {number}" for number in range(1, CLASSES))]
    model, theirs = make_detector(SMALL, CLASSES), make_detector(SMALL, CLASSES)
    console = Console(highlight=False)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, CPU")
    table = Table("boxes", "vlp, s a photo", "bare, s a photo", "bare / vlp", "quartiles")
    for boxes in options.boxes:
        theirs.roi_heads.detections_per_img = boxes
        detector = Detector(model, Choice(least=boxes, most=boxes))
        found: list[tuple[float, float]] = []
        for number, first in enumerate(range(0, len(samples), TOGETHER)):
            some = samples[first : first + TOGETHER]
            works = [partial(ours, detector, names, some), partial(bare, theirs, some)]
            times = {work: seconds(work) for work in (works if number % 2 else works[::-1])}
            found.append((times[works[0]] / len(some), times[works[1]] / len(some)))
        low, middle, high = statistics.quantiles([other / own for own, other in found[1:]], n=4)  # the first warms up
        own, other = (statistics.median(times) for times in zip(*found, strict=True))
        table.add_row(str(boxes), f"{own:.3f}", f"{other:.3f}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
