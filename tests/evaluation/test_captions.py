"""Metrics of captions: hand-computed cases, and what each way of splitting words gives."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest

from vlp.evaluation import captions
from vlp.evaluation.captions import Captioned, caption_metrics, official_captions, plain_words

LIBRARY = find_spec("pycocoevalcap") is not None
needs_library = pytest.mark.skipif(not LIBRARY, reason="pycocoevalcap is not installed")

WRITTEN = [
    Captioned(7, "A dog runs.", ["a dog runs on grass", "the dog, running"]),
    Captioned("b", "two\ncats", ["Two cats"]),
    Captioned(9, "no one has described this", []),
]


def test_the_official_file() -> None:
    assert json.loads(official_captions(WRITTEN[:2])) == [
        {"image_id": 7, "caption": "A dog runs."},
        {"image_id": "b", "caption": "two\ncats"},
    ]


def test_plain_words() -> None:
    assert plain_words(" A man's T-shirt, (red) --  and Bücher. ") == "a man's t-shirt red and bücher"
    assert plain_words("...") == ""


@needs_library
@pytest.mark.parametrize("java", [False, True])
def test_metrics(java: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if java and shutil.which("java") is None:
        pytest.skip("there is no Java")
    if not java:
        monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    found = caption_metrics(WRITTEN)
    assert (found["images"], found["known"]) == (3, 2)
    assert ("not comparable" in found["tokenizer"]) == (not java)
    # all words and pairs of words are in the references, of which the closest have 3 and 2 words
    assert found["BLEU-1"] == pytest.approx(1.0, abs=1e-6)
    assert found["BLEU-2"] == pytest.approx(1.0, abs=1e-6)
    # ROUGE-L with beta 1.2: the first has precision 3/3 and recall 3/5 at best, the second is perfect
    first = (1 + 1.2**2) * 3 / 5 / (3 / 5 + 1.2**2)
    assert found["ROUGE-L"] == pytest.approx((first + 1.0) / 2, abs=1e-6)


@needs_library
def test_the_same_caption_is_worth_ten() -> None:
    """CIDEr-D of the only reference itself, of four words or more, none of which another image has."""
    one = Captioned(1, "a small red circle", ["a small red circle"])
    other = Captioned(2, "the tall green tree", ["some old house by water"])
    assert caption_metrics([one, other])["CIDEr"] == pytest.approx(10.0 / 2)


def test_nothing_known() -> None:
    if not LIBRARY:
        with pytest.raises(ImportError, match="vlp\\[captions\\]"):
            caption_metrics(WRITTEN)
    else:
        assert caption_metrics(WRITTEN[2:]) == {"images": 1, "known": 0}
