"""Captions and facts of a sample, out of its members: `KEY.json`, and in other tools' tars `KEY.txt` too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeGuard

MOST_CHARACTERS = 16_384  # of another tool's caption; a megabyte takes a tokenizer seconds, and models see 512 at most


MOST_CAPTIONS = 1_000  # of a sample of another tool
EMPTY = "caption is empty"


@dataclass(frozen=True)
class CaptionPlace:
    """Where other tools' tars have their captions. `keys`: of the `.json`, each with a text or a list of texts, and no
    `.txt` is read; none: the `.txt`, or where that is missing or empty the key `caption`. `lines`: each line of a
    `.txt` is a caption, as in CLIP_benchmark's tars for retrieval.
    """

    keys: tuple[str, ...] = ()
    lines: bool = False


USUAL = CaptionPlace()


class FactsError(ValueError):
    """A sample has no usable captions; the message is a short phrase to count by."""


def is_unicode(value: object) -> TypeGuard[str]:
    """Whether a value is a text without half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def listed(facts: dict[str, Any], name: str) -> list[Any]:
    """A fact if it is a list, else an empty one."""
    found = facts.get(name)
    return found if isinstance(found, list) else []


def texts_listed(facts: dict[str, Any], name: str) -> list[str]:
    """A fact if it is a list of texts, else an empty one."""
    found = listed(facts, name)
    return found if all(isinstance(text, str) for text in found) else []


def own_facts(json_data: bytes | None) -> dict[str, Any]:
    """The facts of a sample of ours, `captions` among them.

    Raises:
        FactsError: the JSON is damaged, has no list of captions, or holds half of a surrogate pair.
    """
    try:
        text = (json_data or b"").decode()  # json itself would take halves of pairs, and other encodings
        facts: dict[str, Any] = json.loads(text)
        if not isinstance(facts["captions"], list):
            raise TypeError("captions")
        for caption in facts["captions"]:
            caption.encode()  # text, and no half of a surrogate pair, which no tokenizer takes
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FactsError("JSON without a list of captions") from error
    if "\\ud" in text.lower():  # only what is escaped can be half a pair
        try:
            json.dumps(facts, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise FactsError("JSON with a text that is not valid Unicode (half a pair)") from error
    return facts


def facts_of_tars(json_data: bytes | None, txt_data: bytes | None, place: CaptionPlace = USUAL) -> dict[str, Any]:
    """The facts of a sample as img2dataset and others write it, `captions` among them.

    Where `.txt` and `.json` both have a caption, the `.txt` is taken, as open_clip does. Other facts are the plain
    values of the `.json`: lists and objects are left out, since some names (`boxes`, `questions`) mean something here
    that another tool's need not. White space around a caption goes, and what comes after its first 16,384 characters.

    Args:
        json_data, txt_data: bytes of the two members, None where there is none.
        place: where the captions are.

    Raises:
        FactsError: there is no caption, all are empty (nothing of them can be printed), there are more than 1,000, or
            one is not Unicode.
    """
    facts = {} if json_data is None else read_object(json_data)
    captions: list[str] | None = None
    if txt_data is not None and not place.keys:
        captions = captions_of_txt(txt_data, place)
    if not captions:
        of_json = captions_of_object(facts, place)
        captions = captions if of_json is None else of_json
    if captions is None:
        raise FactsError("no caption")
    if not captions:
        raise FactsError(EMPTY)
    plain = {k: v for k, v in facts.items() if is_unicode(k) and (is_unicode(v) or isinstance(v, (int, float)))}
    return {**plain, "captions": captions}


def captions_of_txt(data: bytes, place: CaptionPlace = USUAL) -> list[str]:
    """The captions of a `.txt`, without empty ones.

    Raises:
        FactsError: it is not UTF-8, or has too many.
    """
    try:
        text = data.decode("utf-8-sig")  # a byte order mark is some editors' habit
    except UnicodeDecodeError as error:
        raise FactsError("caption is not UTF-8") from error
    return _captions(text.split("\n") if place.lines else [text])


def captions_of_object(facts: dict[str, Any], place: CaptionPlace = USUAL) -> list[str] | None:
    """The captions of a `.json`, without empty ones; None if none of the keys has a text or a list of texts.

    Raises:
        FactsError: one is not Unicode, or there are too many.
    """
    values = [facts.get(key) for key in place.keys or ("caption",)]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    if not any(isinstance(text, str) for text in texts):
        return None
    return _captions([text for text in texts if isinstance(text, str)])


def _captions(texts: list[str]) -> list[str]:
    """Texts as captions, without those of which nothing can be printed."""
    captions = [text.strip()[:MOST_CHARACTERS] for text in texts]
    if not all(map(is_unicode, captions)):
        raise FactsError("caption is not Unicode")  # half of a surrogate pair, which JSON can hold
    captions = [text for text in captions if any(c.isprintable() and c != " " for c in text)]
    if len(captions) > MOST_CAPTIONS:
        raise FactsError(f"more than {MOST_CAPTIONS} captions")
    return captions


def read_object(data: bytes) -> dict[str, Any]:
    """The object that a `.json` holds.

    Raises:
        FactsError: it holds none.
    """
    try:
        facts = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FactsError("JSON is damaged") from error
    if not isinstance(facts, dict):
        raise FactsError("JSON is damaged")
    return facts
