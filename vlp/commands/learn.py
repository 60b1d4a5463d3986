"""See whether each system learns.

Trains every shipped pretraining configuration (or those named) at a small size on the embedded scenes, a few minutes
each on two CPU cores, and compares its held-out losses with those of a blind model, whose states are the same whatever
it is shown. Prints a table and writes it to runs/learn/table.json; runs that are there already are not trained again.
Overrides apply to all configurations, after the small sizes. Exit code 1 if an objective has not learned.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from data_pipelines.prepare import validation_batches
from vlp.build import objective_needs
from vlp.checkpoints.load import load_strictly, read_weights, write_atomically
from vlp.commands import train
from vlp.commands.command import GO_ON, open_console, options_of, run_command
from vlp.config import ConfigError, RunConfig, load_config
from vlp.contracts import Encoded, Model, Plan
from vlp.inference import TrainedModel
from vlp.interfaces import Batch, Ragged
from vlp.run_folder import RunFolder, build_run
from vlp.shipped import config_file, folder
from vlp.training.module import TrainingModule

RUNS = Path("runs/learn")
NOT_SMALL = (
    "oscar_large",
    "oscar_plus_large",
    "vlbert_large",
    "uniter_small",
    "uniter_small_coco",
)  # others, at another size
SMALL = {
    "initial_std": 0.06,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "hidden_size": 128,
    "heads": 8,
    "mlp_size": 256,
    "layers": 4,
    "visual_hidden_size": 128,
    "visual_heads": 8,
    "visual_mlp_size": 256,
    "cross_hidden_size": 128,
    "cross_heads": 8,
}
MORE = ["optim.lr=1e-3", "optim.warmup_steps=100", "data.micro_batch=64", "data.workers=1", "trainer.max_steps=1500"]
MORE += ["trainer.gradient_clip_val=5.0", "validation.every=1500", "checkpoint.every=1500", "checkpoint.keep=1"]
LEAST_GAIN, LEAST_ACCURACY = 0.1, 0.6
OFTEN = 0.4  # share of right guesses
BATCHES = 16  # held-out micro-batches that are compared
BLIND_STEPS = 300


WHAT_IS_LEARNED = ("model", "objectives", "optim", "seed")  # parts of a configuration that make another run


class Stopped(Exception):
    """A training was stopped by a signal."""


@dataclass(frozen=True)
class Row:
    """One objective: held-out loss and accuracy (NaN where it has none) of the model and of a blind one. `pairs`: that
    these are of; `left_out`: held-out samples that can't be looked at, which lack something, or are broken, and others
    stand in for them.
    """

    config: str
    objective: str
    loss: float
    blind_loss: float
    accuracy: float
    blind_accuracy: float
    pairs: int = 0
    left_out: int = 0

    def learned(self) -> bool:
        """Clearly better than blind: by its accuracy where classes are so few that guesses are often right, as in
        matching, whose loss falls late; else by its loss.
        """
        if self.blind_accuracy > OFTEN:
            return self.accuracy > max(LEAST_ACCURACY, self.blind_accuracy)
        return self.loss < (1 - LEAST_GAIN) * self.blind_loss


class Blind(nn.Module):
    """A model whose states are one learned vector each for text, image and pooled, whatever the batch shows.

    With heads trained on it an objective's loss is that of the best constant guess: the entropy of the words, the
    prior of the classes, the variance about the mean feature.

    Args:
        model: whose rows are imitated; it is not trained.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.requires_grad_(False)
        shape = cast(Model, model)
        self.text = nn.Parameter(torch.randn(shape.hidden_size))
        self.visual = nn.Parameter(torch.randn(shape.visual_size))
        self.pooled = nn.Parameter(torch.randn(shape.pooled_size))

    def tied(self, name: str) -> Tensor:
        """The model's own parameter."""
        return cast(Model, self.model).tied(name)

    @property
    def plan(self) -> Plan:
        """The model's own."""
        return cast(Model, self.model).plan

    def forward(self, batch: Batch, planned: Any = None) -> Encoded:
        """Where the model's rows are, without what is in them."""
        with torch.no_grad():
            encoded: Encoded = self.model(batch, planned)
        text = Ragged(self.text.expand(len(encoded.text.values), -1), encoded.text.offsets)
        visual = text
        if encoded.visual is not encoded.text:
            visual = Ragged(self.visual.expand(len(encoded.visual.values), -1), encoded.visual.offsets)
        pooled = {name: self.pooled.expand(len(value), -1) for name, value in encoded.pooled.items()}
        written = encoded.written
        if written is not None:
            written = Ragged(self.text.expand(len(written.values), -1), written.offsets)
        return replace(encoded, text=text, visual=visual, pooled=pooled, written=written)


