"""Parts that this file alone defines: an objective, a task, an embedder, and sides of images and texts. They are
registered as any other, trained, evaluated and asked by the commands, and refused where what they need is not offered.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import samples
import torch
import yaml
from rich.table import Table
from torch import Tensor, nn

from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.format import ShardError
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources import source as sources
from data_pipelines.sources.captions import CaptionTexts
from data_pipelines.sources.images import IMAGE_SIDES, RegionImages
from data_pipelines.sources.segments import SEGMENTS
from data_pipelines.sources.sides import Item, Split, TextItem
from vlp import registry
from vlp.build import build_model, build_objectives, loads_of
from vlp.commands import evaluate, predict, train
from vlp.config import ConfigError, GroupConfig, load_config
from vlp.contracts import Ability, Encoded, Losses, Model, Report
from vlp.interfaces import Batch, Loads, Regions, Truth
from vlp.needs import EmbedderOffers, FeatureFacts, Needs
from vlp.nn.layout import Sequences
from vlp.task_contracts import Measured, Prompt, Reply, Run
from vlp.text.wordpiece import WordPiece

ROOT = Path(__file__).parent.parent


class MeanImages:
    """An image side: one region for each image, the mean of its regions."""

    lacking = "regions to take a mean of"

    def __init__(self, reader: ShardReader, loads: Loads, training: bool = False):
        self.regions = RegionImages(reader, loads, training)
        self.usable, self.shown = self.regions.usable, self.regions.shown

    def rows(self, sample: int, facts: dict[str, Any] | None = None) -> int:
        return 1

    def load(self, sample: int, crop: int) -> Regions:
        whole = self.regions.load(sample, crop)
        box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        return Regions(whole.features.float().mean(0, keepdim=True), box, whole.scores[:1])

    def names(self, facts: dict[str, Any], image: Regions) -> list[str]:
        return ["mean"]


class ShoutedTexts(CaptionTexts):
    """A text side: the first caption of each sample, twice."""

    segments = ("shout",)

    def __init__(self, split: Split):
        super().__init__(split)
        self.counts = np.minimum(self.counts, 1)

    @staticmethod
    def fits(segments: Any) -> bool:
        return "shout" in segments

    def lengths(self, sample: int, facts: dict[str, Any]) -> np.ndarray:
        return 2 * self.filler.count(facts["captions"][:1])[None]

    def load(self, item: Item) -> TextItem:
        tokens = self.filler.tokenizer.encode([" ".join(2 * item.facts["captions"][:1])])
        return TextItem({"shout": tokens[0].first(self.loads.segments["shout"])})


class PlainEmbedder(nn.Module):
    """An embedder: words, and regions, without position or norm."""

    offers = EmbedderOffers(shows=("regions",), images="mean")

    def __init__(self, hidden_size: int, vocab_size: int, types: int, feature_size: int):
        super().__init__()
        self.feature_size = feature_size
        self.word_table = nn.Embedding(vocab_size, hidden_size)
        self.project = nn.Linear(feature_size, hidden_size)

    def tied(self, name: str) -> Tensor:
        return {"word_embeddings": self.word_table.weight}[name]

    def forward(self, batch: Batch, sequences: Sequences) -> Tensor:
        s = sequences
        regions = self.project(batch.images.features).index_select(0, s.regions.source)
        return torch.cat([self.word_table(s.token_ids), regions]).index_select(0, s.order)


class CountWords(nn.Module):
    """An objective: predict how many tokens the question has. It says nothing of needs: it has none."""

    def __init__(self, model: Model):
        super().__init__()
        self.count = nn.Linear(model.pooled_size, 1)

    @staticmethod
    def corrupt(batch: Batch, generator: torch.Generator) -> tuple[Batch, Tensor]:
        return batch, batch.texts.segments["question"].offsets.diff().index_select(0, batch.pairs[:, 0]).float()

    def loss(self, encoded: Encoded, targets: Tensor, model: Model) -> tuple[Losses, Report]:
        error = self.count(encoded.pooled["pair"])[:, 0] - targets
        return {"count_words": error.square().mean()}, {}


@dataclass
class GuessOptions:
    case: Literal["lower", "upper"] = "lower"


class GuessEvaluation:
    """An evaluation that no other task has."""

    measured_on: Literal["questions"] = "questions"
    Options = GuessOptions

    def answer(self, task: Guess, run: Run, batch: Batch, options: GuessOptions) -> list[str]:
        with torch.no_grad():
            chosen = task.guess(run.model(run.prepared(batch)).pooled["pair"]).argmax(1)
        names = [run.answer_names[number] for number in chosen.tolist()]
        return [name.upper() for name in names] if options.case == "upper" else names

    def record(self, run: Run, truth: Truth, said: list[str]) -> tuple[str, str, bool]:
        return str(truth.identifier), said[0], said[0].lower() in truth.answers

    def predictions(self, records: Sequence[Any], options: GuessOptions) -> tuple[str, str, str]:
        return "guesses", "txt", "".join(f"{key} {said}\n" for key, said, _ in records)

    def measure(self, run: Run, records: Sequence[Any], options: GuessOptions, title: str) -> Measured:
        hits = sum(hit for *_, hit in records)
        table = Table("hits", title=title)
        table.add_row(str(hits))
        return Measured({"hits": hits, "known": len(records)}, table, notes=["guessed"], warnings=["only guessed"])

    def reply(self, task: Guess, run: Run, prompt: Prompt) -> Reply:
        if len(prompt.images) != 1:
            raise ConfigError("one picture, please")
        return Reply(("guess", "regions"), [(run.answer_names[0], float(len(prompt.images[0].boxes)))])


class Guess(nn.Module):
    """A task: choose one of the answers by the pooled vector."""

    abilities: frozenset[Ability] = frozenset({"task"})
    evaluation = GuessEvaluation()

    @classmethod
    def needs(cls, **settings: Any) -> Needs:
        return Needs(pooled=True, truth="answers")

    def __init__(self, model: Model, answers: int):
        super().__init__()
        self.guess = nn.Linear(model.pooled_size, answers)

    @staticmethod
    def corrupt(batch: Batch, generator: torch.Generator) -> tuple[Batch, Tensor]:
        assert batch.answers is not None
        return batch, batch.answers

    def loss(self, encoded: Encoded, targets: Tensor, model: Model) -> tuple[Losses, Report]:
        loss = nn.functional.cross_entropy(self.guess(encoded.pooled["pair"]), targets, ignore_index=-1)
        return {"guess": loss}, {}


CONFIG = {
    "seed": 1,
    "run_dir": "set below",
    "model": {
        "type": "single_stream",
        "hidden_size": 16,
        "layers": 1,
        "heads": 2,
        "mlp_size": 16,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "norm_eps": 1e-12,
        "initial_std": 0.1,
        "layout": ["CLS", "question", "SEP", "regions"],
        "layout_types": [0, 0, 0, 0],
        "max_tokens": {"question": 30},
        "embedder": {"type": "plain", "vocab_size": 300, "types": 1},
    },
    "objectives": [
        {"name": "guess", "sampling_ratio": 1, "objectives": [{"type": "guess"}, {"type": "count_words"}]},
    ],
    "data": {
        "root": "set below",
        "tokenizer": {"vocabulary": "scenes/vocabulary.txt", "lowercase": True},
        "sources": [{"name": "scenes", "path": "scenes"}],
        "micro_batch": 4,
        "micro_batches_per_step": 2,
        "workers": 0,
    },
    "optim": {"lr": 1e-3, "betas": [0.9, 0.98], "warmup_steps": 1, "groups": [{"match": ".*", "weight_decay": 0.0}]},
    "trainer": {"max_steps": 2, "accelerator": "cpu"},
    "validation": {"every": 2, "micro_batches": 1},
    "checkpoint": {"every": 2, "keep": 1},
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a line in a table does."""
    monkeypatch.setitem(registry.EMBEDDERS, "plain", PlainEmbedder)
    monkeypatch.setitem(registry.OBJECTIVES, "count_words", CountWords)
    monkeypatch.setitem(registry.OBJECTIVES, "guess", Guess)
    monkeypatch.setitem(IMAGE_SIDES, "mean", MeanImages)
    monkeypatch.setattr(sources, "TEXT_SIDES", [*sources.TEXT_SIDES, ShoutedTexts])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scenes", 20, 8, 0, lambda text: None, processes=1)
    return folder


