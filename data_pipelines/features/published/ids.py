"""One name for an image, however published files spell its id."""

from __future__ import annotations

import re
from unicodedata import normalize

# of files, one behind the other as in 42.jpg.npz
ENDINGS = re.compile(r"(\.(jpe?g|png|webp|np[yz]|json))+$", re.IGNORECASE)
# a number, behind names of a data set and its parts: coco_val2014_000000000042, cc-000042; not dev-850-0-0
NUMBERED = re.compile(r"(?:[a-z][a-z0-9]*[-_])*0*([0-9]+)")


def stem_of(name: str) -> str:
    """A published name without folders and endings of files."""
    return ENDINGS.sub("", name.strip().rpartition("/")[2])


def canonical_id(name: str) -> str:
    """What all spellings of an image's id have in common.

    `COCO_val2014_000000000042`, `coco_val2014_000000000042.npz`, `val2014/COCO_val2014_000000000042.jpg` and `42` give
    `42`. Folders, endings of files, capitals, names of data sets before the last number and zeros before it go; an id
    of another form keeps all else. Accents that are signs of their own are those of letters with accents.
    """
    stem = normalize("NFC", stem_of(name)).lower()
    found = NUMBERED.fullmatch(stem)
    return found[1] if found else stem
