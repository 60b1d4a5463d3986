"""Where the numbers of a run go besides `metrics.jsonl`: Lightning's loggers, by name and settings."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from vlp.checkpoints.load import write_atomically
from vlp.config import ConfigError
from vlp.convert import arguments

JSONL = "jsonl"  # `metrics.jsonl`, which every run writes, since other commands read it
IDS = "loggers.json"  # by which services know the run, so that a resumed run is the same there


class TableFile(CSVLogger):
    """`csv/metrics.csv` of a run's folder, in which a resumed run goes on: Lightning's own begins it anew.

    So rows from before have another name (`set_aside`) until the step is known that the run goes on from (`go_on`).
    """

    def __init__(self, folder: Path):
        super().__init__(folder, name="", version="csv", flush_logs_every_n_steps=1)
        self.file, self.before = folder / "csv" / "metrics.csv", folder / "metrics.csv.before"

    def set_aside(self) -> None:
        """Called before the trainer opens the file. Where a start was killed before it went on, that was done."""
        if self.file.is_file() and not self.before.is_file():
            self.file.rename(self.before)

    def go_on(self, step: int) -> None:
        """Take over the rows up to a step; those of later ones will be computed anew."""
        if not self.before.is_file():
            return
        with open(self.before, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if str(row["step"]).isdecimal() and int(row["step"]) <= step]
        self.experiment.metrics = [{name: value for name, value in row.items() if value} for row in rows]
        self.save()
        self.before.unlink()


def _csv(folder: Path, id: str | None) -> Logger:
    return TableFile(folder)


def _tensorboard(folder: Path, id: str | None) -> Logger:
    return TensorBoardLogger(folder, name="", version="tensorboard")


def _wandb(
    folder: Path,
    id: str | None,
    project: str = "vlp",
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    offline: bool = False,
) -> Logger:
    own: dict[str, Any] = {"entity": entity, "group": group, "tags": tags}
    return WandbLogger(name or folder.name, folder, id=id, project=project, offline=offline, resume="allow", **own)


def _mlflow(
    folder: Path,
    id: str | None,
    experiment_name: str = "vlp",
    run_name: str | None = None,
    tracking_uri: str | None = None,
) -> Logger:
    where = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    return MLFlowLogger(experiment_name, run_name or folder.name, where, run_id=id)


LOGGERS: dict[str, Callable[..., Logger]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
APART = ("val", "source/", "lr", "samples_", "tokens_", "padding_", "data_wait_", "replaced_")  # are of no source
SERVICES = (WandbLogger, MLFlowLogger)


def read_loggers(listed: list[str | dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings of the loggers of a configuration (`logging`), by name.

    Raises:
        ConfigError: there is no such logger or setting, one is listed twice, its package is not installed, or an
            address has a name or a password.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(listed):
        where = f"logging.{number}"
        settings = {"type": entry} if isinstance(entry, str) else entry
        if settings == {"type": JSONL}:
            continue
        _, values = arguments(where, settings, LOGGERS, ("folder", "id"))
        name = settings["type"]
        if name in found:
            raise ConfigError(f"{where}: {name} is listed twice")
        spec = None if name == "csv" else find_spec(name)
        if name != "csv" and (spec is None or spec.origin is None):  # a folder of that name is no package
            raise ConfigError(f"{where}: {name} is not installed: pip install 'vlp[{name}]'")
        try:
            named = urlsplit(values.get("tracking_uri") or "").username is not None
        except ValueError as error:
            raise ConfigError(f"{where}.tracking_uri is no address") from error  # the error may tell a password
        if named:
            raise ConfigError(
                f"{where}.tracking_uri has a name or a password before the host, which would be written into the run's"
                " folder; set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the"
                " environment"
            )
        found[name] = values
    return found


def build_loggers(listed: list[str | dict[str, Any]], folder: Path, first: bool) -> list[Logger]:
    """The loggers of a run whose folder is there; services are told which run of theirs it was, if it was one.

    The first process alone has them; others have one that does nothing, for the sake of callbacks.

    Raises:
        ConfigError: see `read_loggers`, or a service can't be reached.
    """
    chosen = read_loggers(listed)
    if not first:
        return [DummyLogger()] if chosen else []
    ids, loggers = _ids(folder), []
    for name, values in chosen.items():
        try:
            logger = LOGGERS[name](folder, ids.get(name), **values)
            if isinstance(logger, SERVICES):
                _ = logger.experiment  # it is reached now, not after the data was read
        except Exception as error:  # of many kinds, a service's own
            raise ConfigError(f"logging: {name} can't be used: {str(error).strip() or type(error).__name__}") from error
        if isinstance(logger, TableFile):
            logger.set_aside()
        loggers.append(logger)
    return loggers


def _ids(folder: Path) -> dict[str, str]:
    return json.loads((folder / IDS).read_text(encoding="utf-8")) if (folder / IDS).is_file() else {}


def go_on(loggers: list[Logger], folder: Path, step: int, config: Mapping[str, Any]) -> None:
    """Called by the first process once it is known after which step the run goes on (0: it begins).

    Files lose what comes after it. Services are given the configuration of the first start, without secrets; what they
    were told of later steps stays there, and comes again.
    """
    ids = _ids(folder)
    known = {**ids}
    for logger in loggers:
        if isinstance(logger, TableFile):
            logger.go_on(step)
        elif isinstance(logger, TensorBoardLogger) and len([*Path(logger.log_dir).glob("*tfevents*")]) > 1:
            logger.experiment.close()  # it opens another file, which says that later steps of those before don't count
            logger.experiment.purge_step = step + 1
            _name_as_before(Path(logger.log_dir))
        elif isinstance(logger, SERVICES):
            name = "wandb" if isinstance(logger, WandbLogger) else "mlflow"
            if name not in known:
                logger.log_hyperparams(dict(config))  # MLflow takes no other values of them later
            ids[name] = str(logger.version)
    if ids != known:
        write_atomically(folder / IDS, json.dumps(ids).encode())


def _name_as_before(folder: Path) -> None:
    """Give TensorBoard's files names that sort before those of new ones, whichever second the clock is in.

    TensorBoard reads files by the order of their names, which have the second, the host and the process. A run that
    goes on within the same second, or on a machine whose clock is behind, would come before what it goes on from.
    """
    number = len([*folder.glob("before-*")])
    for file in sorted(folder.glob("events.*")):
        number += 1
        file.rename(folder / f"before-{number:05d}-{file.name}")


def log_row(loggers: list[Logger], row: Mapping[str, Any]) -> None:
    """Give a step's row to all of them; words are for the table alone. Where the row has a source, which is that of all
    it was trained on, its losses and what its objectives report are given as `source/SOURCE/...` too, which makes a
    curve for each source.
    """
    step, source = row["step"], row.get("source")
    numbers: dict[str, Any] = {n: value for n, value in row.items() if isinstance(value, int | float) and n != "step"}
    words: dict[str, Any] = {name: value for name, value in row.items() if isinstance(value, str)}
    own = {f"source/{source}/{n}": value for n, value in numbers.items() if source and not n.startswith(APART)}
    for logger in loggers:
        logger.log_metrics({**words, **numbers} if isinstance(logger, TableFile) else {**numbers, **own}, step)


def close(loggers: list[Logger]) -> None:
    """Called by every process at the end, after an error too.

    Rows that were set aside have their name back if there was nothing to train; and what outlives the trainer ends,
    since a process may train several times, and each is a run of its own.
    """
    for logger in loggers:
        if isinstance(logger, TableFile) and logger.before.is_file() and not logger.file.is_file():
            logger.before.rename(logger.file)
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            logger.experiment.finish()
