"""Captions of scenes in Chinese: how a meaning is said, and how a caption is read."""

from __future__ import annotations

import re

from data_pipelines.scenes.language import Entity, Meaning, Words

Names = dict[str, tuple[str, ...]]

NUMBERS = {1: "一个", 2: "两个", 3: "三个", 4: "四个", 5: "五个"}
SIZES: Names = {"small": ("小的", "小小的"), "large": ("大的", "很大的")}
TEXTURES: Names = {"plain": ("纯色的",), "striped": ("带条纹的", "条纹的"), "dotted": ("带圆点的", "带斑点的")}
COLOURS: Names = {
    "red": ("红色的", "红色"),
    "blue": ("蓝色的", "蓝色"),
    "green": ("绿色的", "绿色"),
    "yellow": ("黄色的", "黄色"),
    "purple": ("紫色的", "紫色"),
    "orange": ("橙色的", "橙色"),
    "white": ("白色的", "白色"),
    "black": ("黑色的", "黑色"),
}
SHAPES: Names = {
    "circle": ("圆形", "圆"),
    "square": ("正方形", "方块"),
    "triangle": ("三角形",),
    "diamond": ("菱形",),
    "cross": ("十字", "十字形"),
    "ring": ("圆环", "环"),
    "bar": ("长条",),
}
SIDES: Names = {
    "left of": ("左边", "左侧"),
    "right of": ("右边", "右侧"),
    "above": ("上面", "上方"),
    "below": ("下面", "下方"),
}
GENERAL = ("图形", "物体", "东西")
OPENINGS = ("", "", "", "这里有", "图中有", "我看到", "画面上有")
JOINS = ("，还有", "和")


def say(meaning: Meaning, words: Words) -> str:
    """One sentence: chains of related entities. 甲在乙的左边，后者在丙的上面; turned round: 乙的左边有甲."""
    text = words.pick(OPENINGS)
    related_to = {a: (side, b) for a, side, b in meaning.relations}
    chains: list[str] = []
    place = 0
    while place < len(meaning.entities):
        chain = _phrase(meaning.entities[place], words)
        if place in related_to and place + 1 not in related_to and words.draw() < 0.3:
            side, other = related_to[place]
            chains.append(f"{_phrase(meaning.entities[other], words)}的{words.pick(SIDES[side])}有{chain}")
            place += 2
            continue
        first = place
        while place in related_to:
            side, other = related_to[place]
            link = "在" if place == first else "，后者在"
            chain += f"{link}{_phrase(meaning.entities[other], words)}的{words.pick(SIDES[side])}"
            place = other
        chains.append(chain)
        place += 1
    if re.search(r"的..有", chains[0]):  # turned round, it reads badly after an opening
        text = ""
    if len(chains) == 1:
        return text + chains[0]
    return text + "，".join(chains[:-1]) + words.pick(JOINS) + chains[-1]


def _phrase(e: Entity, words: Words) -> str:
    told = [
        words.pick(table[value])
        for table, value in ((SIZES, e.size), (TEXTURES, e.texture), (COLOURS, e.colour))
        if value is not None
    ]
    noun = words.pick(GENERAL) if e.shape is None else words.pick(SHAPES[e.shape])
    return "".join([NUMBERS[e.count], *told, noun])


def _any(name: str, table: Names) -> str:
    """A group of a regular expression: any of the words of a table, the longest first."""
    words = sorted((word for own in table.values() for word in own), key=len, reverse=True)
    return f"(?P<{name}>{'|'.join(words)})"


PHRASE = re.compile(
    f"(?P<count>{'|'.join(NUMBERS.values())}){_any('size', SIZES)}?{_any('texture', TEXTURES)}?"
    f"{_any('colour', COLOURS)}?({_any('shape', SHAPES)}|{'|'.join(GENERAL)})"
)
SIDE = re.compile(f"的{_any('side', SIDES)}")
COUNTS = {word: number for number, word in NUMBERS.items()}
TABLES: dict[str, Names] = {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}


def _name(table: Names, word: str | None) -> str | None:
    return None if word is None else next(name for name, own in table.items() if word in own)


def read(text: str) -> Meaning:
    """What a caption claims; blanks between its signs count for nothing. See `reading.read_caption`."""
    text = "".join(text.split())
    found = [*PHRASE.finditer(text)]
    entities = [
        Entity(**{kind: _name(table, p[kind]) for kind, table in TABLES.items()}, count=COUNTS[p["count"]])
        for p in found
    ]
    relations: list[tuple[int, str, int]] = []
    for number in range(1, len(found)):
        between = text[found[number - 1].end() : found[number].start()]
        side_before, side_after = SIDE.match(between), SIDE.match(text, found[number].end())
        if side_before is not None and between.endswith("有") and side_before.end() == len(between) - 1:
            relations.append((number, str(_name(SIDES, side_before["side"])), number - 1))
        elif side_after is not None and (between == "在" or between.endswith("，后者在")):
            relations.append((number - 1, str(_name(SIDES, side_after["side"])), number))
    return Meaning(tuple(entities), tuple(relations))


def signs() -> list[str]:
    """Every sign of the captions."""
    tables = (SIZES, TEXTURES, COLOURS, SHAPES, SIDES)
    words = [word for table in tables for own in table.values() for word in own]
    return sorted({*"".join([*words, *NUMBERS.values(), *GENERAL, *OPENINGS, *JOINS, "的在有，后者"])})
