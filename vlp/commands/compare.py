"""Train and compare systems on tasks.

A study is systems x tasks x seeds (`StudyConfig`; an example is studies/pretraining_helps). Every cell is a run of
`vlp train` with its overrides and seed, then an evaluation by `vlp evaluate` or `vlp retrieve`. Prints mean and spread
over the seeds, and writes them to table.md, table.json and table.png in the study's folder. Cells that are there are
not run again, one that was cut off goes on from its last checkpoint, and one that fails is told and leaves the others
alone. Overrides of the command line apply to all cells, after the study's own. What could not be looked at, in whatever
cell, is counted below the table. Exit code 1 if a cell failed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import statistics
import traceback
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import matplotlib

matplotlib.use("Agg")  # a file is written; no display is needed
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from vlp.checkpoints.load import write_atomically
from vlp.commands import evaluate, retrieve
from vlp.commands.command import GO_ON, can_be_mended, open_console, options_of, run_command
from vlp.commands.learn import Stopped, finished_run
from vlp.config import ConfigError, RunConfig, dump_config, load_config, read_yaml
from vlp.convert import convert, unknown_key
from vlp.run_folder import weights_file
from vlp.shipped import config_file

EVALUATIONS = {"answers": evaluate, "retrieval": retrieve}


@dataclass
class TaskConfig:
    """What is trained and measured. `evaluate` picks the command, `options` are its own (`split`, `gallery` ...).

    `metric`: a number of its report, between 0 and 1, by the keys that lead to it (`accuracy`,
    `model.text_to_image.recall_at_1`); it is shown in percent. `references`: other numbers of the report, which depend
    on the data alone (`chance.text_to_image.recall_at_1`), by the names of their rows in the table.
    """

    name: str
    config: str
    metric: str
    evaluate: Literal["answers", "retrieval"] = "answers"
    options: dict[str, str] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)


@dataclass
class SystemConfig:
    """What is compared: overrides of every task's configuration. `by_task`: in their place, for the tasks named.

    `tasks`: those that it is trained on, if not all.
    """

    name: str
    overrides: list[str] = field(default_factory=list)
    by_task: dict[str, list[str]] = field(default_factory=dict)
    tasks: list[str] | None = None


@dataclass
class StudyConfig:
    """A study. `out`: its folder. `overrides`: of every cell, before those of its task and then of its system."""

    name: str
    out: str
    seeds: list[int]
    tasks: list[TaskConfig]
    systems: list[SystemConfig]
    overrides: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[str]:
        """Names of the table's rows: systems, then references, each once."""
        references = dict.fromkeys(name for task in self.tasks for name in task.references)
        return [*(system.name for system in self.systems), *references]