def small_overrides(path: Path) -> list[str]:
    """Sizes that the configuration has, made small; the schedule of a two-stream model, shortened."""
    config = load_config(path, [])
    overrides = [f"model.{key}={value}" for key, value in SMALL.items() if key in config.model]
    overrides.append("model.embedder.vocab_size=1000")
    if config.model.get("backbone", {}).get("type") == "timm_grid":
        overrides.append(
            "model.backbone.name=test_efficientnet_gn"
        )  # without batch norms, which would want trained weights
    if "schedule" in config.model:
        overrides.append(f"model.schedule={json.dumps(shortened(config.model['schedule']))}")
    return [*overrides, *MORE]


def shortened(schedule: list[str]) -> list[str]:
    """No more than two layers of a kind in a row and five in all, and twelve of all kinds."""
    short: list[str] = []
    for layer in schedule:
        if short[-2:] != [layer, layer] and short.count(layer) < 5:
            short.append(layer)
    return short[:12]


@torch.no_grad()
def held_out(module: TrainingModule, batches: list[Batch]) -> dict[str, float]:
    """Means over the batches of every loss and of everything that objectives report."""
    module.eval()
    preparation, sums = module.preparation, dict[str, float]()
    for number, batch in enumerate(batches):
        for group in module.groups:
            prepared = preparation.of_group(batch, group, "held out", number)
            _, losses, report, _ = module.losses(prepared, "held out", number)
            for name, value in {**losses, **report}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
    return {name: value / len(batches) for name, value in sums.items()}


def train_blind(module: TrainingModule, batches: list[Batch]) -> None:
    """Fit heads and constant states."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, BLIND_STEPS)
    module.train()
    preparation = module.preparation
    for step in range(BLIND_STEPS):
        batch, seed = batches[step % len(batches)], ("blind", step)
        prepared = (preparation.of_group(batch, group, *seed) for group in module.groups)
        total = torch.stack([module.losses(one, *seed)[0] for one in prepared]).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()


def compare(name: str, folder: RunFolder) -> list[Row]:
    """The rows of a finished run."""
    config = folder.read_config([])
    facts, tokenizer = folder.read_facts(), folder.tokenizer(config)

    def module_of(blind: bool) -> TrainingModule:
        torch.manual_seed(0)
        model, objectives, groups = build_run(config, tokenizer, facts)
        if not blind:
            trained = TrainedModel(model, objectives, tokenizer, config, facts)
            load_strictly(trained, read_weights(folder.path / "model.safetensors"), str(folder.path))
        encoder = Blind(model) if blind else model
        return TrainingModule(encoder, objectives, groups, config.optim, config.trainer.max_steps, 0)

    def batches_of(split: str, count: int) -> tuple[list[Batch], int]:
        """So many batches, and how many samples can't be looked at."""
        sources, _ = train.open_data(config, tokenizer, split)
        made = list(validation_batches(sources, config.data.micro_batch, config.data.micro_batch_tokens, count))
        broken = {(one.source, one.key) for batch in made for one in batch.replaced}
        return made, sum(source.unusable_samples for source in sources) + len(broken)

    batches, left_out = batches_of(config.validation.split, BATCHES)
    pairs = sum(len(batch.pairs) for batch in batches)
    seeing = held_out(module_of(blind=False), batches)
    blind_module = module_of(blind=True)
    train_blind(blind_module, batches_of(config.data.sources[0].split, 100)[0])
    blind = held_out(blind_module, batches)
    rows = []
    for key in seeing:
        parts = [other for other in seeing if other.startswith(f"{key}_") and "accuracy" not in other]
        # a sum of losses that are listed too; or a loss that needs no learning to be of either sign
        of_any_sign = key in blind_module.objectives and not getattr(blind_module.objectives[key], "has_floor", True)
        if "accuracy" in key or parts or of_any_sign:
            continue
        accuracy = f"{key}_accuracy"
        nothing = float("nan")
        shares = seeing.get(accuracy, nothing), blind.get(accuracy, nothing)
        rows.append(Row(name, key, seeing[key], blind[key], *shares, pairs, left_out))
    return rows


