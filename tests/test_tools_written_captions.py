"""`vlp data caption`: which images get a caption, what stays as it was, a kill, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vlp
from data_pipelines.batches import collate
from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.format import Sample
from data_pipelines.shards.reader import ShardReader
from data_pipelines.written_captions import FACT, RECORD, captions_in_the_making, changed_data_set
from tools import study_written_captions
from vlp.commands import caption, data, train
from vlp.commands.caption import ImagesToDescribe
from vlp.commands.evaluate import open_source

BARE, FEW, WITHOUT_REGIONS = {3, 10, 11, 25}, {4, 25}, 5
SMALL = [
    "model.hidden_size=32",
    "model.layers=1",
    "model.heads=2",
    "model.mlp_size=32",
    "data.workers=0",
    "data.micro_batch=4",
    "trainer.max_steps=2",
    "trainer.accelerator=cpu",
    "validation={every: 2, micro_batches: 1, split: val}",
    "checkpoint={every: 2, keep: 1}",
]


def reduced(number: int, sample: Sample) -> Sample:
    """Four samples without captions, one with two, and one without captions and regions."""
    if number in BARE or number == WITHOUT_REGIONS:
        facts = {**sample.facts, "foils": [], "caption_regions": []}
        sample = replace(sample, captions=[], facts=facts)
    if number in FEW - BARE:
        regions = sample.facts["caption_regions"][:2]
        sample = replace(sample, captions=sample.captions[:2], facts={**sample.facts, "caption_regions": regions})
    return replace(sample, regions=None) if number == WITHOUT_REGIONS else sample


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "whole", 40, 6, 0, lambda text: None, processes=1)
    assert changed_data_set(folder / "whole", folder / "scenes", "train", reduced) == 40
    return folder


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned next to nothing; what it writes is words all the same."""
    folder = tmp_path_factory.mktemp("runs") / "captions"
    places = [f"data.root={root}", f"run_dir={folder}", "data.sources.0.scenes=null"]
    settings = ["objectives.0.objectives.0.most_written=9", "model.initial_std=0.3"]
    assert train.main(["captioning/xgpt_small", *SMALL, *settings, *places]) == 0
    return folder


def samples(folder: Path, split: str = "train") -> list[Sample]:
    reader = ShardReader(folder, split)
    return [reader.sample(number) for number in range(len(reader))]


def same_but_texts(one: Sample, other: Sample) -> bool:
    def rest(facts: dict[str, Any]) -> dict[str, Any]:
        return {name: fact for name, fact in facts.items() if name not in (FACT, "caption_regions")}

    if (one.regions is None) != (other.regions is None):
        return False
    regions = one.regions is None or (one.regions.features == other.regions.features).all()  # type: ignore[union-attr]
    return bool(regions) and (one.key, one.image, rest(one.facts)) == (other.key, other.image, rest(other.facts))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def told(capsys: pytest.CaptureFixture[str]) -> str:
    caught = capsys.readouterr()
    assert "Traceback" not in caught.err
    return " ".join((caught.out + caught.err).split())


