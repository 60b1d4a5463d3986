"""`init`: what fits is loaded, the rest is named; weights of another vocabulary are refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import made_up
import pytest
import torch
import two_streams_small
from torch import nn

from vlp.checkpoints.key_map import KeyMismatchError
from vlp.config import ConfigError, InitConfig
from vlp.initial_weights import describe, load_initial_weights
from vlp.run_folder import RunFolder, answers_of_objectives, build_run
from vlp.text.wordpiece import WordPiece


class Run(nn.Module):
    """Model and objectives of the made-up configuration with overrides, from a seed."""

    def __init__(self, folder: Path, seed: int, *overrides: str):
        super().__init__()
        folder.mkdir(exist_ok=True)
        self.config = made_up.config(folder, list(overrides))
        self.tokenizer = made_up.tokenizer(folder)
        torch.manual_seed(seed)
        self.model, self.objectives, _ = build_run(self.config, self.tokenizer, made_up.FACTS)
        self.answers = answers_of_objectives(self.config, made_up.FACTS)

    def write(self) -> Path:
        run = RunFolder(Path(self.config.run_dir))
        run.create(self.config, self.tokenizer, made_up.FACTS)
        for name in ("model.safetensors", "best.safetensors"):
            run.write_weights(name, self.state_dict(), 0)
        return run.path

    def begin(self, path: Path, **lists: list[str]) -> str:
        init = InitConfig(str(path), **lists)  # type: ignore[arg-type]
        return describe(init, load_initial_weights(init, self, self.tokenizer, self.answers))


STAGE_TWO = [  # one objective fewer and one more, and a third type
    "model.embedder.types=3",
    "objectives.2.objectives.0.type=masked_region_class",
]


@pytest.mark.parametrize("place", [".", "model.safetensors", "best.safetensors"])
def test_the_weights_of_a_run_of_the_same_system(tmp_path: Path, place: str) -> None:
    one, two = Run(tmp_path / "one", 1), Run(tmp_path / "two", 2)
    path = one.write() / place
    assert two.begin(path) == f"{len(one.state_dict())} tensors begin with the weights of {path}"
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_another_set_of_objectives_has_to_be_listed(tmp_path: Path) -> None:
    one, two = Run(tmp_path / "one", 1), Run(tmp_path / "two", 2, *STAGE_TWO)
    path, before = one.write(), {name: value.clone() for name, value in two.state_dict().items()}
    with pytest.raises(KeyMismatchError) as caught:
        two.begin(path)
    assert str(caught.value).splitlines() == [
        f"init: the weights of {path} do not fit the configuration:",
        "- types of tokens: 2 rows in the file, 3 here; set model.embedder.types=2, or load the first rows that"
        " both have: init.may_differ_in_rows: ['type_table']",
        "- the head masked_region_class is not in the file (6 tensors); to begin at random: init.may_be_missing:"
        r" ['^objectives\.masked_region_class($|\.)']",
        "- the head masked_region_regression is in the file alone (5 tensors); to leave it out: init.may_be_unused:"
        r" ['^objectives\.masked_region_regression($|\.)']",
    ]
    assert all(torch.equal(value, before[name]) for name, value in two.state_dict().items()), "nothing was loaded"
    lists = {"may_be_missing": ["masked_region_class"], "may_be_unused": ["masked_region_regression"]}
    with pytest.raises(KeyMismatchError, match=r"types of tokens: 2 rows") as caught:
        two.begin(path, **lists)
    assert "head" not in str(caught.value)
    said = two.begin(path, **lists, may_differ_in_rows=["type_table"])
    assert said.splitlines()[1:] == [
        "- the head masked_region_class: not in the file, begins at random (6 tensors)",
        "- the head masked_region_regression: in the file alone, not used (5 tensors)",
        "- types of tokens: 2 rows in the file, 3 here: the first 2 loaded, 1 new rows begin at random",
    ]
    after, theirs = two.state_dict(), one.state_dict()
    for name, value in after.items():
        if name == "model.embedder.type_table.weight":
            assert torch.equal(value, torch.cat([theirs[name], before[name][2:]]))
        else:
            assert torch.equal(value, before[name] if "masked_region_class" in name else theirs[name])


def test_fewer_rows_take_the_first(tmp_path: Path) -> None:
    one, two = Run(tmp_path / "one", 1, "model.embedder.positions=40"), Run(tmp_path / "two", 2)
    two.begin(one.write(), may_differ_in_rows=["position_table"])
    tables = [run.model.embedder.position_table.weight for run in (one, two)]
    assert torch.equal(tables[0][:32], tables[1])


def test_another_shape_has_to_be_missing_and_unused(tmp_path: Path) -> None:
    one, two = Run(tmp_path / "one", 1, "model.mlp_size=48"), Run(tmp_path / "two", 2)
    path, before = one.write(), two.state_dict()["model.encoder.layers.0.mlp_in.weight"].clone()
    for lists in ({"may_be_missing": ["mlp_"]}, {"may_be_unused": ["mlp_"]}, {"may_differ_in_rows": ["mlp_in"]}):
        with pytest.raises(KeyMismatchError, match="other shape"):
            two.begin(path, **lists)
    two.begin(path, may_be_missing=["mlp_(in|out)"], may_be_unused=["mlp_(in|out)"])
    assert torch.equal(two.model.encoder.layers[0].mlp_in.weight, before)
    assert torch.equal(
        two.model.encoder.layers[0].attention.qkv.weight, one.model.encoder.layers[0].attention.qkv.weight
    )


def test_a_run_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    one, two = Run(tmp_path / "one", 1), Run(tmp_path / "two", 2)
    path = one.write()
    words = two.tokenizer.tokens
    for tokens, lowercase in (([*words[:-2], words[-1], words[-2]], False), (words[:-1], False), (words, True)):
        (tmp_path / "other.txt").write_text("\n".join(tokens) + "\n")
        two.tokenizer = WordPiece(tmp_path / "other.txt", lowercase)
        with pytest.raises(ConfigError, match=r"vocabulary\.txt is another vocabulary than .*other\.txt"):
            two.begin(path)


def test_what_is_no_run_or_no_weights(tmp_path: Path) -> None:
    two = Run(tmp_path / "two", 2)
    with pytest.raises(ConfigError, match=r"there is no run in .*nowhere"):
        two.begin(tmp_path / "nowhere")
    path = Run(tmp_path / "one", 1).write()
    with pytest.raises(FileNotFoundError, match=r"other\.safetensors"):
        two.begin(path / "other.safetensors")
    (path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        two.begin(path)
    with pytest.raises(ConfigError, match="unknown key 'brt'; did you mean 'bert'"):
        two.begin(path, importer="brt")  # type: ignore[arg-type]


def told(run: Run, path: Path, **lists: list[str]) -> list[str]:
    with pytest.raises(KeyMismatchError) as caught:
        run.begin(path, **lists)
    lines = str(caught.value).splitlines()[1:]
    assert max(map(len, lines)) < 500, "words, not lists of keys"
    return lines


def test_the_patterns_that_are_offered_mend_it(tmp_path: Path) -> None:
    one, two = Run(tmp_path / "one", 1), Run(tmp_path / "two", 2, "model.layers=3", *STAGE_TWO[1:])
    path = one.write()
    lines = told(two, path)
    assert lines[0].startswith("- model.encoder.layers 2 is not in the file (")
    lists: dict[str, list[str]] = {"may_be_missing": [], "may_be_unused": []}
    for line in lines:
        key, pattern = re.findall(r"init\.(\w+): \['(.*)'\]$", line)[0]
        lists[key].append(pattern)
    assert len(lists["may_be_missing"]) == 2
    assert len(lists["may_be_unused"]) == 1
    assert "model.encoder.layers 2: not in the file, begins at random" in two.begin(path, **lists)


def test_sizes_that_differ_are_told_in_words(tmp_path: Path) -> None:
    one = Run(tmp_path / "one", 1).write()
    (wide,) = told(Run(tmp_path / "wide", 2, "model.hidden_size=64"), one)
    assert wide.startswith("- hidden size: 32 in the file, 64 in the model (model.hidden_size), so that")
    long = Run(tmp_path / "long", 2, "model.embedder.positions=60")
    (line,) = told(long, one)
    assert line.startswith("- positions: 32 rows in the file, 60 here; set model.embedder.positions=32, or")
    assert "28 new rows begin at random" in long.begin(one, may_differ_in_rows=["position_table"])
    facts = made_up.FACTS
    try:
        made_up.FACTS = replace(facts, feature_size=20, class_names=facts.class_names[:5])
        lines = told(Run(tmp_path / "other", 2), one)
    finally:
        made_up.FACTS = facts
    assert lines[0].startswith("- region features: 24 numbers in the file, 20 in the model (the data's manifest")
    assert any(line.startswith("- the head masked_region_distribution chooses among others") for line in lines)


def test_another_topology_is_one_line(tmp_path: Path) -> None:
    one, two = Run(tmp_path / "one", 1), Run(tmp_path / "two", 2)
    two.model = two_streams_small.build(two_streams_small.LXMERT)
    (line,) = told(two, one.write(), may_be_missing=["^objectives"], may_be_unused=["^objectives"])
    assert line.startswith("- they are those of a model of type single_stream, and the configuration's")
    assert "is of type two_stream" in line


QUESTIONS = [
    "model.layout=[CLS, question, SEP, regions]",
    "model.max_tokens={question: 20}",
    "objectives=[{name: vqa, sampling_ratio: 1, objectives: [{type: answer_classification}]}]",
]


def test_answers_in_another_order_or_of_another_number(tmp_path: Path) -> None:
    """The shapes alone would not tell the first."""
    facts = made_up.FACTS
    try:
        made_up.FACTS = replace(facts, answer_names={"made_up": ["red", "blue", "two"]})
        path = Run(tmp_path / "one", 1, *QUESTIONS).write()
        same = Run(tmp_path / "same", 2, *QUESTIONS)
        same.begin(path)
        made_up.FACTS = replace(facts, answer_names={"made_up": ["red", "two", "blue"]})
        same = Run(tmp_path / "other", 2, *QUESTIONS)
        with pytest.raises(ConfigError, match=r"head answer_classification of .* chooses among 3 answers"):
            same.begin(path)
        renamed = [*QUESTIONS[:2], QUESTIONS[2].replace("classification}", "classification, name: new}")]
        heads = ["^objectives"]
        said = Run(tmp_path / "new", 2, *renamed).begin(path, may_be_missing=heads, may_be_unused=heads)
        assert "the head new: not in the file, begins at random" in said
        made_up.FACTS = replace(facts, answer_names={"made_up": ["red", "two"]})
        more = Run(tmp_path / "more", 2, *QUESTIONS)
        (line,) = told(more, path)
        assert "the head answer_classification chooses among others or has another size (3 rows in the file, 2" in line
        said = more.begin(path, may_be_missing=heads, may_be_unused=heads)
        assert "the head answer_classification: of another shape in the file, begins at random (2 tensors)" in said
    finally:
        made_up.FACTS = facts