@dataclass(frozen=True)
class Cell:
    """One run: a system on a task with a seed. `record`: where its settings and result are kept."""

    task: TaskConfig
    system: SystemConfig
    seed: int
    config: RunConfig
    record: Path

    def settings(self) -> dict[str, Any]:
        """All that the result depends on, but for the data, which the run's own folder remembers.

        Raises:
            ConfigError: the weights that the run begins with are not there.
        """
        init = self.config.init
        digest = None
        if init is not None:
            weights = weights_file(Path(init.path))
            if not weights.is_file():
                raise ConfigError(f"init.path: there are no weights {weights} to begin with; train that run first")
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        told = dump_config(replace(self.config, run_dir="")).splitlines()
        measured: dict[str, Any] = {"evaluate": self.task.evaluate, "options": self.task.options}
        measured["metric"] = self.task.metric
        if self.task.references:
            measured["references"] = self.task.references
        return {"config": told, "init_sha256": digest, **measured}

    def recorded(self) -> dict[str, Any] | None:
        """The record, if there is one.

        Raises:
            ConfigError: it is of other settings.
        """
        if not self.record.is_file():
            return None
        try:
            record: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
            settings = record["settings"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{self.record} is no record of a comparison ({error}); remove it") from error
        then, now = (json.dumps(own, indent=1).splitlines() for own in (settings, self.settings()))
        if then != now:
            lines = [
                line for line in difflib.unified_diff(then, now, "then", "now", n=0, lineterm="") if line[0] in "+-"
            ]
            raise ConfigError(
                f"{self.record} is of other settings; choose another folder (--out DIR), or remove it with"
                f" {self.config.run_dir}, for these:\n" + "\n".join(lines[2:14])
            )
        return record

    def run(self, console: Console) -> None:
        """Train, evaluate and keep the result.

        Raises:
            ConfigError: settings that don't fit, or a report without the metric. Stopped: a signal stopped the run.
        """
        record = {"settings": self.settings(), "result": None}
        self.record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.record, json.dumps(record, indent=1).encode())
        every = [f.name for f in fields(RunConfig) if f.name != "run_dir"]
        folder = finished_run(self.config, every, console)
        tool = cast(Any, EVALUATIONS[self.task.evaluate])
        given = [str(folder.path), *(f"--{k.replace('_', '-')}={v}" for k, v in self.task.options.items())]
        report = tool.evaluate(tool.read_arguments(given), console)
        result: dict[str, Any] = {"value": number_in(report, self.task.metric), "steps": self.config.trainer.max_steps}
        result["fingerprint"] = report["fingerprint"]
        result["left_out"] = left_out_of(report)
        if self.task.references:
            result["references"] = {name: number_in(report, path) for name, path in self.task.references.items()}
        write_atomically(self.record, json.dumps({**record, "result": result}, indent=1).encode())


def number_in(report: dict[str, Any], path: str) -> float:
    """The number of a report to which keys lead, joined by dots.

    Raises:
        ConfigError: they lead to none.
    """
    value: Any = report
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            raise unknown_key(f"metric {path} in the report", key, value if isinstance(value, dict) else [])
        value = value[key]
    return float(value)


def left_out_of(report: dict[str, Any]) -> str:
    """What a report was not measured on, and how that counts, in words; empty if it was measured on all."""
    told, unread = [], report.get("unread", 0)
    unseen = report.get("left_out", 0) - unread
    if report.get("asked", 0) < report.get("in_split", 0):
        told.append(f"only the first {report['asked']:,} of {report['in_split']:,} were asked")
    if unseen:
        ways = {"left_out_count_as_wrong": "count as wrong", "left_out_count_as_not_found": "count as not found"}
        counted = next((way for key, way in ways.items() if report.get(key)), "are not counted")
        told.append(f"{unseen:,} could not be looked at and {counted}")
    if unread:
        told.append(f"{unread:,} could not be read and are not counted")
    return "; ".join(told)


def read_study(name: str | Path, overrides: list[str], out: str | None = None) -> tuple[StudyConfig, list[Cell]]:
    """A study and its cells, seed by seed, so that a study cut short has something of everything.

    name: a file, or a study that comes with vlp. out: its folder, in the place of its own.

    Raises:
        ConfigError: the study or the configuration of a cell is not valid, or names are repeated or no file names.
    """
    path = config_file(name)
    study: StudyConfig = convert(read_yaml(path.read_text(encoding="utf-8"), str(path)), StudyConfig, str(path), "")
    study = replace(study, out=out or study.out)
    for key, names in (("tasks", [t.name for t in study.tasks]), ("systems", [s.name for s in study.systems])):
        if not names or len(set(names)) < len(names) or any(Path(name).name != name for name in names):
            raise ConfigError(f"{path}: {key} must have names, each another, that can be names of folders")
    for name in study.rows[len(study.systems) :]:
        if name in [system.name for system in study.systems]:
            raise ConfigError(f"{path}: a reference has the name of the system {name!r}; it needs another")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise ConfigError(f"{path}: seeds must be given, each once")
    for system in study.systems:
        for name in (*system.by_task, *(system.tasks or [])):
            if name not in [task.name for task in study.tasks]:
                raise unknown_key(f"{path}: system {system.name}", name, [task.name for task in study.tasks])
    cells = []
    for seed in study.seeds:
        for task in study.tasks:
            for system in study.systems:
                if system.tasks is not None and task.name not in system.tasks:
                    continue
                place = Path(study.out) / task.name / system.name / f"seed-{seed}"
                own = system.by_task.get(task.name, system.overrides)
                given = [*study.overrides, *task.overrides, *own, *overrides, f"seed={seed}", f"run_dir={place}"]
                try:
                    config = load_config(task.config, given)
                except ConfigError as error:
                    raise ConfigError(f"{path}: {system.name} on {task.name}: {error}") from error
                cells.append(Cell(task, system, seed, config, place.with_name(f"{place.name}.json")))
    return study, cells