def test_images_without_captions_get_one(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that the run writes of them; and all else stays."""
    before, out = files(root / "scenes"), tmp_path / "captioned"
    assert data.main(["caption", str(run), str(root / "scenes"), "--out", str(out)]) == 0
    said = told(capsys)
    assert "40 samples, 5 of which had fewer captions than 1; 4 captions were written" in said
    assert "without: 1 x without region features (first: scene-train-000005)" in said
    assert files(root / "scenes") == before
    old, new = samples(root / "scenes"), samples(out)
    model = vlp.load(run)
    whole = open_source(model, root / "whole", "train")
    for number, (one, other) in enumerate(zip(old, new, strict=True)):
        assert same_but_texts(one, other)
        if number not in BARE:
            assert other.captions == one.captions
            assert FACT not in other.facts
            continue
        first = int((whole.sample_of == number).argmax())
        batch = collate([whole.load(first)], "scenes", 0, 0, [])
        assert other.captions == [model.caption_batch(batch)[0][0][0].strip()]
        assert other.facts[FACT] == 1
        assert other.facts["caption_regions"] == [[-1] * len(other.captions[0].split())]
    record = json.loads((out / RECORD).read_text())
    assert (record["asked"], record["written"], record["left_out"]) == (5, 4, 1)
    assert record["run"] == str(run)
    for split in ("val", "unseen"):
        assert all(same_but_texts(*pair) for pair in zip(samples(root / "scenes", split), samples(out, split)))  # noqa: B905
    assert not out.with_name("captioned.jsonl").exists()
    # and it is a data set that retrieval trains on
    places = [f"data.root={tmp_path}", f"run_dir={tmp_path / 'retrieval'}", "data.sources.0.path=captioned"]
    places += ["data.tokenizer.vocabulary=captioned/vocabulary.txt", "data.sources.0.scenes=null", "init=null"]
    places += ["objectives.0.objectives.0.negatives=2", "objectives.0.objectives.0.hardest=1"]
    assert train.main(["retrieval/uniter_small", *SMALL, *places]) == 0


def test_images_with_few_captions_get_one_more(root: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "captioned"
    given = ["caption", str(run), str(root / "scenes"), "--out", str(out), "--fewer-than", "3", "--beams", "2"]
    assert data.main(given) == 0
    for number, (one, other) in enumerate(zip(samples(root / "scenes"), samples(out), strict=True)):
        more = number in BARE | FEW
        assert other.captions[: len(one.captions)] == one.captions
        assert len(other.captions) == len(one.captions) + more
        assert other.facts.get(FACT, 0) == more


def test_a_stopped_command_goes_on(
    root: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the captions that it has; a line that was cut short is written again."""
    given = ["caption", str(run), str(root / "scenes"), "--fewer-than", "3", "--out"]
    assert data.main([*given, str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    monkeypatch.setattr(caption, "AT_ONCE", 2)
    describe, asked = ImagesToDescribe.describe, []

    def stopped(self: ImagesToDescribe, numbers: list[int], how: Any) -> Any:
        asked.append(numbers)
        if len(asked) in (2, 4):
            raise KeyboardInterrupt
        return describe(self, numbers, how)

    monkeypatch.setattr(ImagesToDescribe, "describe", stopped)
    out = tmp_path / "other"
    assert data.main([*given, str(out)]) == 75
    assert "the same command goes on" in told(capsys)
    kept = tmp_path / "other.jsonl"
    assert not out.exists()
    assert len(kept.read_text().splitlines()) == 3
    kept.write_bytes(kept.read_bytes() + b'{"sample": 10, "capt')
    assert data.main([*given, str(out)]) == 75
    assert data.main([*given, str(out)]) == 0
    assert asked[0] not in asked[2:], "these were there"
    assert files(out) == files(tmp_path / "whole")


def test_what_is_refused(root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes, out = str(root / "scenes"), tmp_path / "out"
    (tmp_path / "there").mkdir()
    assert data.main(["caption", str(run), scenes, "--out", str(tmp_path / "there")]) == 1
    assert "is there already, and nothing is overwritten" in told(capsys)
    assert data.main(["caption", str(run), str(root / "whole"), "--out", str(out)]) == 1
    assert "has 1 captions or more; a greater --fewer-than" in told(capsys)
    assert data.main(["caption", str(run), scenes, "--out", str(out), "--split", "test"]) == 1
    assert "no index of a split 'test'" in told(capsys)
    (tmp_path / "out.jsonl").write_text('{"run": "another"}\n')
    assert data.main(["caption", str(run), scenes, "--out", str(out)]) == 1
    assert "captions that another command began to write (unlike in run, " in told(capsys)
    (tmp_path / "out.jsonl").unlink()
    with captions_in_the_making(tmp_path / "out.jsonl", {}):
        assert data.main(["caption", str(run), scenes, "--out", str(out)]) == 1
    assert "another process is writing to" in told(capsys)
    (tmp_path / "out.jsonl").unlink()
    places = [f"data.root={root}", f"run_dir={tmp_path / 'retrieval'}", "data.sources.0.scenes=null", "init=null"]
    places += ["objectives.0.objectives.0.negatives=2", "objectives.0.objectives.0.hardest=1"]
    assert train.main(["retrieval/uniter_small", *SMALL, *places]) == 0
    capsys.readouterr()
    assert data.main(["caption", str(tmp_path / "retrieval"), scenes, "--out", str(out)]) == 1
    assert "this run trained nothing that writes captions" in told(capsys)
    assert not out.exists()
    assert not (tmp_path / "out.jsonl").exists()


def test_the_study_makes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the captions that stay to the recalls of three retrieval runs; run again it trains nothing."""
    build_scenes(tmp_path / "data" / "scenes", 60, 12, 0, lambda text: None, processes=1)
    few = ["data.workers=0", "trainer.max_steps=2", "trainer.accelerator=cpu", "checkpoint={every: 2, keep: 1}"]
    few += ["validation={every: 2, micro_batches: 1, split: val}", "data.micro_batch=8"]
    writing = ["model.hidden_size=32", "model.layers=1", "objectives.0.objectives.0.most_written=9"]
    seeing = ["model.pixels.size=32", "model.image.settings={image_size: 32, layers: [1, 1, 1, 1], width: 8}"]
    given = ["--share", "0.3", "--seeds", "4", "--out", str(tmp_path), "--captioning", *few, *writing]
    study_written_captions.work([*given, "--retrieval", *few, *seeing])
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["recall"]["4"].keys() == study_written_captions.ARMS.keys()
    people, written = samples(tmp_path / "data" / "people4"), samples(tmp_path / "data" / "written4")
    assert [len(sample.captions) for sample in people].count(5) == 18
    assert [len(sample.captions) for sample in people].count(0) == 42
    assert sum(sample.facts.get(FACT, 0) for sample in written) == 42
    before = (tmp_path / "seed4" / "written" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    study_written_captions.work([*given, "--retrieval", *few, *seeing])
    assert "step 2" not in capsys.readouterr().out
    assert (tmp_path / "seed4" / "written" / "metrics.jsonl").read_bytes() == before
