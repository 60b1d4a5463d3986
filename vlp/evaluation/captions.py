"""Captions that a model wrote: COCO's metrics beside people's captions, and COCO's result file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

INSTALL = "pip install 'vlp[captions]'"


@dataclass(frozen=True)
class Captioned:
    """One image: its identifier, the caption that the model wrote, and those that people wrote."""

    identifier: int | str
    caption: str
    references: list[str]


def official_captions(captioned: Sequence[Captioned]) -> str:
    """The captions as COCO's server takes them: a JSON list of image_id and caption."""
    return json.dumps([{"image_id": one.identifier, "caption": one.caption} for one in captioned], ensure_ascii=False)


def caption_metrics(captioned: Sequence[Captioned]) -> dict[str, Any]:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D of images with captions by people.

    They are those of COCO's evaluation server (Chen et al. 2015), computed by pycocoevalcap. Texts are split into words
    by the Penn Treebank tokenizer, which needs Java; without Java a plain rule stands in for it (`tokenizer` says
    which), and the numbers compare with one another but not with published ones.

    Raises:
        ImportError: pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu  # only here, since it is an extra
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError as error:
        raise ImportError(f"the metrics of captions need pycocoevalcap: {INSTALL}") from error
    known = [one for one in captioned if any(map(str.strip, one.references))]
    found: dict[str, Any] = {"images": len(captioned), "known": len(known)}
    if not known:
        return found
    # a line break would shift the captions after it, since the tokenizer is given one a line
    written = {n: [" ".join(one.caption.split())] for n, one in enumerate(known)}
    by_people = {n: [" ".join(text.split()) for text in one.references if text.strip()] for n, one in enumerate(known)}
    if shutil.which("java") is not None:
        found["tokenizer"] = "Penn Treebank"
        written, by_people = (PTBTokenizer().tokenize(_as_entries(texts)) for texts in (written, by_people))
    else:
        found["tokenizer"] = "plain words, since there is no Java: not comparable with published numbers"
        written, by_people = ({n: [*map(plain_words, own)] for n, own in t.items()} for t in (written, by_people))
    bleu, _ = Bleu(4).compute_score(by_people, written, verbose=0)
    found |= {f"BLEU-{n}": float(score) for n, score in enumerate(bleu, 1)}
    found["ROUGE-L"] = float(Rouge().compute_score(by_people, written)[0])
    found["CIDEr"] = float(Cider().compute_score(by_people, written)[0])
    return found


def _as_entries(texts: dict[int, list[str]]) -> dict[int, list[dict[str, str]]]:
    return {number: [{"caption": text} for text in own] for number, own in texts.items()}


def plain_words(text: str) -> str:
    """Words in lower case with single blanks between them, without punctuation."""
    return " ".join(re.findall(r"\w+(?:['-]\w+)*", text.lower()))
