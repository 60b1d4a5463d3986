"""Regions of torchvision's detectors: boxes, distributions over classes, and features of the box head.

Source of what is found: the `postprocess_detections` of torchvision's RoIHeads, RetinaNet, FCOS and SSD, but that a
proposal (or an anchor) is one region, with its likeliest class; torchvision may give it again with its second. Source
of features: bottom-up attention (Anderson et al. 2018), which takes the box head's output, and so many boxes as are
above a threshold, but a least and a most number of them.

The whole image is region 0. R: regions with it, F: feature size, C: classes, the background first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from data_pipelines.features.regions import WITHOUT_REGIONS, ExtractionError, annotated_boxes, with_whole_image
from data_pipelines.shards.format import WHOLE_IMAGE, RegionArrays, Sample
from data_pipelines.shards.pictures import MOST_ELONGATED, ImageError, decode_image

AT_ONCE = 4  # pictures that a detector sees together; more are no faster on a CPU, and take more memory
WINDOW = 32  # samples among which pictures of one shape are looked for; so many lie in memory, scaled
MOST_CANDIDATES = 5000  # boxes among which overlapping ones are dropped, the best
SMALLEST = 1e-2  # side of a box in pixels, as in torchvision
LONGEST = 4096  # of a picture so elongated that it has to be stretched
# by name in torchvision: which tensor has rows of classes, and of how many anchors
_BOX_HEAD = ("roi_heads.box_predictor.cls_score.weight", 1)
_LOGITS = "head.classification_head.cls_logits.weight"
DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": _BOX_HEAD,
    "fasterrcnn_mobilenet_v3_large_fpn": _BOX_HEAD,
    "fasterrcnn_resnet50_fpn": _BOX_HEAD,
    "fasterrcnn_resnet50_fpn_v2": _BOX_HEAD,
    "retinanet_resnet50_fpn": (_LOGITS, 9),
    "retinanet_resnet50_fpn_v2": (_LOGITS, 9),
    "fcos_resnet50_fpn": (_LOGITS, 1),
    "ssd300_vgg16": ("head.classification_head.module_list.0.weight", 4),
    "ssdlite320_mobilenet_v3_large": ("head.classification_head.module_list.0.1.weight", 6),
}


@dataclass(frozen=True)
class Choice:
    """Which boxes become regions: those whose score is above `threshold`, but `least` of the best if there are fewer,
    and `most` of the best if there are more; of boxes of one class that overlap by more than `nms` the best.
    """

    threshold: float = 0.2
    least: int = 10
    most: int = 100
    nms: float = 0.5


@dataclass(frozen=True)
class Scaled:
    """A picture as a detector sees it: `pixels` float32 [1, 3, H, W] with a margin, `size` its height and width
    without that. `name`: for messages. `given` float32 [n, 4]: boxes, corners as shares of the image, that become
    regions behind those that are found; None: no others.
    """

    name: str
    pixels: Tensor
    size: tuple[int, int]
    given: np.ndarray | None = None


@dataclass(frozen=True)
class Found:
    """What a detector found in a picture. `boxes` float32 [R, 4], corners as shares of the image; `classes` int64 [R],
    0 for the whole image; `confidences` float32 [R], as the detector scores them, 0 for the whole image; `scores`
    float16 [R, C] distributions over classes; `features` float16 [R, F], None if the detector has no box head.
    """

    boxes: np.ndarray
    classes: np.ndarray
    confidences: np.ndarray
    scores: np.ndarray
    features: np.ndarray | None = None

    @property
    def regions(self) -> RegionArrays:
        """As they are stored."""
        assert self.features is not None, "a detector without a box head goes with a trunk"
        return RegionArrays(self.boxes, self.features, self.scores)


@dataclass(frozen=True)
class _Candidates:
    """Proposals or anchors of a picture. `rank` [N, C]: the score of each class. `decode`: boxes [n, 4] in pixels, of n
    rows and their classes. `distribution`: float [n, C], of n rows.
    """

    rank: Tensor
    decode: Callable[[Tensor, Tensor], Tensor]
    distribution: Callable[[Tensor], Tensor]


class Detector:
    """A detector of torchvision that makes regions.

    Args:
        model: one of DETECTORS, with its weights; put in eval mode here.
        choice: which boxes are taken.
        device: where it runs.
        box_head: whether that makes the features, if there is one.

    Attributes:
        feature_size: F of the box head, None if it makes none.
    """

    def __init__(self, model: Any, choice: Choice, device: torch.device | str = "cpu", box_head: bool = True):
        # where convolutions are fastest, on a CPU by half
        self.model = model.to(device, memory_format=torch.channels_last).eval()
        self.choice, self.device = choice, device
        self.two_stage = hasattr(self.model, "roi_heads")
        head = self.model.roi_heads.box_predictor.cls_score if self.two_stage and box_head else None
        self.feature_size: int | None = None if head is None else head.in_features

    @torch.inference_mode()
    def scaled(self, picture: Image.Image, name: str) -> Scaled:
        """An RGB picture as the detector sees it, alone or beside others of the same shape.

        One that is longer than sixteen times its width is stretched to that, since nothing would be left of its width.
        """
        short, long = sorted(picture.size)
        if long > MOST_ELONGATED * short:
            longer = min(long, LONGEST)
            shorter = max(longer // MOST_ELONGATED, 1)
            picture = picture.resize((longer, shorter) if picture.width == long else (shorter, longer))
        pixels = torch.from_numpy(np.array(picture)).to(self.device).permute(2, 0, 1).contiguous().float() / 255
        images, _ = self.model.transform([pixels])
        return Scaled(name, images.tensors, images.image_sizes[0])

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Scaled]) -> list[Found]:
        """What is found in pictures of one shape, margins included.

        Raises:
            ExtractionError: scores or features are not finite; the message names the picture.
        """
        pixels = torch.cat([p.pixels for p in pictures]).contiguous(memory_format=torch.channels_last)
        images = ImageList(pixels, [p.size for p in pictures])
        maps = self.model.backbone(images.tensors)
        candidates = self._proposals(images, maps) if self.two_stage else self._anchors(images, maps)
        chosen = [self._chosen(own, p) for own, p in zip(candidates, pictures, strict=True)]
        if any(p.given is not None for p in pictures):
            chosen = self._with_given(chosen, pictures, maps, images)
        features: list[np.ndarray | None] = [None] * len(pictures)
        if self.feature_size is not None:
            heads = self.model.roi_heads
            boxes = [self._with_whole(own[0], p) for own, p in zip(chosen, pictures, strict=True)]
            rows = heads.box_head(heads.box_roi_pool(maps, boxes, images.image_sizes))
            parts = rows.cpu().split([len(own) for own in boxes])
            features = [_as_half(part, p.name) for part, p in zip(parts, pictures, strict=True)]
        return [self._found(*own, f, p) for own, f, p in zip(chosen, features, pictures, strict=True)]

    def _proposals(self, images: ImageList, maps: dict[str, Tensor]) -> list[_Candidates]:
        heads = self.model.roi_heads
        proposals, _ = self.model.rpn(images, maps)
        rows = heads.box_head(heads.box_roi_pool(maps, proposals, images.image_sizes))
        logits, deltas = heads.box_predictor(rows)
        counts = [len(own) for own in proposals]
        return [
            _of_proposals(scores, moved.view(len(own), -1, 4), own, heads.box_coder)
            for scores, moved, own in zip(logits.softmax(1).split(counts), deltas.split(counts), proposals, strict=True)
        ]

    def _anchors(self, images: ImageList, maps: dict[str, Tensor]) -> list[_Candidates]:
        levels = list(maps.values())
        out = self.model.head(levels)
        anchors = self.model.anchor_generator(images, levels)
        coder = self.model.box_coder
        decode = getattr(coder, "decode_single", coder.decode)  # FCOS's coder has the other name
        found = []
        for number, own in enumerate(anchors):
            logits, moved = out["cls_logits"][number], out["bbox_regression"][number]
            if isinstance(self.model, SSD):
                found.append(_of_anchors(logits.softmax(1), None, moved, own, decode))
                continue
            rank = logits.sigmoid()
            if "bbox_ctrness" in out:
                rank = (rank * out["bbox_ctrness"][number].sigmoid()).sqrt()
            found.append(_of_anchors(rank, logits, moved, own, decode))
        return found

    def _chosen(self, candidates: _Candidates, picture: Scaled) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes [n, 4] in pixels, classes [n], scores [n], distributions [n, C], the best first."""
        rank = candidates.rank
        if not bool(torch.isfinite(rank).all()):
            raise ExtractionError(f"{picture.name}: the detector's scores are not finite; are its weights damaged?")
        best, classes = rank[:, 1:].max(1) if len(rank) else (rank.new_zeros(0), rank.new_zeros(0, dtype=torch.int64))
        classes = classes + 1
        choice = self.choice
        for threshold, most in ((choice.threshold, choice.most), (-1.0, choice.least)):
            rows = (best > threshold).nonzero()[:, 0]
            if len(rows) > MOST_CANDIDATES:
                rows = rows[best[rows].topk(MOST_CANDIDATES).indices]
            boxes = clip_boxes_to_image(candidates.decode(rows, classes[rows]), picture.size)
            if not bool(torch.isfinite(boxes).all()):
                raise ExtractionError(f"{picture.name}: the detector's boxes are not finite; are its weights damaged?")
            kept = remove_small_boxes(boxes, SMALLEST)
            rows, boxes = rows[kept], boxes[kept]
            kept = batched_nms(boxes, best[rows], classes[rows], choice.nms)[:most]
            rows, boxes = rows[kept], boxes[kept]
            if len(rows) >= choice.least:
                break
        return boxes, classes[rows], best[rows], candidates.distribution(rows)

    def _with_given(
        self,
        chosen: list[tuple[Tensor, Tensor, Tensor, Tensor]],
        pictures: Sequence[Scaled],
        maps: dict[str, Tensor],
        images: ImageList,
    ) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """What was chosen, then the given boxes as the box head classifies them, without moving them."""
        heads, given = self.model.roi_heads, []
        for (boxes, *_), picture in zip(chosen, pictures, strict=True):
            height, width = picture.size
            own = np.zeros((0, 4), np.float32) if picture.given is None else picture.given
            given.append(boxes.new_tensor(own) * boxes.new_tensor([width, height, width, height]))
        logits, _ = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, given, images.image_sizes)))
        scores = logits.softmax(1).split([len(own) for own in given])
        for number, (found, boxes, own) in enumerate(zip(chosen, given, scores, strict=True)):
            if not bool(torch.isfinite(own).all()):
                raise ExtractionError(f"{pictures[number].name}: the detector's scores are not finite")
            best, classes = own[:, 1:].max(1)
            parts = (boxes, classes + 1, best, own)
            together = [torch.cat(pair) for pair in zip(found, parts, strict=True)]
            chosen[number] = (together[0], together[1], together[2], together[3])
        return chosen

    def _with_whole(self, boxes: Tensor, picture: Scaled) -> Tensor:
        height, width = picture.size
        return torch.cat([boxes.new_tensor([[0, 0, width, height]]), boxes])

    def _found(
        self,
        boxes: Tensor,
        classes: Tensor,
        confidences: Tensor,
        scores: Tensor,
        features: np.ndarray | None,
        picture: Scaled,
    ) -> Found:
        height, width = picture.size
        shares = (boxes.cpu() / torch.tensor([width, height, width, height])).clamp(0, 1).numpy().astype(np.float32)
        background = np.eye(1, scores.shape[1], dtype=np.float16)
        return Found(
            with_whole_image(shares),
            np.concatenate([[0], classes.cpu().numpy()]),
            np.concatenate([np.zeros(1, np.float32), confidences.cpu().numpy()]),
            np.concatenate([background, scores.cpu().numpy().astype(np.float16)]),
            features,
        )


