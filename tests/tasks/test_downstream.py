"""The systems on the tasks of their papers: each is trained, measured, and writes the benchmark's own file."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.shards.reader import ShardReader
from vlp.commands import evaluate, list_configs, retrieve, train
from vlp.commands.downstream import CELLS, TASKS, Cell
from vlp.config import ConfigError, load_config
from vlp.fine_tuning import load_for_system, model_for_task

SIZES = {
    **dict.fromkeys(("hidden_size", "visual_hidden_size", "cross_hidden_size", "pooled_size"), 16),
    **dict.fromkeys(("mlp_size", "visual_mlp_size"), 16),
    **dict.fromkeys(("layers", "heads", "visual_heads", "cross_heads"), 2),
}
QUICK = [
    *("trainer.max_steps=1", "trainer.accelerator=cpu", "trainer.devices=1", "data.micro_batch=4", "data.workers=0"),
    *("data.micro_batches_per_step=1", "validation.every=1", "validation.micro_batches=1", "checkpoint.every=1"),
    *("data.tokenizer.lowercase=true", "optim.warmup_steps=0"),
]
# the benchmark's own file of each task, or the report where it has none
WRITTEN = {
    "VQA": "predictions-val.json",
    "GQA": "predictions-val.json",
    "VCR": "predictions-val.csv",
    "NLVR2": "predictions-val.csv",
    "VE": "predictions-val.json",
    "GRE": "predictions-val.json",
    "phrases": "predictions-val.json",
    "ITIR": "retrieval-val-6.json",
    "ZSIR": "retrieval-val-6.json",
    "IC": "captions-val.json",
    "NOC": "captions-val.json",
}


def overrides_of(model: dict[str, Any], source: Any, folder: Path) -> list[str]:
    """What makes a configuration tiny, on a few scenes that ask what its own do."""
    made = [f"model.{key}={value}" for key, value in SIZES.items() if key in model]
    if "embedder" in model:
        made.append("model.embedder.vocab_size=1000")
    if "schedule" in model:
        kinds = sorted(set(model["schedule"]))
        made.append(f"model.schedule=[{', '.join(kind for kind in ('text', 'visual', 'cross') if kind in kinds)}]")
    asks = source.scenes.asks
    scenes = f"{{train: 24, val: 6, seed: 0, asks: {asks}}}"
    made += [f"data.sources.0.path={asks}", f"data.sources.0.scenes={scenes}", f"data.root={folder}"]
    return [*made, f"data.tokenizer.vocabulary={asks}/vocabulary.txt"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


# 12-in-1, which trains on all tasks at once: tests/test_twelve_in_one.py
FINE_TUNED = [cell for cell in CELLS if TASKS[cell.task].recipe is not None and cell.system != "twelve_in_one"]
TRIED = [cell for cell in CELLS if TASKS[cell.task].recipe is None]


def questions_of(folder: Path) -> list[str]:
    """Ids of the held-out questions of a data set, in order: as they stand in its files, or by their samples."""
    asked: list[str] = []
    reader = ShardReader(folder, "val")
    for number in range(len(reader)):
        facts = reader.facts(number)
        if "vcr" in facts:
            asked += [question["annot_id"] for question in facts["vcr"]]
        else:
            numbered = [f"{reader.key(number)}/{place}" for place in range(len(facts["questions"]))]
            asked += facts.get("question_ids", numbered)
    return asked


def check_written(task: str, path: Path, data: Path) -> None:
    """That the benchmark's file has its form, with every question once."""
    if task == "ITIR":
        assert json.loads(path.read_text())["images"] == 6
    elif task in ("IC", "NOC"):
        written = json.loads(path.read_text())
        assert [one.keys() for one in written] == [{"image_id", "caption"}] * 6
    elif path.suffix == ".csv":
        rows = list(csv.reader(path.open()))
        asked = questions_of(data)
        if task == "VCR":
            assert rows[0][:2] == ["annot_id", "answer_0"]
            assert len(rows[0]) == 1 + 4 + 16
            assert [row[0] for row in rows[1:]] == asked
        else:
            assert [row[0] for row in rows] == asked
            assert {row[1] for row in rows} <= {"True", "False"}
    else:
        written = json.loads(path.read_text())
        own = {"VQA": "question_id", "GQA": "questionId"}.get(task)
        if own is not None:
            assert [one[own] for one in written] == questions_of(data)
        assert written


