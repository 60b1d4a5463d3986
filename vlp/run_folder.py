"""A run's folder, complete in itself: configuration, vocabulary, data facts, weights, log, checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast

from torch import Tensor, nn

from vlp.build import Group, build_model, build_objectives, name_of, objective_needs, standing_alone
from vlp.checkpoints.load import read_facts_of_weights, read_weights, write_atomically, write_weights
from vlp.config import ConfigError, RunConfig, dump_config, load_config, ratio_for, read_yaml
from vlp.contracts import AnyModel
from vlp.convert import convert
from vlp.interfaces import Replacement, Tokenizer
from vlp.metrics.cider import Frequencies
from vlp.needs import FeatureFacts
from vlp.text.choose import CLIP, check_case, open_tokenizer
from vlp.text.no_text import NoText


@dataclass(frozen=True)
class DataFacts:
    """What a run has to remember of its data: feature size, class names, each source's fingerprint, and, where they
    are used, the names of attributes, each source's answers, and what made its features, in its manifest's words.
    """

    feature_size: int
    class_names: list[str]
    fingerprints: dict[str, str]
    attribute_names: list[str] = field(default_factory=list)
    answer_names: dict[str, list[str]] = field(default_factory=dict)
    extractors: dict[str, str] = field(default_factory=dict)

    def goes_on_from(self, began: DataFacts) -> bool:
        """Whether a run that began with other facts can go on with these. A folder of an older form gave the answers
        to all its sources, so those of one without any here are not looked at; and it didn't name extractors.
        """
        answers = {source: names for source, names in began.answer_names.items() if source in self.answer_names}
        return self == replace(began, answer_names=answers, extractors=began.extractors or self.extractors)

    def for_model(self) -> FeatureFacts:
        """What the model is built from."""
        return FeatureFacts(self.feature_size, len(self.class_names), len(self.attribute_names), self.answer_names)


CAPTIONS = "captions.safetensors"
TOKENIZERS = ("vocabulary.txt", "tokenizer.json", "tokenizer.model")  # what a run's is called, by its kind


@dataclass(frozen=True)
class RunFolder:
    """Names and rules of a run's folder: `config.yaml`, `vocabulary.txt` (or `tokenizer.json`, `.model`), `data.json`,
    `metrics.jsonl`, `model.safetensors` (latest), `best.safetensors` (best validation loss), `checkpoints/`,
    `starts.jsonl` (when, how and with what it was started), what loggers write (`vlp.training.loggers`); where captions
    are rewarded, `captions.safetensors`: how many images' captions have each n-gram.
    """

    path: Path

    def create(
        self,
        config: RunConfig,
        tokenizer: Tokenizer,
        facts: DataFacts,
        counted: Mapping[str, Frequencies] = MappingProxyType({}),
    ) -> None:
        """Make the folder for a new run; `config.yaml` comes last, so its presence means the folder is ready.

        counted: what objectives made of the training captions, by name.

        Raises:
            ConfigError: the folder holds something already.
        """
        self.refuse_if_used()
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        if config.data.tokenizer is not None:
            write_atomically(self.path / tokenizer.file_name, tokenizer.file())
        write_atomically(self.path / "data.json", json.dumps(asdict(facts), indent=1).encode())
        if counted:
            parts = {f"{name}/{part}": tensor for name, f in counted.items() for part, tensor in f.tensors().items()}
            write_weights(self.path / CAPTIONS, parts, {"format": 1})
        self.write_config(replace(config, model=standing_alone(config.model)))

    def note_start(self, record: Mapping[str, Any]) -> None:
        """Add a line to `starts.jsonl`; see `vlp.commands.starts`."""
        with open(self.path / "starts.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def write_config(self, config: RunConfig) -> None:
        """Write the run's configuration."""
        write_atomically(self.path / "config.yaml", dump_config(config).encode())

    def remove(self) -> None:
        """Remove the folder with all that is in it; of a link to one, what is in that."""
        for child in self.path.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
        if not self.path.is_symlink():
            self.path.rmdir()

    def begun(self) -> bool:
        """Whether all that the folder holds is what `create` writes before it is done: a start that was killed."""
        made = {"checkpoints", *TOKENIZERS, "data.json", CAPTIONS, ".lock"}
        there = {path.name for path in self.path.iterdir()}
        return {name for name in there if not name.endswith(".tmp")} <= made and not self.checkpoints()

    def refuse_if_used(self) -> None:
        """Raise a ConfigError if the folder holds something already, but for a start that was killed."""
        if self.path.exists() and (not self.path.is_dir() or not self.begun()):
            raise ConfigError(
                f"the run folder {self.path} exists already and nothing in it is overwritten: choose another folder"
                " (run_dir=OTHER for a training), or go on with a training by --resume last"
            )

    def hold(self) -> IO[bytes]:
        """Keep other processes from training in the folder until the file that is returned is closed.

        A record lock, since the loader's processes must not inherit it: it ends with this process, however that ends.

        Raises:
            ConfigError: another process holds the folder.
        """
        import fcntl  # not on Windows, where models can be loaded all the same

        file = (self.path / ".lock").open("wb")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ConfigError(f"another process is training in {self.path}; wait for it, or choose another") from error
        for left in (*self.path.glob(".model.safetensors.*.tmp"), *self.path.glob(".best.safetensors.*.tmp")):
            left.unlink()  # by a process that was killed while it wrote
        return file

    def read_config(self, overrides: list[str]) -> RunConfig:
        """The run's own configuration, with overrides.

        Raises:
            ConfigError: there is no run here, or its configuration is not valid.
        """
        if not (self.path / "config.yaml").is_file():
            raise ConfigError(f"there is no run in {self.path} (no config.yaml)")
        return load_config(self.path / "config.yaml", overrides)

    def read_facts(self) -> DataFacts:
        """The run's data facts."""
        text = (self.path / "data.json").read_text(encoding="utf-8")
        tree = read_yaml(text, "data.json")
        if isinstance(tree.get("answer_names"), list):  # as runs were written when all sources had the same answers
            names = tree["answer_names"]
            tree["answer_names"] = dict.fromkeys(tree.get("fingerprints", {}), names) if names else {}
        facts: DataFacts = convert(tree, DataFacts, str(self.path / "data.json"), "")
        return facts

    def read_frequencies(self) -> dict[str, Frequencies]:
        """What objectives made of the training captions when the run began, by name; none, if none needs it.

        Raises:
            ValueError: the file is damaged.
        """
        if not (self.path / CAPTIONS).is_file():
            return {}
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in read_weights(self.path / CAPTIONS).items():
            name, _, part = key.rpartition("/")
            parts.setdefault(name, {})[part] = tensor
        return {name: Frequencies.from_tensors(own) for name, own in parts.items()}

    def tokenizer(self, config: RunConfig) -> Tokenizer:
        """The run's own tokenizer."""
        listed = config.data.tokenizer
        if listed is None or listed.vocabulary == CLIP:
            return tokenizer_of(config)
        there = [self.path / name for name in TOKENIZERS if (self.path / name).is_file()]
        return open_tokenizer([*there, self.path / TOKENIZERS[0]][0], listed.lowercase)

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.path / "checkpoints" / f"step-{step:08d}.ckpt"

    def checkpoints(self) -> list[Path]:
        """The run's checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*.ckpt"))

    def checkpoint_to_resume(self, resume: str) -> Path | None:
        """The checkpoint meant by `--resume last|PATH`; None if the run was stopped before its first one.

        Raises:
            ConfigError: there is no such file.
        """
        if resume == "last":
            found = self.checkpoints()
            return found[-1] if found else None
        if not Path(resume).is_file():
            names = ", ".join(p.name for p in self.checkpoints()) or "none"
            raise ConfigError(f"resume: no checkpoint {resume}; the run has {names}")
        return Path(resume)

    def remove_old_checkpoints(self, keep: int) -> None:
        """Leave the latest `keep` checkpoints."""
        for path in self.checkpoints()[:-keep]:
            path.unlink()

    def write_weights(self, name: str, state: dict[str, Tensor], step: int) -> None:
        """Write the weights of model and objectives as safetensors."""
        write_weights(self.path / name, state, {"format": 1, "step": step})

    def step_of_weights(self, name: str) -> int | None:
        """The step after which weights were written; None if there are none."""
        path = self.path / name
        return read_facts_of_weights(path).get("step") if path.is_file() else None

    def append_row(self, line: str) -> None:
        """Add a line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def quarantine(self, step: int, replaced: list[Replacement]) -> None:
        """Add broken samples to quarantine.jsonl."""
        lines = [json.dumps({"step": step, **asdict(one)}) + "\n" for one in replaced]
        with open(self.path / "quarantine.jsonl", "a", encoding="utf-8") as file:
            file.write("".join(lines))

    def read_rows(self) -> list[dict]:
        """The rows of metrics.jsonl; a last line cut short by a kill is left out.

        Raises:
            ConfigError: another line is no row.
        """
        path = self.path / "metrics.jsonl"
        return _rows_of(path) if path.is_file() else []

    def set_aside_rows_after(self, step: int) -> None:
        """Move rows of later steps, which will be computed anew, to metrics.superseded.jsonl."""
        rows = self.read_rows()
        later = [row for row in rows if row["step"] > step]
        if later:
            with open(self.path / "metrics.superseded.jsonl", "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in later)
        path = self.path / "quarantine.jsonl"
        if path.is_file():  # those of later steps will be met again
            kept = "".join(json.dumps(row) + "\n" for row in _rows_of(path) if row["step"] <= step)
            write_atomically(path, kept.encode())
        metrics = self.path / "metrics.jsonl"
        if metrics.is_file():  # a line that was cut short goes too, even if it is the only one
            kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step)
            write_atomically(metrics, kept.encode())

    def finished(self, config: RunConfig) -> bool:
        """Whether the last step's checkpoint is there."""
        return self.checkpoint(config.trainer.max_steps).is_file()