def _of_proposals(scores: Tensor, deltas: Tensor, proposals: Tensor, coder: Any) -> _Candidates:
    def decode(rows: Tensor, classes: Tensor) -> Tensor:
        boxes: Tensor = coder.decode_single(deltas[rows, classes], proposals[rows])
        return boxes

    return _Candidates(scores, decode, lambda rows: scores[rows])


def _of_anchors(
    rank: Tensor, logits: Tensor | None, deltas: Tensor, anchors: Tensor, decode: Callable[[Tensor, Tensor], Tensor]
) -> _Candidates:
    """logits: of classes that are scored apart from one another, by sigmoids; None: `rank` is a distribution."""

    def distribution(rows: Tensor) -> Tensor:
        if logits is None:
            return rank[rows]
        # the sigmoids, divided by their sum; an anchor without an object has low scores and no background
        shares = F.logsigmoid(logits[rows, 1:]).softmax(1)
        return torch.cat([torch.zeros_like(shares[:, :1]), shares], 1)

    return _Candidates(rank, lambda rows, classes: decode(deltas[rows], anchors[rows]), distribution)


def _as_half(features: Tensor, name: str) -> np.ndarray:
    largest = float(features.abs().max())
    if not largest <= float(np.finfo(np.float16).max):  # NaN is not either
        raise ExtractionError(f"{name}: a feature of size {largest} does not fit float16; are the weights damaged?")
    return features.numpy().astype(np.float16)


