"""Which objects a caption has to name, and by what words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vlp.interfaces import Tokenizer
from vlp.metrics.boxes import overlaps
from vlp.strict_yaml import ConfigError
from vlp.writing.constrained import Constraint

SAME = 0.85  # regions that overlap by more are of one thing


def objects_of(scores: Tensor, boxes: Tensor, class_names: Sequence[str], unnamed: Sequence[str]) -> list[str]:
    """The names of an image's objects, each once, the surest first.

    Those in `unnamed` are left out, as people don't say them, or they say too little; so is a region that shows what a
    surer one shows. Source: Oscar, oscar/utils/cbs.py (ConstraintFilter, after nocaps' baseline), where of two such
    regions the less general name in Open Images' hierarchy stays; without a hierarchy it is the surer one here.

    Args:
        scores: float [R, C], a distribution over classes, the first of which is no object.
        boxes: float [R, 4], corners.
        class_names: of the C classes.
    """
    sureness, label = scores.max(1)
    kept: list[int] = []
    for region in sureness.argsort(descending=True, stable=True).tolist():
        name = class_names[int(label[region])]
        if int(label[region]) == 0 or name in unnamed:
            continue
        if not kept or float(overlaps(boxes[region], boxes[kept]).max()) <= SAME:
            kept.append(region)
    return list(dict.fromkeys(class_names[int(label[region])] for region in kept))


def plural(name: str) -> str:
    """Several of what a name says, by the rules of English that have no exceptions to know."""
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    if name.endswith("y") and name[-2:-1] not in tuple("aeiou"):
        return f"{name[:-1]}ies"
    return f"{name}s"


def constraints_of(names: Sequence[str], tokenizer: Tokenizer) -> list[Constraint]:
    """For each object, the tokens of its name and of its plural, where these can be written.

    Raises:
        ConfigError: a name can't be written by this tokenizer.
    """
    words, found = set(tokenizer.word_ids), list[Constraint]()
    for name in names:
        forms = [tokens.ids for tokens in tokenizer.encode([name, plural(name)])]
        own = [ids for ids in forms if ids and words.issuperset(ids)]
        if not own:
            raise ConfigError(
                f"the tokenizer {tokenizer.path} can't write the object {name!r}; leave it out: --unnamed {name!r}"
            )
        found.append(own)
    return found