def run_cells(cells: list[Cell], console: Console) -> dict[Path, str]:
    """Run what is not there; returns the errors of failed cells, by record.

    Raises:
        Stopped: a signal stopped a run.
    """
    failures: dict[Path, str] = {}
    for number, cell in enumerate(cells, 1):
        title = f"cell {number} of {len(cells)}: {cell.system.name} on {cell.task.name}, seed {cell.seed}"
        try:
            record = cell.recorded()
            if record is not None and record["result"] is not None:
                console.print(f"{title}: there already", style="bold", markup=False)
                continue
            console.rule(title, align="left")
            cell.run(console)
        except Stopped:
            raise
        except Exception as error:  # whatever it is, the other cells are worth having
            failures[cell.record] = f"{type(error).__name__}: {error}"
            if not can_be_mended(error):
                traceback.print_exc()
            console.print(f"{title} failed: {error}", style="red", markup=False, soft_wrap=True)
    return failures


def summarise(study: StudyConfig, cells: list[Cell], failures: dict[Path, str]) -> list[dict[str, Any]]:
    """For each task and system the values by seed, mean, standard deviation over the seeds, failures, and by seed what
    could not be looked at.

    Raises:
        ConfigError: cells of a task were measured on different data.
    """
    rows = []
    for task in study.tasks:
        measured_on: dict[str, Path] = {}
        references: dict[str, float] = {}
        for system in study.systems:
            own = [cell for cell in cells if cell.task is task and cell.system is system]
            values: dict[int, float] = {}
            left_out: dict[int, str] = {}
            for cell in own:
                record = cell.recorded() if cell.record.is_file() and cell.record not in failures else None
                if record is not None and record["result"] is not None:
                    values[cell.seed] = record["result"]["value"]
                    if record["result"].get("left_out"):
                        left_out[cell.seed] = record["result"]["left_out"]
                    measured_on.setdefault(record["result"]["fingerprint"], cell.record)
                    references = record["result"].get("references", references)
            if len(measured_on) > 1:
                raise ConfigError(f"measured on different data: {' and '.join(map(str, measured_on.values()))}")
            if not own:
                continue
            found = list(values.values())
            rows.append(
                {
                    "task": task.name,
                    "metric": task.metric,
                    "system": system.name,
                    "seeds": len(own),
                    "values": values,
                    "mean": statistics.fmean(found) if found else None,
                    "deviation": statistics.stdev(found) if len(found) > 1 else None,
                    "failures": {cell.seed: failures[cell.record] for cell in own if cell.record in failures},
                    "left_out": left_out,
                }
            )
        for name, value in references.items():
            told = {"task": task.name, "metric": task.references[name], "system": name, "seeds": 0, "values": {}}
            rows.append({**told, "mean": value, "deviation": None, "failures": {}, "left_out": {}})
    return rows


def cell_text(row: dict[str, Any] | None) -> str:
    """`61.2 ± 0.8`, and how many of the seeds it is of if some are missing."""
    if row is None:
        return ""
    if row["mean"] is None:
        return "failed" if row["failures"] else "-"
    spread = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.1f}"
    missing = "" if len(row["values"]) == row["seeds"] else f" ({len(row['values'])} of {row['seeds']})"
    return f"{100 * row['mean']:.1f}{spread}{missing}"