@pytest.fixture
def config(root: Path, tmp_path: Path) -> list[str]:
    """The first arguments of tools/train.py."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    return [str(path), f"data.root={root}", f"run_dir={tmp_path / 'run'}"]


def words(root: Path) -> WordPiece:
    return WordPiece(root / "scenes" / "vocabulary.txt", lowercase=True)


def test_trained_evaluated_and_asked(
    config: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert train.main(config) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert {"loss/guess", "loss/count_words"} <= rows[1].keys()
    assert evaluate.main([run, "split=val", "case=upper", "most=10"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    for said in ("hits", "guessed", "only guessed"):
        assert said in shown
    guesses = [line.split(" ", 1) for line in (tmp_path / "run" / "guesses-val-first-10.txt").read_text().splitlines()]
    assert len(guesses) == 10
    assert all(said == said.upper() for _, said in guesses)
    report = json.loads((tmp_path / "run" / "evaluation-val-first-10.json").read_text())
    reader = ShardReader(root / "scenes", "val")
    answers = {
        f"{reader.key(n)}/{k}": answer
        for n in range(len(reader))
        for k, answer in enumerate(reader.facts(n)["answers"])
    }
    assert report["hits"] == sum(said.lower() == answers[key] for key, said in guesses)
    assert predict.main([run, "--sample", f"val/{reader.key(0)}", "--text", "what?"]) == 0, capsys.readouterr().err
    assert "1.000" in capsys.readouterr().out, "the image side gives one region"
    for arguments, message in (
        (["case=loud"], "case is 'loud', but must be one of lower, upper"),
        (["beams=3"], "unknown key 'beams'; known keys: case"),
    ):
        assert evaluate.main([run, *arguments]) == 1
        assert message in capsys.readouterr().err
    assert predict.main([run, *["--sample", f"val/{reader.key(0)}"] * 2]) == 1
    assert "one picture, please" in capsys.readouterr().err


def test_a_side_of_texts(root: Path) -> None:
    tokenizer = words(root)
    source = sources.Source("s", root / "scenes", "train", tokenizer, Loads({"shout": 50}, images="mean"))
    assert len(source) == 20
    caption = source.reader.facts(3)["captions"][0]
    assert source.load(3).segments["shout"].ids == tokenizer.encode([f"{caption} {caption}"])[0].ids
    assert len(source.load(3).regions.boxes) == 1
    lengths = source.planned(1, with_lengths=True).lengths
    assert lengths is not None
    assert lengths[3] == len(source.load(3).segments["shout"].ids) + 1


def test_the_embedder_chooses_its_images(config: list[str]) -> None:
    assert loads_of(load_config(config[0], config[1:])).images == "mean"


@pytest.mark.parametrize(
    ("needs", "model", "facts", "message"),
    [
        (Needs("embedded"), {}, {}, "demanding is no objective of this model, which has answer_classification"),
        (Needs(region_rows=True), {"layout": ["CLS", "caption", "SEP"]}, {}, "needs region rows"),
        (Needs(pooled=True), {"pooler": False}, {}, "needs a pooled vector; set model.pooler=true"),
        (Needs(class_scores=True), {}, {"classes": 0}, "needs class scores, and the data's manifest names no classes"),
        (Needs(attributes=True), {}, {}, "needs attributes of regions, and the data's manifest names none"),
        (
            Needs(mask_token=True),
            {},
            {"mask": False},
            "needs a mask token, and the tokenizer .*vocabulary.txt has none",
        ),
        (Needs(writes="caption"), {}, {}, r"writes the segment caption: set model\.layout_causal, as \[CLS, caption\]"),
        (Needs(decoder=True), {}, {}, "needs a model that writes with a decoder beside what reads"),
        (
            Needs(alone="likes no company"),
            {},
            {"beside": 1},
            r"objectives\.0: demanding likes no company; give it a group",
        ),
        (
            Needs(region_features=True),
            {
                "pixels": {"shorter": 8, "longer": 8, "multiple": 4},
                "backbone": {"type": "patches", "size": 4, "mean": [0.0] * 3, "std": [1.0] * 3},
            },
            {},
            "needs features of regions, and this model sees pixels",
        ),
    ],
)
def test_what_is_needed_and_not_offered_is_refused(
    needs: Needs,
    model: dict[str, Any],
    facts: dict[str, int],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each need, by an objective that has it alone; where it is offered, the objective is built."""

    class Demanding(CountWords):
        @classmethod
        def needs(cls, **settings: Any) -> Needs:
            return needs

    monkeypatch.setitem(registry.OBJECTIVES, "demanding", Demanding)
    tokenizer = samples.tokenizer(tmp_path)
    if not facts.get("mask", True):
        tokenizer.special = {name: number for name, number in tokenizer.special.items() if name != "MASK"}
    types = [0] * len(model.get("layout", range(4)))
    own = samples.model(**{"layout_types": types, **model})
    listed = [{"type": "demanding"}, *[{"type": "count_words"}] * facts.get("beside", 0)]
    has = FeatureFacts(samples.FEATURES, facts.get("classes", samples.CLASSES))
    with pytest.raises(ConfigError, match=message):
        build_objectives([GroupConfig("g", 1, listed)], own, tokenizer, has)
    if needs.result == "encoded":
        causal = {"layout_causal": ["CLS", "caption"]} if needs.writes else {}
        causal |= {"type": "encoder_decoder", "shared": True} if needs.decoder else {}
        everything = FeatureFacts(samples.FEATURES, samples.CLASSES, attributes=3)
        groups = [GroupConfig("g", 1, [{"type": "demanding"}])]
        built, _ = build_objectives(groups, samples.model(**causal), samples.tokenizer(tmp_path), everything)
        assert list(built) == ["demanding"]


