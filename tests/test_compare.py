"""tools/compare.py: a tiny study run as its user runs it; cells that are there stay, others of it are never mixed."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_tools_tasks import holes
from test_tools_train import SIZES

from data_pipelines.scenes.build import build_scenes
from vlp.commands.compare import left_out_of, main, read_study
from vlp.config import ConfigError

ROOT = Path(__file__).parent.parent
BLIND = ["model.layout=[CLS, question, SEP]", "model.layout_types=[0, 0, 0]"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One task, two systems, two seeds; two steps each."""
    folder = tmp_path_factory.mktemp("study")
    build_scenes(folder / "scenes", 30, 12, 0, lambda text: None, processes=1)
    small = [*SIZES, "data.workers=0", "trainer.max_steps=2", "init=null", f"data.root={folder}"]
    return {
        "name": "tiny",
        "out": str(folder / "out"),
        "seeds": [1, 2],
        "overrides": [*small, "objectives.0.objectives.0.head.hidden_size=32"],
        "tasks": [{"name": "VQA", "config": str(ROOT / "configs/vqa/uniter_small.yaml"), "metric": "accuracy"}],
        "systems": [{"name": "seeing"}, {"name": "text only", "overrides": BLIND}],
    }


def write(study: dict[str, Any], path: Path, **changed: Any) -> str:
    path.write_text(yaml.safe_dump({**study, **changed}))
    return str(path)


@pytest.fixture(scope="module")
def out(study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, run."""
    assert main([write(study, tmp_path_factory.mktemp("yaml") / "study.yaml")]) == 0
    return Path(study["out"])


def cells(out: Path) -> dict[tuple[str, int], Path]:
    systems = ("seeing", "text only")
    return {(system, seed): out / "VQA" / system / f"seed-{seed}" for system in systems for seed in (1, 2)}


def times(out: Path) -> list[int]:
    """When each run's weights were written."""
    return [(run / "model.safetensors").stat().st_mtime_ns for run in cells(out).values()]


def test_the_table_is_what_the_runs_were_measured_to_be(out: Path) -> None:
    rows = {row["system"]: row for row in json.loads((out / "table.json").read_text())["rows"]}
    markdown = (out / "table.md").read_text()
    assert "could not be looked at" not in markdown
    for system in ("seeing", "text only"):
        measured = [
            json.loads((cells(out)[system, seed] / "evaluation-val.json").read_text())["accuracy"] for seed in (1, 2)
        ]
        assert rows[system]["values"] == {"1": measured[0], "2": measured[1]}
        mean, spread = 100 * statistics.fmean(measured), 100 * statistics.stdev(measured)
        assert f"| {system} | {mean:.1f} ± {spread:.1f} |" in markdown
    assert (out / "table.png").stat().st_size > 5000
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in cells(out).values()]
    assert [config["seed"] for config in configs] == [1, 2, 1, 2]
    assert [config["model"]["layout"][-1] for config in configs] == ["regions", "regions", "SEP", "SEP"]


def test_retrieval_and_expressions_stand_beside_references(study: dict[str, Any], tmp_path: Path) -> None:
    """Each task by its own command; chance is of the data, so one number for all seeds, in a row of its own."""
    root = tmp_path / "data"
    (tmp_path / "data").mkdir()
    (root / "scenes").symlink_to(Path(study["out"]).parent / "scenes")
    build_scenes(root / "expressions", 12, 6, 0, lambda text: None, processes=1, asks="expressions")
    retrieval = {
        "name": "retrieval",
        "config": str(ROOT / "configs/retrieval/uniter_small.yaml"),
        "evaluate": "retrieval",
        "options": {"gallery": "6", "pictures": "0"},
        "metric": "model.text_to_image.recall_at_1",
        "references": {"chance": "chance.text_to_image.recall_at_1"},
    }
    chosen = [f"data.root={root}", "data.sources.0.path=expressions"]
    chosen += ["data.tokenizer.vocabulary=expressions/vocabulary.txt", "objectives.0.objectives.0.head.hidden_size=32"]
    expressions = {"name": "expressions", "config": str(ROOT / "configs/refcoco/uniter_small.yaml")}
    out = tmp_path / "out"
    changed = {
        "out": str(out),
        "seeds": [1],
        "overrides": study["overrides"][:-1],
        "tasks": [retrieval, {**expressions, "metric": "accuracy", "overrides": chosen}],
        "systems": [{"name": "seeing"}],
    }
    path = write(study, tmp_path / "study.yaml", **changed)
    assert main([path]) == 0
    (found,) = (out / "retrieval" / "seeing" / "seed-1").glob("retrieval-*.json")
    recall = json.loads(found.read_text())["model"]["text_to_image"]["recall_at_1"]
    right = json.loads((out / "expressions" / "seeing" / "seed-1" / "evaluation-val.json").read_text())["accuracy"]
    markdown = (out / "table.md").read_text()
    assert f"| seeing | {100 * recall:.1f} | {100 * right:.1f} |" in markdown
    assert f"| chance | {100 / 6:.1f} |  |" in markdown
    # a cell that was measured with other references is not mixed with these
    other = [{**retrieval, "references": {"luck": "chance.text_to_image.recall_at_1"}}]
    with pytest.raises(ConfigError, match="luck"):
        read_study(Path(write(study, tmp_path / "study.yaml", **{**changed, "tasks": other})), [])[1][0].recorded()