def tokenizer_of(config: RunConfig) -> Tokenizer:
    """The tokenizer that a configuration names; one without tokens, where it names none.

    Raises:
        FileNotFoundError, VocabularyError: there is no such file, or it can't be used, or see `check_case`.
    """
    listed = config.data.tokenizer
    if listed is None:
        return NoText()
    tokenizer = open_tokenizer(Path(config.data.root) / listed.vocabulary, listed.lowercase)
    check_case(tokenizer)
    return tokenizer


def answers_of_objectives(config: RunConfig, facts: DataFacts) -> dict[str, list[str]]:
    """For each objective that chooses among listed answers, by name, those of the sources that it is trained on."""
    needs = objective_needs(config.objectives)
    answers: dict[str, list[str]] = {}
    for group in config.objectives:
        of_sources = [own for s, own in facts.answer_names.items() if ratio_for(group.sampling_ratio, s) > 0]
        choosing = [name for name in map(name_of, group.objectives) if needs[name].truth == "answers"]
        answers.update(dict.fromkeys(choosing, next(iter(of_sources), [])))
    return answers


def weights_file(path: Path) -> Path:
    """The weights that the path of a run means: its folder (the latest ones), or one of its weight files."""
    return path / "model.safetensors" if path.is_dir() or not path.suffix else path