def test_what_spans_a_step_is_given_pairs_to_compare(
    config: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Comparing(CountWords):
        seen: ClassVar[list[int]] = []

        @classmethod
        def needs(cls, **settings: Any) -> Needs:
            return Needs(spans_step=True, rivals=True)

        @staticmethod
        def corrupt(batch: Batch, generator: torch.Generator) -> tuple[Batch, Tensor]:
            Comparing.seen.append(len(batch.pairs))
            return CountWords.corrupt(batch, generator)

    monkeypatch.setitem(registry.OBJECTIVES, "count_words", Comparing)
    for override, message in (
        (["data.micro_batch=null", "data.micro_batch_tokens=100"], "not with micro_batch_tokens"),
        (["data.micro_batch=1", "data.micro_batches_per_step=1"], "a step of one pair has nothing to compare it with"),
        (["data.micro_batch=999"], "they would be negatives of themselves"),
    ):
        assert train.main([*config, *override]) == 1
        assert message in capsys.readouterr().err
    assert train.main(config) == 0, capsys.readouterr().err
    assert Comparing.seen[:2] == [8, 8], "two micro-batches of four are one batch"


def test_what_no_part_looks_at_is_refused(config: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*config, "data.sources.0.neighbours={path: scenes/none.parquet}"]) == 1
    assert "no objective of a group that is drawn for the source looks at them" in capsys.readouterr().err
    build_scenes(root / "choices", 8, 4, 0, lambda text: None, processes=1, asks="choices")
    assert train.main([*config, "data.sources.0.path=choices"]) == 1
    assert "have choices of their own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layout": ["CLS", "caption", "SEP", "whole"]}, r"model\.layout: this embedder has no rows for whole"),
        ({"token_region": True}, r"model\.token_region: this embedder does not look at the regions"),
        ({"layout": ["CLS", "caption", "END", "regions"]}, "no special token END"),
    ],
)
def test_what_an_embedder_does_not_offer_is_refused(changed: dict[str, Any], message: str) -> None:
    settings = {
        **CONFIG["model"],  # type: ignore[dict-item]
        "layout": ["CLS", "caption", "SEP", "regions"],
        "max_tokens": {"caption": 9},
        "embedder": {"type": "plain", "vocab_size": 40, "types": 1},
        **changed,
    }
    with pytest.raises(ConfigError, match=message):
        build_model(settings, samples.SPECIAL, FeatureFacts(samples.FEATURES, 0))


def test_segments_that_no_side_fills_are_refused(root: Path) -> None:
    with pytest.raises(ShardError, match=f"there are {', '.join(SEGMENTS)}, answer, rationale, shout"):
        sources.Source("s", root / "scenes", "train", words(root), Loads({"poem": 5}))