def test_what_was_not_looked_at_is_told(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A third of the images has no regions, and three questions each. One task is asked the first five alone."""
    data, _, without = holes(Path(study["out"]).parent, tmp_path / "holes")
    (task,) = study["tasks"]
    few = {**task, "name": "few", "options": {"most": "5"}}
    retrieval = {"name": "retrieval", "config": str(ROOT / "configs/retrieval/uniter_small.yaml")}
    retrieval |= {"evaluate": "retrieval", "metric": "model.text_to_image.recall_at_1"}
    changed = {
        "out": str(tmp_path / "out"),
        "seeds": [1],
        "overrides": study["overrides"][:-1],
        "tasks": [
            {**task, "options": {"data": str(data)}, "overrides": study["overrides"][-1:]},
            {**few, "overrides": study["overrides"][-1:]},
            {**retrieval, "options": {"data": str(data), "pictures": "0"}},
        ],
        "systems": [{"name": "seeing"}],
    }
    assert main([write(study, tmp_path / "study.yaml", **changed)]) == 0
    (cell,) = (tmp_path / "out" / "VQA" / "seeing").glob("seed-1")
    report = json.loads((cell / "evaluation-val.json").read_text())
    assert len(without) == 4
    assert (report["left_out"], report["questions"]) == (12, 36)
    lines = [
        "VQA, seeing: 12 could not be looked at and count as wrong",
        "few, seeing: only the first 5 of 36 were asked",
        "retrieval, seeing: 4 could not be looked at and count as not found",
    ]
    told, markdown = capsys.readouterr().out, (tmp_path / "out" / "table.md").read_text()
    assert markdown.endswith("|\n\n" + "".join(f"- {line}\n" for line in lines))
    assert all(line in told for line in lines)
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [row["left_out"]["1"] for row in rows] == [line.partition(": ")[2] for line in lines]


def test_what_is_there_is_not_run_again(study: dict[str, Any], out: Path, tmp_path: Path) -> None:
    before = times(out)
    assert main([write(study, tmp_path / "study.yaml")]) == 0
    assert times(out) == before
    # a cell whose result is gone is measured again; its run, finished, is not trained again
    record = out / "VQA" / "seeing" / "seed-2.json"
    kept = json.loads(record.read_text())
    record.write_text(json.dumps({**kept, "result": None}))
    assert main([write(study, tmp_path / "study.yaml")]) == 0
    assert json.loads(record.read_text()) == kept
    assert times(out) == before


def test_a_run_that_was_cut_off_goes_on(study: dict[str, Any], out: Path, tmp_path: Path) -> None:
    """From its last checkpoint, to the same weights as without a break."""
    run = cells(out)["text only", 1]
    record = run.with_name("seed-1.json")
    whole, kept = (run / "model.safetensors").read_bytes(), json.loads(record.read_text())
    record.write_text(json.dumps({**kept, "result": None}))
    (run / "checkpoints" / "step-00000002.ckpt").unlink()
    (run / "model.safetensors").unlink()
    assert main([write(study, tmp_path / "study.yaml")]) == 0
    assert (run / "model.safetensors").read_bytes() == whole
    assert json.loads(record.read_text()) == kept


def test_other_settings_are_an_error(
    study: dict[str, Any], out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(out)
    for changed in (["optim.lr=2e-3"], ["trainer.max_steps=3"]):
        assert main([write(study, tmp_path / "study.yaml"), *changed]) == 1
        error = capsys.readouterr().err
        assert "is of other settings" in error
        assert changed[0].partition("=")[0].rpartition(".")[2] in error
    other = [{**study["tasks"][0], "options": {"split": "unseen"}}]
    assert main([write(study, tmp_path / "study.yaml", tasks=other)]) == 1
    assert times(out) == before


def test_a_failed_cell_is_told_and_the_others_stay(
    study: dict[str, Any], out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = {"name": "pretrained", "overrides": [f"init={{path: {tmp_path}/none}}"]}
    path = write(study, tmp_path / "study.yaml", systems=[lost, *study["systems"]], seeds=[1])
    assert main([path]) == 1
    assert "there are no weights" in capsys.readouterr().out
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert [row["mean"] is None for row in rows] == [True, False, False]
    assert "there are no weights" in rows[0]["failures"]["1"]
    assert "| pretrained | failed |" in (out / "table.md").read_text()


def test_studies_that_make_no_sense(study: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    for changed, message in (
        ({"sedes": [1]}, "did you mean 'seeds'"),
        ({"seeds": [1, 1]}, "each once"),
        ({"systems": [{"name": "a/b"}]}, "names of folders"),
        ({"systems": [{"name": "a", "by_task": {"VAQ": []}}]}, "did you mean 'VQA'"),
        ({"tasks": [{**study["tasks"][0], "references": {"seeing": "accuracy"}}]}, "the name of the system 'seeing'"),
        ({"systems": [{"name": "a", "overrides": ["sede=1"]}]}, "a on VQA: .* did you mean 'seed'"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_study(Path(write(study, path, **changed)), [])


@pytest.mark.parametrize("path", sorted((ROOT / "configs/studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study, cells = read_study(path, [])
    assert len(cells) > len(study.seeds)
    assert len({cell.config.run_dir for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("report", "told"),
    [
        ({}, ""),
        ({"left_out": 0, "asked": 5, "in_split": 5, "left_out_count_as_wrong": True}, ""),
        ({"left_out": 3, "unread": 1, "left_out_count_as_wrong": True}, "2 could not be looked at and count as wrong"),
        ({"left_out": 2, "left_out_count_as_not_found": False}, "2 could not be looked at and are not counted"),
    ],
)
def test_what_a_report_left_out(report: dict[str, Any], told: str) -> None:
    assert left_out_of(report).partition("; ")[0] == told
    assert ("1 could not be read and are not counted" in left_out_of(report)) == ("unread" in report)
