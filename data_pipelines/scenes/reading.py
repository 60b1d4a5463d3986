"""What a caption that somebody wrote claims of a scene, and how much of it is true."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from data_pipelines.scenes import chinese
from data_pipelines.scenes.language import SYNONYMS, Meaning, holds
from data_pipelines.scenes.objects import RELATIONS, Scene, SceneObject
from data_pipelines.scenes.references import phrases

SIDES = {word: name for name in RELATIONS for word in SYNONYMS[name]}


def scene_of(facts: dict[str, Any]) -> Scene:
    """The scene of a sample, given what its JSON says of its `objects`."""
    return Scene(tuple(SceneObject(**o) for o in facts["objects"]))


def read_caption(text: str, language: str = "en") -> Meaning:
    """What a caption claims: phrases that name objects, and relations between those that stand side by side.

    A relation that begins a clause turns it round: left of a blue square there is a red circle. What is no phrase and
    no relation claims nothing.
    """
    if language == "zh":
        return chinese.read(text)
    words = text.split()
    named = phrases(text)
    relations: list[tuple[int, str, int]] = []
    end, turned = 0, ""  # of the phrase before, and the relation that began its clause
    for number, phrase in enumerate(named):
        between = " ".join(words[end : phrase.first - 1])
        clause = re.split(r",| and\b|^and\b", between)[-1].strip()
        begins = number == 0 or clause != between.strip() or (end > 0 and words[end - 1].endswith(","))
        side = next((SIDES[word] for word in sorted(SIDES, key=len, reverse=True) if clause.endswith(word)), "")
        if turned and not begins:
            relations.append((number, turned, number - 1))
        elif side and not begins:
            relations.append((number - 1, side, number))
        turned = side if begins else ""
        end = phrase.last + 1
    return Meaning(tuple(phrase.entity for phrase in named), tuple(relations))


@dataclass(frozen=True)
class Truthfulness:
    """How many captions of scenes are true in all that they claim, and how many of their `entities` and `relations`.

    An entity is true if such an object is there (or exactly so many); a relation, if two such objects are there that
    stand so. A caption that names nothing is not true.
    """

    captions: int
    true_captions: int
    entities: int
    true_entities: int
    relations: int
    true_relations: int

    def shares(self) -> dict[str, float]:
        """The three shares, 0 to 1; of nothing, 0."""
        counts = {
            "captions": (self.true_captions, self.captions),
            "entities": (self.true_entities, self.entities),
            "relations": (self.true_relations, self.relations),
        }
        return {name: true / max(count, 1) for name, (true, count) in counts.items()}


def truthfulness(texts: Iterable[tuple[str, Scene]], language: str = "en") -> Truthfulness:
    """Of captions, each of a scene."""
    counts = [0] * 6
    for text, scene in texts:
        meaning = read_caption(text, language)
        own = [holds(Meaning((entity,)), scene) for entity in meaning.entities]
        both = [
            holds(Meaning((meaning.entities[a], meaning.entities[b]), ((0, relation, 1),)), scene)
            for a, relation, b in meaning.relations
        ]
        true = bool(own) and holds(meaning, scene)
        for place, more in enumerate((1, true, len(own), sum(own), len(both), sum(both))):
            counts[place] += more
    return Truthfulness(*counts)