def build_run(
    config: RunConfig, tokenizer: Tokenizer, facts: DataFacts
) -> tuple[nn.Module, nn.ModuleDict, list[Group]]:
    """Model, objectives and groups of a configuration.

    Raises:
        ConfigError: the configuration does not fit its parts, the tokenizer or the data.
    """
    model = build_model(config.model, tokenizer.special, facts.for_model())
    words = cast(AnyModel, model).words
    if words < len(tokenizer):
        place = "model.text.settings" if "text" in config.model else "model"
        place = "model.embedder" if "embedder" in config.model else place
        until = " up to the first of its commands" if config.model.get("commands") else ""
        raise ConfigError(
            f"{place}.vocab_size is {words}{until}, but the vocabulary {tokenizer.path} has {len(tokenizer)} tokens"
        )
    objectives, groups = build_objectives(config.objectives, model, tokenizer, facts.for_model())
    return model, objectives, groups


def _rows_of(path: Path) -> list[dict]:
    """The rows of a file of JSON lines, each of which has a step, but for a last one that a kill has cut short."""
    rows = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                rows.append(json.loads(line))
                if type(rows[-1]["step"]) is not int:
                    raise ValueError("its step is no number")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}, line {len(rows) + 1} is damaged ({type(error).__name__}: {error}): take that line out"
        ) from error
    return rows