def table_of(study: StudyConfig, rows: list[dict[str, Any]]) -> tuple[Table, str]:
    """Systems by tasks, for the terminal and as Markdown."""
    known = {(row["system"], row["task"]): row for row in rows}
    heads = ["system", *(f"{task.name}, {task.metric}" for task in study.tasks)]
    lines = [[name, *(cell_text(known.get((name, task.name))) for task in study.tasks)] for name in study.rows]
    title = f"{study.name}: percent, mean ± standard deviation over seeds {', '.join(map(str, study.seeds))}"
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for line in lines:
        table.add_row(*line)
    marked = [heads, ["---", *(["---:"] * len(study.tasks))], *lines]
    return table, f"{title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in marked)


def left_out_lines(rows: list[dict[str, Any]]) -> list[str]:
    """What the cells were not measured on, a line for each task and system that has such."""
    lines = []
    for row in rows:
        seeds: dict[str, list[str]] = {}
        for seed, told in row["left_out"].items():
            seeds.setdefault(told, []).append(str(seed))
        for told, own in seeds.items():
            which = "" if len(own) == len(row["values"]) else f", seed {', '.join(own)}"
            lines.append(f"{row['task']}, {row['system']}{which}: {told}")
    return lines


def draw(study: StudyConfig, rows: list[dict[str, Any]], path: Path) -> None:
    """One panel a task: a bar to the mean of each system, or to a reference, a dot for each seed."""
    figure, axes = plt.subplots(
        1,
        len(study.tasks),
        figsize=(3.4 * len(study.tasks) + 1.2, 0.45 * len(study.rows) + 1.6),
        sharey=True,
        squeeze=False,
    )
    for axis, task in zip(axes[0], study.tasks, strict=True):
        for row in rows:
            if row["task"] != task.name or row["mean"] is None:
                continue
            place = study.rows.index(row["system"])
            values = [100 * value for value in row["values"].values()]
            axis.barh(place, 100 * row["mean"], color="#9bb8d3", height=0.6)
            axis.plot(values, [place] * len(values), "o", color="#1f4e79", markersize=4)
            axis.annotate(cell_text(row), (103, place), va="center", fontsize=8)
        axis.set_title(task.name, fontsize=10)
        axis.set_xlabel(f"{task.metric}, %", fontsize=8)
        axis.set_xlim(0, 160)
        axis.set_xticks(range(0, 101, 20))
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(study.rows)), study.rows)
    axes[0][0].invert_yaxis()
    figure.suptitle(f"{study.name}: means (bars) and seeds (dots)", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def report(study: StudyConfig, cells: list[Cell], failures: dict[Path, str], console: Console) -> None:
    """Print and write what there is."""
    rows = summarise(study, cells, failures)
    table, marked = table_of(study, rows)
    console.print(table)
    lines = left_out_lines(rows)
    for line in lines:
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    out = Path(study.out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(
        out / "table.md", "".join([marked, "\n" * bool(lines), *(f"- {line}\n" for line in lines)]).encode()
    )
    write_atomically(out / "table.json", json.dumps({"study": asdict(study), "rows": rows}, indent=1).encode())
    draw(study, rows, out / "table.png")
    console.print(f"written: {out}/table.md, .json, .png", soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    console = open_console()

    parser = options_of(
        "compare",
        __doc__,
        ["compare studies/pretraining_helps", "compare my_study.yaml --out runs/mine trainer.max_steps=50"],
    )
    parser.add_argument("study", metavar="STUDY", help="a file, or the name of a study that comes with vlp")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes of all configurations")
    parser.add_argument("--out", metavar="DIR", help="the study's folder (default: as the study says)")

    def work(given: list[str]) -> int:
        options = parser.read(given)
        study, cells = read_study(options.study, options.overrides, options.out)
        for cell in cells:
            cell.recorded()  # other settings are an error before anything is run
        failures: dict[Path, str] = {}
        try:
            failures = run_cells(cells, console)
        except Stopped:
            console.print("stopped; the same command goes on")
            return GO_ON
        finally:
            report(study, cells, failures, console)
        return 1 if failures else 0

    return run_command(work, arguments)