def detected(
    pictures: Sequence[tuple[str, Image.Image]],
    detector: Detector,
    features_of: Callable[[Image.Image, np.ndarray], np.ndarray] | None = None,
) -> list[Found]:
    """What is found in named RGB pictures, as `with_detected` finds it in those of samples.

    Raises:
        ExtractionError: scores or features are not finite; the message names the picture.
    """
    found = _by_shape(detector, [detector.scaled(picture, name) for name, picture in pictures])
    if features_of is None:
        return found
    return [_featured(own, *picture, features_of) for own, picture in zip(found, pictures, strict=True)]


def _featured(
    found: Found, name: str, picture: Image.Image, features_of: Callable[[Image.Image, np.ndarray], np.ndarray]
) -> Found:
    try:
        return replace(found, features=features_of(picture, found.boxes))
    except ExtractionError as error:
        raise ExtractionError(f"{name}: {error}") from error


def _by_shape(detector: Detector, pictures: Sequence[Scaled]) -> list[Found]:
    """What is found in each, those of one shape together: a margin that a picture has beside a larger one would change
    what is seen at its edge.
    """
    groups: dict[torch.Size, list[int]] = {}
    for number, picture in enumerate(pictures):
        groups.setdefault(picture.pixels.shape, []).append(number)
    found: dict[int, Found] = {}
    for numbers in groups.values():
        for first in range(0, len(numbers), AT_ONCE):
            some = numbers[first : first + AT_ONCE]
            found.update(zip(some, detector([pictures[number] for number in some]), strict=True))
    return [found[number] for number in range(len(pictures))]