def table_of(rows: list[Row]) -> Table:
    """All rows, narrow enough for any terminal; those that have not learned are red."""
    table = Table(title="held-out losses against a blind model", title_justify="left")
    table.add_column("system and objective", no_wrap=True)
    for column in ("loss", "blind", "less by", "acc. %", "blind"):
        table.add_column(column, justify="right", no_wrap=True)
    system = ""
    for row in rows:
        if row.config != system:
            system = row.config
            table.add_section()
            table.add_row(f"{system}, {row.pairs:,} pairs", style="bold")
            if row.left_out:
                table.add_row(f"  {row.left_out:,} samples left out", style="yellow")
        gain = f"{100 * (1 - row.loss / row.blind_loss):.0f} %"
        shares = ["" if a != a else f"{100 * a:.1f}" for a in (row.accuracy, row.blind_accuracy)]
        cells = [f"  {row.objective}", f"{row.loss:.3f}", f"{row.blind_loss:.3f}", gain, *shares]
        table.add_row(*cells, style=None if row.learned() else "red")
    return table


def shipped() -> list[Path]:
    """The pretraining configurations of which this is a fair test; dual encoders tell by their retrieval."""
    paths = sorted(folder().glob("*.yaml"))
    return [path for path in paths if path.stem not in NOT_SMALL and fuses(path)]


def fuses(path: Path) -> bool:
    """Whether a configuration is of a fusion model, which has states that a blind model can stand for."""
    return {needs.result for needs in objective_needs(load_config(path, []).objectives).values()} == {"encoded"}


def finished_run(config: RunConfig, same: Iterable[str], console: Console) -> RunFolder:
    """The finished run of a configuration; trained if it isn't there, or to its end if it was cut off.

    same: the parts of the configuration in which a run that is there must agree.

    Raises:
        ConfigError: it does not. Stopped: a signal stopped the training.
    """
    folder = RunFolder(Path(config.run_dir))
    if not folder.path.exists():
        resume = None
    elif any(getattr(folder.read_config([]), key) != getattr(config, key) for key in same):
        raise ConfigError(f"{folder.path} is a run of other settings; remove it, or rename it, for this one")
    elif folder.finished(config):
        return folder
    else:
        resume = "last"
    if not train.train(config, resume, console):
        raise Stopped
    return folder


def run_of(path: Path, overrides: list[str], console: Console) -> RunFolder:
    """The finished small run of a shipped configuration."""
    places = [f"run_dir={RUNS / path.stem}"]
    config: RunConfig = load_config(path, [*small_overrides(path), *overrides, *places])
    return finished_run(config, WHAT_IS_LEARNED, console)


def learn(arguments: list[str], console: Console) -> int:
    """Train, compare, print, write; the exit code."""
    parser = options_of("learn", __doc__, ["learn", "learn uniter_base oscar_base trainer.max_steps=300"])
    parser.add_argument("given", nargs="*", metavar="CONFIG | key.sub=value", help="configurations, and changes of all")
    given = parser.read(arguments).given
    overrides = [a for a in given if "=" in a]
    paths = [config_file(a) for a in given if "=" not in a] or shipped()
    others = [str(path) for path in paths if not fuses(path)]
    if others:
        raise ConfigError(
            f"{others[0]} is of no fusion model, and there is no blind model to compare it with; what a dual encoder, a"
            " token decoder or a coder of pictures has learned is told by `vlp retrieve`, `vlp evaluate` and training"
        )
    rows: list[Row] = []
    try:
        for path in paths:
            rows += compare(path.stem, run_of(path, overrides, console))
    except Stopped:
        return GO_ON
    console.print(table_of(rows))
    listed: list[dict[str, Any]] = [
        {**{key: None if value != value else value for key, value in vars(row).items()}, "learned": row.learned()}
        for row in rows
    ]
    write_atomically(RUNS / "table.json", json.dumps(listed, indent=1).encode())
    return 0 if all(row.learned() for row in rows) else 1


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    console = open_console()
    return run_command(lambda given: learn(given, console), arguments)
