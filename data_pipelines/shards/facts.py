"""Captions and facts of a sample, out of its members: `KEY.json`, and in other tools' tars `KEY.txt` too."""

from __future__ import annotations

import json
from typing import Any, TypeGuard

MOST_CHARACTERS = 16_384  # of another tool's caption; a megabyte takes a tokenizer seconds, and models see 512 at most


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


def facts_of_tars(json_data: bytes | None, txt_data: bytes | None) -> dict[str, Any]:
    """The facts of a sample as img2dataset and others write it, `captions` among them, a list of one.

    The caption is the `.txt`, or without one the key `caption` of the `.json`; where both are there, the `.txt`, as
    open_clip takes it. Other facts are the plain values of the `.json`: lists and objects are left out, since some
    names (`boxes`, `questions`) mean something here that another tool's need not. White space around a caption
    goes, and what comes after its first 16,384 characters.

    Args:
        json_data, txt_data: bytes of the two members, None where there is none.

    Raises:
        FactsError: there is no caption, it is empty (nothing of it can be printed), or it is not Unicode.
    """
    facts = {} if json_data is None else _read_json(json_data)
    if txt_data is not None:
        caption = _read_txt(txt_data)
    elif isinstance(facts.get("caption"), str):
        caption = facts["caption"]
    else:
        raise FactsError("no caption")
    caption = caption.strip()[:MOST_CHARACTERS]
    if any("\ud800" <= character <= "\udfff" for character in caption):
        raise FactsError("caption is not Unicode")  # half of a surrogate pair, which JSON can hold
    if not any(character.isprintable() and character != " " for character in caption):
        raise FactsError("caption is empty")
    return {**{k: v for k, v in facts.items() if isinstance(v, (str, int, float))}, "captions": [caption]}


def _read_txt(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")  # a byte order mark is some editors' habit
    except UnicodeDecodeError as error:
        raise FactsError("caption is not UTF-8") from error


def _read_json(data: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FactsError("JSON is damaged") from error
    if not isinstance(facts, dict):
        raise FactsError("JSON is damaged")
    return facts