def with_detected(
    samples: Iterable[Sample],
    detector: Detector,
    class_names: Sequence[str],
    features_of: Callable[[Image.Image, np.ndarray], np.ndarray] | None = None,
    annotated: bool = False,
) -> Iterator[Sample]:
    """The samples with regions: the whole image, then what the detector finds, the best first.

    The facts `region_names` and `region_confidences` say what each region is called and how the detector scores it. A
    sample whose picture cannot be decoded gets no regions, and the fact `without_regions` says why.

    features_of: features of a picture's boxes, as a `RegionExtractor` gives them; None: those of the box head.
    annotated: whether the sample's annotated boxes become regions too, behind those, in their order; the detector is
        one that can classify them (`Detector.two_stage`).

    Raises:
        ExtractionError: scores or features are not finite, or a sample has no annotated boxes; the message names it.
    """
    waiting = iter(samples)
    while window := list(islice(waiting, WINDOW)):
        scaled: dict[int, Scaled] = {}
        for number, sample in enumerate(window):
            try:
                seen = detector.scaled(_picture(sample), f"sample {sample.key}")
                scaled[number] = replace(seen, given=annotated_boxes(sample)[0]) if annotated else seen
            except ImageError as error:
                window[number] = replace(sample, facts={**sample.facts, WITHOUT_REGIONS: str(error)})
        results = dict(zip(scaled, _by_shape(detector, list(scaled.values())), strict=True))
        for number, sample in enumerate(window):
            if number not in results:
                yield sample
                continue
            found = results[number]
            if features_of is not None:  # the picture is decoded again rather than kept, for it may be large
                found = _featured(found, f"sample {sample.key}", _picture(sample), features_of)
            names = [WHOLE_IMAGE, *(class_names[label] for label in found.classes[1:])]
            told = {"region_names": names, "region_confidences": found.confidences.astype(float).round(6).tolist()}
            yield replace(sample, regions=found.regions, facts={**sample.facts, **told})


def _picture(sample: Sample) -> Image.Image:
    if sample.image is None:
        raise ImageError("sample holds no picture")
    return decode_image(sample.image)
