"""When the tasks of a mix rest and go on."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from vlp.build import Group
from vlp.config import ConfigError, StopAndGoConfig
from vlp.training.stop_and_go import Monitor, StopAndGo

CONFIG = StopAndGoConfig()


class Recorded:
    """A plan that only remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, set[str]]] = []

    def go_on(self, step: int, stopped: Collection[str]) -> None:
        self.told.append((step, set(stopped)))

    def state_dict(self) -> dict:
        return {"told": len(self.told)}

    def load_state_dict(self, state: dict) -> None:
        self.loaded = state


def run(accuracies: list[float], config: StopAndGoConfig = CONFIG) -> list[bool]:
    monitor = Monitor()
    rests = []
    for accuracy in accuracies:
        monitor.judge(accuracy, config)
        rests.append(monitor.stopped)
    return rests


@pytest.mark.parametrize(
    ("accuracies", "rests"),
    [
        ([0.5, 0.6, 0.7, 0.8], [False] * 4),
        # less than 0.1 % above the best in two validations, one more than the patience
        ([0.5, 0.5, 0.5004], [False, False, True]),
        ([0.5, 0.5, 0.5006, 0.5, 0.5], [False, False, False, False, True]),
        # it rests until it is 0.5 % below its best
        ([0.5, 0.5, 0.5, 0.499, 0.4976, 0.4974], [False, False, True, True, True, False]),
        # after going on one validation is not held against it: two more are, beginning with the next but one
        ([0.5, 0.5, 0.5, 0.4, 0.4, 0.4, 0.4], [False, False, True, False, False, False, True]),
    ],
)
def test_rests_and_goes_on(accuracies: list[float], rests: list[bool]) -> None:
    assert run(accuracies) == rests


def test_patience_and_cooldown() -> None:
    assert run([0.5] * 5, StopAndGoConfig(patience=3)) == [False] * 4 + [True]
    lenient = StopAndGoConfig(patience=0, cooldown=3)
    assert run([0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1], lenient) == [False, True, *[False] * 4, True]


def groups(**sources: dict[str, float] | float) -> list[Group]:
    return [Group(name, ratio, {name: 1.0}) for name, ratio in sources.items()]


def test_the_plan_is_told_after_each_validation() -> None:
    plan = Recorded()
    made = StopAndGo(CONFIG, groups(vqa={"a": 1, "b": 2}, nlvr2={"c": 1}), ["a", "b", "c"], plan)
    rows = [(0.5, 0.5), (0.5, 0.6), (0.5, 0.7), (0.1, 0.8)]
    rests = []
    for step, (vqa, nlvr2) in enumerate(rows, 1):
        row = {"val/vqa/answer_accuracy": vqa, "val/nlvr2/answer_accuracy": nlvr2, "val_loss/vqa": 9.0}
        rests.append(made.validated(10 * step, row))
    assert rests == [[], [], ["vqa"], []]
    assert plan.told == [(10, set()), (20, set()), (30, {"a", "b"}), (40, set())]
    other = StopAndGo(CONFIG, groups(vqa={"a": 1, "b": 2}, nlvr2={"c": 1}), ["a", "b", "c"], Recorded())
    other.load_state_dict(made.state_dict())
    assert other.monitors == made.monitors
    assert other.plan.loaded == {"told": 4}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no objective of the group vqa reports an accuracy"):
        made.validated(50, {"val/vqa/loss": 1.0, "val/nlvr2/answer_accuracy": 0.5})


@pytest.mark.parametrize(
    ("made", "owners"),
    [(groups(vqa={"a": 1}, nlvr2={"a": 1, "b": 1}), "a belongs to the groups vqa, nlvr2"),
     (groups(vqa=1.0, nlvr2={"b": 1}), "b belongs to the groups vqa, nlvr2"),
     (groups(vqa={"a": 1, "b": 0}), "b belongs to the groups none")],
)  # fmt: skip
def test_each_source_belongs_to_one_group(made: list[Group], owners: str) -> None:
    with pytest.raises(ConfigError, match=owners):
        StopAndGo(CONFIG, made, ["a", "b"], Recorded())
