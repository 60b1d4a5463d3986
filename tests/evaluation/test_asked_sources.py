"""Which source of a run with several is asked: one that the objective was trained on, or none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_up import FACTS, config, tokenizer

from vlp.config import ConfigError
from vlp.inference import TrainedModel
from vlp.run_folder import build_run

TASK = "{name: vqa, sampling_ratio: RATIO, objectives: [{type: answer_classification}]}"
RETRIEVAL = "{name: retrieval, sampling_ratio: {captions: 1}, objectives: [{type: pair_ranking}]}"


def trained(folder: Path, sources: list[str], groups: list[str], group: str | None = None) -> TrainedModel:
    listed = ", ".join(f"{{name: {name}, path: {name}}}" for name in sources)
    layout = ["model.layout=[CLS, question, caption, SEP, regions]", "model.layout_types=[0, 0, 0, 0, 1]"]
    segments = ["model.max_tokens={question: 20, caption: 20}", "model.embedder.positions=50"]
    own = [f"data.sources=[{listed}]", f"objectives=[{', '.join(groups)}]"]
    settings, words = config(folder, [*layout, *segments, *own]), tokenizer(folder)
    facts = replace(FACTS, fingerprints=dict.fromkeys(sources, "0"), answer_names={"questions": ["no", "yes"]})
    model, objectives, _ = build_run(settings, words, facts)
    return TrainedModel(model, objectives, words, settings, facts, group).eval()


def test_the_first_source_is_not_taken_for_another(tmp_path: Path) -> None:
    """It would lend its task's token, its segments and its answers."""
    groups = [TASK.replace("RATIO", "{questions: 1}"), RETRIEVAL]
    model = trained(tmp_path, ["questions", "captions"], groups)
    assert model.answer_names == ["no", "yes"]
    with pytest.raises(ConfigError, match=r"pair_ranking was trained on other sources .*: --task retrieval"):
        model.matching()
    other = trained(tmp_path, ["captions", "questions"], groups)
    other.matching()
    with pytest.raises(ConfigError, match=r"answer_classification .* the run's first, captions; .* --task vqa"):
        other.task()
    asked = trained(tmp_path, ["captions", "questions"], groups, "vqa")
    assert (asked.source.name, asked.answer_names) == ("questions", ["no", "yes"])
    assert trained(tmp_path, ["questions", "captions"], groups, "retrieval").matching()


def test_a_group_is_asked_by_one_of_its_sources(tmp_path: Path) -> None:
    """Whose task's token, segments and data are taken then; the name of a group comes first."""
    sources = ["first", "captions", "questions", "retrieval"]
    groups = [TASK.replace("RATIO", "{questions: 1, first: 1, retrieval: 1}"), RETRIEVAL]
    for asked, source in (("vqa", "first"), ("first", "first"), ("questions", "questions"), ("retrieval", "captions")):
        assert trained(tmp_path, sources, groups, asked).source.name == source
    with pytest.raises(ConfigError, match=r"task.*qestions.*did you mean 'questions'"):
        trained(tmp_path, sources, groups, "qestions")
    shared = [TASK.replace("RATIO", "{questions: 1, captions: 1}"), RETRIEVAL]
    with pytest.raises(ConfigError, match="captions"):  # of two groups: which is meant?
        trained(tmp_path, ["questions", "captions"], shared, "captions")


def test_answers_of_a_group_whose_first_source_has_none(tmp_path: Path) -> None:
    model = trained(tmp_path, ["captions", "questions"], [TASK.replace("RATIO", "1")])
    assert model.answer_names == ["no", "yes"]


@pytest.mark.parametrize("other", ["matching, swap_probability: 0.5", "answer_classification"])
def test_pair_ranking_is_alone_in_its_group(other: str, tmp_path: Path) -> None:
    """In whichever order: its negatives would have no targets, or its pairs be swapped."""
    for kinds in (("pair_ranking", other), (other, "pair_ranking")):
        listed = ", ".join(f"{{type: {kind}}}" for kind in kinds)
        with pytest.raises(ConfigError, match=r"objectives\.0: pair_ranking adds pairs of its own"):
            trained(tmp_path, ["questions"], [f"{{name: a, sampling_ratio: 1, objectives: [{listed}]}}"])
