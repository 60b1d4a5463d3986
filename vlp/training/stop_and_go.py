"""Dynamic stop-and-go: the groups of a mix rest when they don't improve, and go on when they forget."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from vlp.build import Group
from vlp.config import ConfigError, StopAndGoConfig, ratio_for


class Steered(Protocol):
    """The plan of a run, which says what source each step has (`data_pipelines.plan.Plan`)."""

    def go_on(self, step: int, stopped: Collection[str]) -> None:
        """From a step (counted from 0) on, the sources of these names are stopped and all others are not."""

    def state_dict(self) -> dict[str, Any]:
        """What a plan has to remember, in plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


@dataclass
class Monitor:
    """Whether one group rests. `best`: its best accuracy, -1 before the first. `bad`: validations in a row without
    gain. `cooldown`: validations in which nothing is held against it. `stopped`: it rests.
    """

    best: float = -1.0
    bad: int = 0
    cooldown: int = 0
    stopped: bool = False

    def judge(self, accuracy: float, config: StopAndGoConfig) -> None:
        """Take the accuracy of a validation into account.

        Source: 12-in-1 (Lu et al. 2020), section 3.3; vilbert/task_utils.py, which counts validations without gain of
        a group that rests too, and so may miss one in which it should go on.
        """
        gained = self.best < 0 or accuracy > self.best * (1 + config.least_gain)
        if gained:
            self.best = accuracy
        if self.stopped:
            if accuracy < self.best * (1 - config.resume_drop):
                self.stopped, self.cooldown = False, config.cooldown
            return
        self.bad = 0 if gained or self.cooldown else self.bad + 1
        self.cooldown = max(self.cooldown - 1, 0)
        if self.bad > config.patience:
            self.stopped, self.bad = True, 0


class StopAndGo:
    """Decides after each validation which sources of a plan are stopped.

    Args:
        config: patience and shares.
        groups: each must name the sources that it is drawn for, and share none.
        sources: names of the plan's sources.
        plan: what is steered.

    Raises:
        ConfigError: a group's sources are not its own.
    """

    def __init__(self, config: StopAndGoConfig, groups: list[Group], sources: list[str], plan: Steered):
        self.config, self.plan = config, plan
        self.sources = {
            group.name: [name for name in sources if ratio_for(group.sampling_ratio, name) > 0] for group in groups
        }
        for source in sources:
            owners = [name for name, own in self.sources.items() if source in own]
            if len(owners) != 1:
                raise ConfigError(
                    f"stop_and_go: the source {source} belongs to the groups {', '.join(owners) or 'none'}, but has to"
                    " belong to one; name each group's own sources: sampling_ratio: {SOURCE: 1}"
                )
        self.monitors = {group.name: Monitor() for group in groups}

    def validated(self, step: int, row: Mapping[str, Any]) -> list[str]:
        """Decide by the row of a validation after `step` steps; returns the groups that rest from now on.

        Raises:
            ConfigError: a group reports no accuracy.
        """
        for name, monitor in self.monitors.items():
            found = [v for key, v in row.items() if key.startswith(f"val/{name}/") and key.endswith("accuracy")]
            if not found:
                raise ConfigError(f"stop_and_go: no objective of the group {name} reports an accuracy to judge it by")
            monitor.judge(sum(found) / len(found), self.config)
        stopped = [name for name, monitor in self.monitors.items() if monitor.stopped]
        self.plan.go_on(step, {source for name in stopped for source in self.sources[name]})
        return stopped

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain values."""
        return {
            "plan": self.plan.state_dict(),
            "monitors": {name: asdict(monitor) for name, monitor in self.monitors.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; a group that it does not know begins anew."""
        self.plan.load_state_dict(state["plan"])
        for name, values in state["monitors"].items():
            if name in self.monitors:
                self.monitors[name] = Monitor(**values)