@pytest.mark.parametrize("cell", FINE_TUNED, ids=lambda cell: f"{cell.system}-{cell.task}")
def test_fine_tuned(
    cell: Cell, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the commands of the table, with the recipe for the embedded scenes in the place of that for official files."""
    monkeypatch.chdir(tmp_path)
    task = TASKS[cell.task]
    assert task.scenes is not None
    config = load_for_system(task.scenes, cell.system)
    given = [*QUICK, *overrides_of(config.model, config.data.sources[0], data), "init=null"]
    given += [cell.changed.strip("'")] if cell.changed else []
    given += ["objectives.0.objectives.0.most_written=6"] if cell.task in ("IC", "NOC") else []
    assert train.main([task.scenes, "--system", cell.system, *given]) == 0, capsys.readouterr().err
    command, _, *words = shlex.split(task.measure.removeprefix("vlp "))
    words = [word.replace("5", "2") for word in words]
    if "--split" in words:  # the scenes have no test
        del words[words.index("--split") : words.index("--split") + 2]
    if "--data" in words:
        words[words.index("--data") + 1] = str(data / config.data.sources[0].scenes.asks)
    measure = {"evaluate": evaluate.main, "retrieve": retrieve.main}[command]
    assert measure([config.run_dir, *words, *(["--pictures", "0"] if command == "retrieve" else [])]) == 0, (
        capsys.readouterr().err
    )
    check_written(cell.task, Path(config.run_dir) / WRITTEN[cell.task], data / config.data.sources[0].scenes.asks)


# dual encoders and token decoders: tests/test_tools_dual.py, test_tools_region_towers.py and test_tools_generate.py
@pytest.mark.parametrize("system", [cell.system for cell in TRIED if "embedder" in load_config(cell.system).model])
def test_zero_shot_retrieval(
    system: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(system)
    given = [*QUICK, *overrides_of(config.model, load_config("retrieval/uniter_small").data.sources[0], data)]
    assert train.main([system, *given]) == 0, capsys.readouterr().err
    assert retrieve.main([config.run_dir, "--pictures", "0", "--split", "val"]) == 0, capsys.readouterr().err
    check_written("ITIR", Path(config.run_dir) / WRITTEN["ZSIR"], data)


def test_the_table_names_what_is_there() -> None:
    """Every command is one that trains, of a configuration that is there, and whose run it then measures."""
    systems = {cell.system for cell in CELLS}
    assert len(systems) == 16, "the sixteen systems of the survey, each in one size"
    assert {cell.task for cell in CELLS} == TASKS.keys()
    assert len({(cell.system, cell.task) for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        train_command, measure = cell.commands()
        words = shlex.split(train_command)
        assert words[:2] == ["vlp", "train"]
        config, _ = train.read_arguments(words[2:])
        assert config.run_dir == shlex.split(measure)[2]
        names = {*(group.name for group in config.objectives), *(source.name for source in config.data.sources)}
        assert cell.group is None or cell.group in names


def test_the_list_shows_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_configs.main(["tasks"]) == 0
    told = capsys.readouterr().out
    for cell in CELLS:
        assert all(command in told for command in cell.commands())
        assert cell.figure in told


@pytest.mark.parametrize(
    ("system", "task", "layout", "kinds"),
    [
        ("visualbert_base", "vqa/uniter_small", "CLS question SEP regions", [0, 0, 0, 0]),
        ("vlp_base", "vqa/uniter_small", "CLS regions SEP:image question SEP", [0, 0, 0, 1, 1]),
        ("oscar_base", "nlvr2/uniter_small", "CLS question SEP tags SEP+tags regions regions_2", [0, 0, 0, 1, 1, 0, 0]),
        ("lxmert_base", "retrieval/uniter_small", "CLS caption SEP regions", [0, 0, 0, 0]),
        ("vlbert_base", "captioning/oscar_small", "CLS caption whole regions END", [0, 0, 2, 2, 2]),
        (
            "visualbert_base",
            "vcr/uniter_small",
            "CLS question SEP answer SEP-rationale SEP+rationale rationale SEP+rationale regions",
            [0, 0, 0, 1, 1, 1, 1, 1, 0],
        ),
    ],
)
def test_the_texts_of_the_task_in_the_place_of_the_caption(
    system: str, task: str, layout: str, kinds: list[int]
) -> None:
    theirs, ours = load_config(system).model, load_config(task).model
    made = model_for_task(theirs, ours)
    assert made["layout"] == layout.split()
    assert made["layout_types"] == kinds
    assert made["max_tokens"] == {
        item: ours["max_tokens"].get(item, theirs["max_tokens"].get(item))
        for item in (name for name in made["layout"] if name in ours["max_tokens"] or name == "tags")
    }
    assert made["embedder"] == theirs["embedder"]
    assert ("layout_causal" in made) == ("caption" in made["layout"] and task.startswith("captioning"))
    assert made.get("pooler", True) or task.startswith("captioning")


def test_a_run_of_the_system_is_begun_with() -> None:
    made = load_for_system("vqa/uniter_small", "vilbert_base", ["model.layers=3"])
    assert made.init is not None
    assert made.init.path == load_config("vilbert_base").run_dir
    assert made.model["layers"] == 3, "overrides come last"
    assert made.data == load_config("vqa/uniter_small").data
    assert made.run_dir == "runs/vqa_vilbert_base"
    assert load_for_system("vqa/vqa_v2_uniter_base", "vilbert_base").init is None


def test_what_does_not_fit_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for system, message in (("none_such", "no config file none_such"), ("clip_small", "is no objective of this model")):
        given = ["vqa/uniter_small", "--system", system, f"run_dir={tmp_path}/run", f"data.root={tmp_path}", *QUICK]
        given += ["data.sources.0.scenes={train: 8, val: 2, seed: 0, asks: questions}", "init=null"]
        assert train.main(given) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "half.yaml").write_text("seed: 1\nmodel: {layout: [CLS, caption]}\n")
    with pytest.raises(ConfigError):
        load_for_system("vqa/uniter_small", str(tmp_path / "half.yaml"))
