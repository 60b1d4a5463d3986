"""`init`: what fits is loaded, the rest is named; words of another vocabulary are taken by token."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import made_up
import pytest
import tokens_small
import torch
import two_streams_small
from safetensors.torch import save_file
from torch import nn

from vlp.checkpoints.key_map import KeyMap, KeyMismatchError, export_state
from vlp.config import ConfigError, InitConfig
from vlp.initial_weights import describe, load_initial_weights
from vlp.interfaces import Batch, Images, Segment, Texts
from vlp.objectives.masked_language import TokenRows
from vlp.registry import IMPORTERS
from vlp.run_folder import RunFolder, answers_of_objectives, build_run
from vlp.text.clip_bpe import ClipBytePairs
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


NEW_WORDS = ["blue", "##s", "w7", "red", "w3"]
TABLES = ["model.embedder.word_table.weight", "objectives.masked_language.bias"]


def with_vocabulary(run: Run, path: Path, tokens: list[str], lowercase: bool = False) -> Run:
    """The run with a vocabulary of its own; every bias of a word is a number of its own."""
    path.write_text("\n".join(tokens) + "\n")
    run.tokenizer = WordPiece(path, lowercase)
    with torch.no_grad():
        run.objectives["masked_language"].bias.normal_()
    return run


@pytest.mark.parametrize("rows", [45, 50, 60])
def test_word_vectors_by_token(tmp_path: Path, rows: int) -> None:
    """Of another vocabulary, whatever the numbers of the tokens; the table may have another length."""
    one = Run(tmp_path / "one", 1)
    words = one.tokenizer.tokens
    with_vocabulary(one, tmp_path / "one.txt", words)
    path = one.write()
    tokens = [*NEW_WORDS[:2], *(w for w in reversed(words) if w not in ("w0", "w3", "w7", "w11")), *NEW_WORDS[2:]]
    two = Run(tmp_path / "two", 2, f"model.embedder.vocab_size={max(rows, len(tokens))}")
    with_vocabulary(two, tmp_path / "other.txt", tokens)
    before = {name: value.clone() for name, value in two.state_dict().items()}
    said = two.begin(path).splitlines()
    assert said == [
        f"{len(one.state_dict())} tensors begin with the weights of {path}",
        f"- word vectors by token, since {path}/vocabulary.txt is another vocabulary than {tmp_path}/other.txt: 43 of"
        " its 46 tokens begin with those of the weights, 3 are new and begin at random, as 'blue', '##s', 'red'; 2 of"
        " the weights are not used",
    ]
    after, theirs = two.state_dict(), one.state_dict()
    for name, value in after.items():
        if name not in TABLES:
            assert torch.equal(value, theirs[name]), name
            continue
        assert len(value) == max(rows, len(tokens))
        for number, row in enumerate(value):
            token = tokens[number] if number < len(tokens) else None
            expected = theirs[name][words.index(token)] if token in words else before[name][number]
            assert torch.equal(row, expected), (name, number, token)
    assert not torch.equal(before[TABLES[0]][0], theirs[TABLES[0]][0])


@pytest.mark.parametrize("first", [True, False])
def test_a_longer_vocabulary_says_the_same_of_old_words(tmp_path: Path, first: bool) -> None:
    """Whether the old words come first or not: the same states and, of the old words, the same logits."""
    one = Run(tmp_path / "one", 1)
    words = one.tokenizer.tokens
    with_vocabulary(one, tmp_path / "one.txt", words)
    two = Run(tmp_path / "two", 2, "model.embedder.vocab_size=70")
    more = ["blue", "red", "##s"]
    with_vocabulary(two, tmp_path / "two.txt", [*words, *more] if first else [*words[:5], *more, *words[5:]])
    two.begin(one.write())
    logits, captions = [], ["w1 w2 w39", "w4", "w0 w39 w4"]
    for run in (one, two):
        tokens = run.tokenizer.encode(captions)
        count = torch.arange(3)
        images = Images(count, torch.tensor([0, 1, 2, 3]), torch.ones(3, 24), torch.rand(3, 4).sort(1)[0] * 0 + 0.5)
        texts = Texts({"caption": Segment.from_tokens(tokens)}, count)
        batch = Batch(texts, images, torch.stack([count, count], 1), torch.ones(3, dtype=torch.bool))
        run.eval()
        with torch.no_grad():
            encoded = run.model(batch)
            head, at = run.objectives["masked_language"], encoded.tokens["caption"].row
            targets = TokenRows(at, torch.zeros_like(at))
            given, _ = head.predict(encoded, targets, run.model)
        logits.append(given[:, [run.tokenizer.tokens.index(word) for word in words]])
        assert len(given) == 7
    torch.testing.assert_close(*logits, atol=1e-6, rtol=1e-6)


def test_vocabularies_that_words_can_not_be_taken_from(tmp_path: Path) -> None:
    one, two = Run(tmp_path / "one", 1), Run(tmp_path / "two", 2)
    path, words = one.write(), two.tokenizer.tokens
    before = {name: value.clone() for name, value in two.state_dict().items()}
    with pytest.raises(ConfigError, match=r"init\.vocabulary: a run has its vocabulary in its folder"):
        two.begin(path, vocabulary=str(tmp_path / "two.txt"))  # type: ignore[arg-type]
    with_vocabulary(two, tmp_path / "other.txt", words, lowercase=True)
    with pytest.raises(
        ConfigError, match=r"has the tokens of .*other\.txt, but one .*set data\.tokenizer\.lowercase=f"
    ):
        two.begin(path)
    with_vocabulary(two, tmp_path / "other.txt", words[:-1], lowercase=True)
    said = two.begin(path).splitlines()
    assert said[1].endswith(
        "44 of its 44 tokens begin with those of the weights, 0 are new and begin at random; 1 of"
        " the weights are not used"
    )
    assert said[2] == "- warning: texts were read as they are for these weights, and are lower-cased here"
    two.tokenizer = ClipBytePairs()
    two.load_state_dict(before)
    with pytest.raises(ConfigError, match=r"another kind of vocabulary than clip \(WordPiece and ClipBytePairs\)"):
        two.begin(path)
    with_vocabulary(two, tmp_path / "other.txt", [*words, "red"])
    two.model = tokens_small.dalle(tied=True)
    with pytest.raises(ConfigError, match=r"another vocabulary than .*other.txt, and the table of model has rows that"):
        two.begin(path)
    assert tokens_small.dalle().words == tokens_small.WORDS


def test_a_file_whose_vocabulary_is_named(tmp_path: Path) -> None:
    small = ["model.hidden_size=16", "model.layers=1", "model.heads=2", "model.mlp_size=32"]
    small += ["model.embedder.vocab_size=45"]
    one = Run(tmp_path / "one", 1, *small)
    words = one.tokenizer.tokens
    with_vocabulary(one, tmp_path / "old.txt", words)
    layout = IMPORTERS["uniter"]
    lists = {"may_be_missing": ["^objectives.(masked_region|matching|word)"], "may_be_unused": ["^objectives"]}
    save_file(published(one.state_dict(), layout), tmp_path / "uniter.safetensors")
    given = {"importer": "uniter", **lists}
    tokens = [*words[:5], "red", *words[:4:-1]]
    two = Run(tmp_path / "two", 2, *small[:-1], "model.embedder.vocab_size=46")
    with_vocabulary(two, tmp_path / "new.txt", tokens)
    before = two.state_dict()[TABLES[0]].clone()
    place = tmp_path / "uniter.safetensors"
    with pytest.raises(KeyMismatchError, match="vocabulary: 45 rows in the file, 46 here"):
        two.begin(place, **given)  # type: ignore[arg-type]
    said = two.begin(place, vocabulary=str(tmp_path / "old.txt"), **given)  # type: ignore[arg-type]
    assert "45 of its 46 tokens begin with those of the weights, 1 are new and begin at random, as 'red'" in said
    after, theirs = two.state_dict(), one.state_dict()
    for name in TABLES:
        assert torch.equal(after[name][6:], theirs[name][5:].flip(0))
        assert torch.equal(after[name][:5], theirs[name][:5])
    assert torch.equal(after[TABLES[0]][5], before[5])
    (tmp_path / "short.txt").write_text("\n".join(words[:-1]) + "\n")
    with pytest.raises(ConfigError, match=r"has 45 rows, and the vocabulary .*short\.txt has 44 tokens: it isn't"):
        two.begin(place, vocabulary=str(tmp_path / "short.txt"), **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"init\.vocabulary: no vocabulary file .*nowhere\.txt"):
        two.begin(place, vocabulary=str(tmp_path / "nowhere.txt"), **given)  # type: ignore[arg-type]
    same = Run(tmp_path / "same", 3, *small)
    with_vocabulary(same, tmp_path / "again.txt", words)
    assert "by token" not in same.begin(place, vocabulary=str(tmp_path / "old.txt"), **given)  # type: ignore[arg-type]
    assert torch.equal(same.state_dict()[TABLES[0]], theirs[TABLES[0]])
    longer = Run(tmp_path / "longer", 3, *small)
    with_vocabulary(longer, tmp_path / "longer.txt", words[:-1])
    with pytest.raises(ConfigError, match=r"trained with 45 tokens.* has 44.*or name it, init\.vocabulary=FILE"):
        longer.begin(place, **given)  # type: ignore[arg-type]


def published(ours: dict[str, torch.Tensor], layout: KeyMap) -> dict[str, torch.Tensor]:
    """The tensors of a run that a layout knows."""
    return {name: value.clone() for name, value in export_state(ours, layout).items()}


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
