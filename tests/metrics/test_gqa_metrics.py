"""GQA's metrics beside numbers computed by hand, and beside the definitions written out over its files' entries."""

from __future__ import annotations

import random
from typing import Any

import pytest

from vlp.metrics.gqa import GqaAnswer, gqa_metrics

VALID = {"valid": ["yes", "no"], "plausible": ["yes"]}


def answered(key: str, said: str, truth: str, structural: str = "query", **details: Any) -> GqaAnswer:
    usual = {"semantic": "obj", "detailed": "x", "steps": 2, "words": 4, "group": None, "entailed": []}
    return GqaAnswer(key, said, truth, structural, {**usual, **VALID, **details})


def test_by_hand() -> None:
    found = gqa_metrics(
        [
            answered("1", "yes", "yes", "verify", entailed=["1", "2", "3"], semantic="attr", words=10),
            answered("2", "no", "no", "verify", entailed=["3"], steps=12),
            answered("3", "no", "yes", balanced=False),
            answered("4", "red", "blue", group="color", entailed=["3"]),
            answered("5", "blue", "blue", group="color"),
            answered("6", "shape", "color", detailed="twoCommon", group="other"),
        ]
    )
    assert found == {
        "balanced": 5,
        "accuracy": pytest.approx(3 / 5),
        "by_answer_type": {"binary": (1.0, 2), "open": (pytest.approx(1 / 3), 3)},
        "by_question_type": {"query": (pytest.approx(1 / 3), 3), "verify": (1.0, 2)},
        "by_semantic_type": {"attr": (1.0, 1), "obj": (0.5, 4)},
        "by_steps": {"2": (0.5, 4), "12": (1.0, 1)},
        "by_words": {"4": (0.5, 4), "10": (1.0, 1)},
        # yes, no, and a shape where the question is what two have in common
        "validity": pytest.approx(3 / 5),
        "plausibility": pytest.approx(2 / 5),
        # of 1 and 2, which are right: the half of 2 and 3, and none of 3; 4 is wrong, and 5 entails nothing
        "consistency": pytest.approx((0.5 + 0.0) / 2),
        # (1 - 2)^2 / 2 of the two questions of color, (0 - 1)^2 / 1 of the other
        "distribution": pytest.approx((2 * 0.5 + 1 * 1.0) / 3 / 100),
    }
    assert list(found["by_steps"]) == ["2", "12"], "in the order of the numbers"


def test_the_definitions_over_random_answers() -> None:
    """The benchmark's definitions, question by question."""
    rng = random.Random(4)
    words, groups = ["a", "b", "c", "color"], [None, "g", "h"]
    answers = []
    for n in range(200):
        entailed = [str(rng.randrange(200)) for _ in range(rng.randrange(4))]
        details = {
            "balanced": rng.random() < 0.7,
            "group": rng.choice(groups),
            "entailed": entailed,
            "detailed": rng.choice(["verify", "sameCommon"]),
            "valid": rng.sample(words, 2),
            "plausible": rng.sample(words, 1),
        }
        answers.append(
            answered(str(n), rng.choice(words), rng.choice(words), rng.choice(["query", "logical"]), **details)
        )
    found = gqa_metrics(answers)
    by_id = {one.identifier: one for one in answers}
    lists: dict[str, list[float]] = {name: [] for name in ("accuracy", "validity", "plausibility", "consistency")}
    for one in answers:
        if not one.details["balanced"]:
            continue
        right = one.prediction == one.answer
        lists["accuracy"].append(right)
        for measure, name in (("validity", "valid"), ("plausibility", "plausible")):
            group = ["color", "material", "shape"] if "Common" in one.details["detailed"] else one.details[name]
            lists[measure].append(one.prediction in group)
        others = [by_id[key] for key in one.details["entailed"] if key != one.identifier]
        if right and others:
            lists["consistency"].append(sum(other.prediction == other.answer for other in others) / len(others))
    assert all(lists.values())
    for name, own in lists.items():
        assert found[name] == pytest.approx(sum(own) / len(own)), name
    top = bottom = 0.0
    for group in ("g", "h"):
        own_group = [one for one in answers if one.details["balanced"] and one.details["group"] == group]
        chi = 0.0
        for word in {one.answer for one in own_group}:
            expected = sum(one.answer == word for one in own_group)
            chi += (sum(one.prediction == word for one in own_group) - expected) ** 2 / expected
        top, bottom = top + chi * len(own_group), bottom + len(own_group)
    assert found["distribution"] == pytest.approx(top / bottom / 100)
    assert "unmeasured" not in found


def test_what_is_not_known_is_said() -> None:
    bare = GqaAnswer("1", "yes", "yes", "verify", {"entailed": ["2"]})
    found = gqa_metrics([bare, answered("3", "no", "no")])
    assert found["accuracy"] == 1.0
    assert found.keys() == {"balanced", "accuracy", "by_answer_type", "by_question_type", "unmeasured"}
    assert found["unmeasured"].keys() == {
        *("by_semantic_type", "by_steps", "by_words", "validity", "plausibility", "consistency", "distribution")
    }
    assert found["unmeasured"]["consistency"].startswith("1 questions that others entail were not asked; it needs all")
    assert "--choices" in found["unmeasured"]["validity"]
    none = gqa_metrics([answered("1", "no", "yes", entailed=["2"]), answered("2", "no", "yes", balanced=False)])
    assert none["unmeasured"] == {
        "consistency": "no question that entails others was answered rightly",
        "distribution": "no question is of a group",
    }
    assert gqa_metrics([answered("1", "no", "no", balanced=False)]) == {"balanced": 0}
