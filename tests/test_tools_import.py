"""tools/import_checkpoint.py as its user runs it, on the small official checkpoints of the parity tests."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden import STATES, Golden
from safetensors.torch import save_file
from torch import Tensor

import vlp
from vlp.checkpoints.key_map import export_state, import_state
from vlp.checkpoints.load import NotFiniteError
from vlp.commands.import_checkpoint import main
from vlp.interfaces import Regions
from vlp.registry import IMPORTERS
from vlp.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "parity" / "golden"
TABLES = ["model.embedder.vocab_size=120", "model.embedder.positions=40", "model.embedder.feature_size=32"]
SIZES = ["model.hidden_size=48", "model.heads=4", "model.mlp_size=96", *TABLES]
TWO_LAYERS, ONE_LAYER = [*SIZES, "model.layers=2"], [*SIZES, "model.layers=1"]
LXMERT = [
    *SIZES, *(f"model.{key}={value}" for key, value in {
        "visual_hidden_size": 48, "visual_heads": 4, "visual_mlp_size": 96, "cross_hidden_size": 48, "cross_heads": 4,
        "schedule": "[text, text, visual, cross, cross]",
    }.items()),
]  # fmt: skip
VLBERT = [  # the golden's has a pooler and matching, which the configuration and the paper do not
    *SIZES, "model.layers=2", "model.embedder.frequencies=4",
    "init.may_be_unused=['^model\\.pooler', '^objectives\\.matching']",
]  # fmt: skip
VLP = [  # the published pretraining has a pooler, which nothing reads
    *SIZES[:3], "model.layers=2", "model.embedder.vocab_size=120", "model.embedder.positions=117",
    "model.embedder.feature_size=20", "model.embedder.classes=12", "init.may_be_unused=['^model\\.pooler']",
]  # fmt: skip
NOT_KEPT = ("answer_head.", "bert.pooler.", "vlbert.pooler.", "vlbert.relationsip_head.", "biOutput.q_dense")
VILBERT = [
    *SIZES, *(f"model.{key}={value}" for key, value in {
        "visual_hidden_size": 40, "visual_heads": 4, "visual_mlp_size": 64, "cross_hidden_size": 32, "cross_heads": 4,
        "schedule": "[text, text, cross, text, visual, cross, text, visual, visual]",
    }.items()),
]  # fmt: skip
VILBERT_HEADS = {  # of 12-in-1, by the names of its heads
    "vil_prediction.logit_fc.0.weight": (64, 32), "vil_prediction.logit_fc.0.bias": (64,),
    "vil_prediction_gqa.logit_fc.3.weight": (15, 64), "vil_binary_prediction.logit_fc.3.bias": (2,),
    "vil_logit.weight": (1, 32), "vil_tri_prediction.bias": (3,), "vision_logit.weight": (1, 40),
    "linguisic_logit.weight": (1, 48),
}  # fmt: skip
CASES = {
    "uniter": ("uniter/pretraining", "uniter_base", TWO_LAYERS),
    "visualbert": ("visualbert/pretraining", "visualbert_base", TWO_LAYERS),
    "oscar": ("oscar/pretraining_2way", "oscar_base", ONE_LAYER),
    "oscar_plus": ("oscar/pretraining_3way", "oscar_plus_base", TWO_LAYERS),
    "vlbert": ("vlbert/pretraining", "vlbert_base", VLBERT),
    "lxmert": ("lxmert/pretraining", "lxmert_base", LXMERT),
    "vilbert": ("vilbert/pretraining_visual_target0", "vilbert_base", VILBERT),
    "vlp": ("vlp/pretrain_s2s", "vlp_base", VLP),
}


def write_vocabulary(path: Path, count: int = 120, start: int = 101, separator: int = 102) -> Path:
    """A vocabulary in which word n is `wn`, with the special tokens where the golden inputs have them."""
    tokens = [f"w{number}" for number in range(count)]
    places = [place for place in range(count) if place not in (start, separator)]
    tokens[start], tokens[separator] = "[CLS]", "[SEP]"
    for place, name in zip(places, ("PAD", "UNK", "MASK"), strict=False):
        tokens[place] = f"[{name}]"
    path.write_text("\n".join(tokens) + "\n")
    return path


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    return write_vocabulary(tmp_path / "vocab.txt")


def weights_of(case: str) -> dict[str, Tensor]:
    golden = Golden.read(GOLDEN / f"{CASES[case][0]}.safetensors")
    return {name: value.clone() for name, value in golden.weights.items()}


def arguments(case: str, file: Path, vocabulary: Path, out: Path, *more: str) -> list[str]:
    _, config, overrides = CASES[case]
    places = [f"--config={ROOT}/configs/{config}.yaml", f"--vocabulary={vocabulary}", f"--out={out}"]
    return [case, str(file), *places, *overrides, *more]


@pytest.mark.parametrize("case", CASES)
def test_every_layout_gives_a_run_with_the_same_weights(case: str, vocabulary: Path, tmp_path: Path) -> None:
    """Imported by the tool, opened by vlp.load and exported again: the file itself, but for what is listed unused."""
    theirs = weights_of(case)
    file, out = tmp_path / "weights.safetensors", tmp_path / "runs" / case
    save_file(theirs, file)
    assert main(arguments(case, file, vocabulary, out)) == 0
    key_map = IMPORTERS[case]
    back = export_state(vlp.load(out).state_dict(), key_map)
    assert all(torch.equal(value, theirs[name]) for name, value in back.items())
    assert all(any(part in name for part in NOT_KEPT) for name in set(theirs) - set(back))


@pytest.mark.parametrize(
    ("layout", "case"),
    [("visualbert_vcr", "multichoice"), ("visualbert_grounding", "flickr_grounding"), ("visualbert_vqa", "vqa")],
)
def test_released_files_of_tasks(layout: str, case: str) -> None:
    """The official program's have one more `bert.` before every key of the official code's."""
    theirs = Golden.read(GOLDEN / "visualbert" / f"{case}.safetensors").weights
    released = {f"bert.{name}": value for name, value in theirs.items()}
    expected, found = (
        import_state(dict(theirs), IMPORTERS[layout]),
        import_state(released, IMPORTERS[f"{layout}_released"]),
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    back = export_state(found, IMPORTERS[f"{layout}_released"])
    assert all(torch.equal(value, released[name]) for name, value in back.items())
    assert all("flickr_attention.value" in name for name in set(released) - set(back))


def test_imported_model_computes_the_official_numbers(tmp_path: Path) -> None:
    """From the command line to `embed`: text through the vocabulary, regions as they are."""
    golden = Golden.read(GOLDEN / "uniter" / "pretraining.safetensors")
    g = golden.inputs
    words, regions = (~g["ot_txt_pad"]).sum(1), (~g["ot_img_pad"]).sum(1)
    start, separator = int(g["input_ids"][0, 0]), int(g["input_ids"][0, words[0] - 1])
    vocabulary = write_vocabulary(tmp_path / "vocab.txt", 120, start, separator)
    names = vocabulary.read_text().split("\n")
    # a special token in the midst of a golden text can't be written as text
    captions = [" ".join(names[i] for i in ids[1 : n - 1]) for ids, n in zip(g["input_ids"], words, strict=True)]
    assert not any("[" in caption for caption in captions)
    pictures = [
        Regions(features[:n], boxes[:n, :4])
        for features, boxes, n in zip(g["img_feat"], g["img_pos_feat"], regions, strict=True)
    ]
    file, out = tmp_path / "uniter.pt", tmp_path / "run"
    torch.save(golden.weights, file)
    command = [sys.executable, str(ROOT / "tools" / "import_checkpoint.py")]
    result = subprocess.run(
        [*command, *arguments("uniter", file, vocabulary, out)],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for said in (
        "keys read\n",
        "  uniter.encoder.layer.{i}.attention.self.query.weight (x 2)\n",
        "2 keys the same again\n  cls.predictions.decoder.weight\n  feat_regress.weight\n",
        f"written: {out}\n",
    ):
        assert said in result.stdout, said
    trained = vlp.load(out)
    torch.testing.assert_close(trained.embed(captions, pictures), golden.outputs["pooled_output"], **STATES)
    assert trained.facts.class_names == [f"class {number}" for number in range(golden.config["img_label_dim"])]
    assert trained.config.init is not None
    assert (trained.config.init.path, trained.config.init.importer) == (str(file), "uniter")


def test_twelve_in_one(vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its trunk and pretraining heads are ViLBERT's; the heads of the twelve tasks are named as not used."""
    theirs = weights_of("vilbert")
    heads = {name: torch.randn(size) for name, size in VILBERT_HEADS.items()}
    torch.save({f"module.{name}": value for name, value in {**theirs, **heads}.items()}, tmp_path / "multi.bin")
    given = arguments("vilbert", tmp_path / "multi.bin", vocabulary, tmp_path / "run")
    assert main(["twelve_in_one", *given[1:]]) == 0
    said = capsys.readouterr().out
    for name in heads:
        assert f"  {name.replace('.0.', '.{i}.').replace('.3.', '.{i}.')}" in said
    back = export_state(vlp.load(tmp_path / "run").state_dict(), IMPORTERS["vilbert"])
    assert all(torch.equal(value, theirs[name]) for name, value in back.items())
    assert main(["vilbert", *given[1:-1], f"--out={tmp_path / 'other'}"]) == 1
    assert "vil_logit.weight" in capsys.readouterr().err


def test_tokens_of_tasks_and_dynamic_attention(vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Files of models with these options need a model with them."""
    theirs = weights_of("vilbert")
    more = {"bert.embeddings.task_embeddings.weight": torch.randn(20, 48)}
    for layer in range(len({name for name in theirs if name.endswith("self.query.bias") and ".v_layer." in name})):
        for part in "qk":
            begin = f"bert.encoder.v_layer.{layer}.attention.self.dyLinear_{part}"
            more |= {f"{begin}.weight": torch.randn(40, 48), f"{begin}.bias": torch.randn(40)}
    save_file(theirs | more, tmp_path / "w.safetensors")
    given = arguments("vilbert", tmp_path / "w.safetensors", vocabulary, tmp_path / "run")
    assert main(["twelve_in_one", *given[1:]]) == 1
    said = capsys.readouterr().err
    assert "task_table" in said
    assert "model.visual_gates.0 is in the file alone (2 tensors)" in said
    options = [
        "model.dynamic_attention=true", "model.embedder.tasks=20", "model.embedder.task_tokens={scenes: 1}",
        "model.layout=[CLS, TASK, caption, SEP, whole, regions]", "model.layout_types=[0, 0, 0, 0, 0, 0]",
    ]  # fmt: skip
    assert main(["twelve_in_one", *given[1:], *options]) == 0
    back = export_state(vlp.load(tmp_path / "run").state_dict(), IMPORTERS["vilbert"])
    assert more.keys() <= back.keys()
    assert all(torch.equal(value, (theirs | more)[name]) for name, value in back.items())


def test_classes_may_be_named(vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_file(weights_of("uniter"), tmp_path / "w.safetensors")
    names = tmp_path / "names.txt"
    for count, code in ((21, 0), (20, 1)):
        names.write_text("".join(f"thing {number}\n" for number in range(count)))
        out = tmp_path / str(count)
        given = arguments("uniter", tmp_path / "w.safetensors", vocabulary, out, f"--classes={names}")
        assert main(given) == code
        assert out.exists() == (code == 0)
    assert "(21 rows in the file, 20" in capsys.readouterr().err
    assert vlp.load(tmp_path / "21").facts.class_names[20] == "thing 20"


def test_wrapped_names_are_told(vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    theirs = weights_of("uniter")
    wrapped = {f"module._orig_mod.{name}": value for name, value in theirs.items()}
    torch.save({"model": wrapped, "args": argparse.Namespace(x=1), "epoch": 3}, tmp_path / "w.pt")
    assert main(arguments("uniter", tmp_path / "w.pt", vocabulary, tmp_path / "run")) == 0
    said = f"- the names of all {len(theirs)} tensors are read without _orig_mod. and module.\n"
    assert said in capsys.readouterr().out
    back = export_state(vlp.load(tmp_path / "run").state_dict(), IMPORTERS["uniter"])
    assert all(torch.equal(value, theirs[name]) for name, value in back.items())
    torch.save({f"net.{name}": value for name, value in weights_of("lxmert").items()}, tmp_path / "w.pt")
    assert main(arguments("uniter", tmp_path / "w.pt", vocabulary, tmp_path / "other")) == 1
    assert "it has the layout lxmert" in capsys.readouterr().err
    torch.save({f"net.{name}": value for name, value in theirs.items() if "itm" not in name}, tmp_path / "w.pt")
    assert main(arguments("uniter", tmp_path / "w.pt", vocabulary, tmp_path / "other")) == 1
    told = capsys.readouterr().err
    assert "missing: itm_output" in told
    assert "are read without net." in told


def test_numbers_that_are_not_finite_are_named(vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    theirs = weights_of("uniter")
    save_file(theirs, tmp_path / "good.safetensors")
    assert main(arguments("uniter", tmp_path / "good.safetensors", vocabulary, tmp_path / "run")) == 0
    theirs["itm_output.bias"][1] = torch.nan
    save_file(theirs, tmp_path / "bad.safetensors")
    assert main(arguments("uniter", tmp_path / "bad.safetensors", vocabulary, tmp_path / "other")) == 1
    assert "tensors hold numbers that are not finite: objectives.matching.classify.bias (1 of 2)" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "other").exists()
    state = vlp.load(tmp_path / "run").state_dict()  # a run of ours that was written so
    name = next(name for name in state if name.endswith("word_table.weight"))
    state[name][0] = torch.inf
    RunFolder(tmp_path / "run").write_weights("model.safetensors", state, 0)
    with pytest.raises(NotFiniteError, match=rf"run/model\.safetensors: 1 of \d+ tensors .*: {re.escape(name)}"):
        vlp.load(tmp_path / "run")


class Code:
    """What unpickling runs."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, ("unpickled",)


def file_with_code(path: Path) -> None:
    torch.save({**weights_of("uniter"), "note": Code()}, path)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Code()))


def torch_script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but the form in which CLIP's weights were first published
        torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(path)


def of_lxmert(path: Path) -> None:
    torch.save(weights_of("lxmert"), path)


def of_uniter(path: Path) -> None:
    torch.save(weights_of("uniter"), path)


def one_key_less_one_more(path: Path) -> None:
    state = weights_of("uniter")
    state["itm_outputs.weight"] = state.pop("itm_output.weight")
    torch.save(state, path)


@pytest.mark.parametrize(
    ("make", "more", "messages"),
    [
        (file_with_code, [], ["could run code", "weights alone, and nothing else is loaded"]),
        (torch_script, [], ["a TorchScript archive, which holds code"]),
        (plain_pickle, [], ["nothing else is loaded"]),
        (lambda path: path.write_bytes(b"PK\x03\x04 half a file"), [], ["it is damaged"]),
        (lambda path: path.write_bytes(b""), [], ["it is damaged"]),
        (lambda path: torch.save([torch.ones(1)], path), [], ["not a state dict of tensors; it holds: list"]),
        (lambda path: torch.save({"epoch": 3}, path), [], ["it holds: epoch"]),
        (lambda path: torch.save({"args": argparse.Namespace()}, path), [], ["it holds: args"]),
        (lambda path: None, [], ["no weights file"]),
        (of_lxmert, [], ["does not have the layout uniter", "uniter.embeddings", "it has the layout lxmert"]),
        (one_key_less_one_more, [], ["missing: itm_output.weight", "not expected: itm_outputs.weight"]),
        (of_uniter, ["model.layers=3"], ["2 is not in the file (12 tensors)", "may_be_missing: ['^model"]),
        (of_uniter, ["model.mlp_size=64"], ["(96, 48) in the file, (64, 48) in the model"]),
        (of_uniter, ["objectives.0.objectives=[{type: word_region_alignment, name: a}]"],
         ["masked_language is in the file alone (5 tensors)", "may_be_unused"]),
        (of_uniter, ["init.may_be_unused=['(']"], ["is not a regular expression"]),
        (of_uniter, ["model.embedder.vocab_size=130"], ["120 rows in the file"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(
    make: Callable[[Path], object],
    more: list[str],
    messages: list[str],
    vocabulary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """And nothing is written, and no code of the file is run."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "weights.pth")
    before = sorted(tmp_path.iterdir())
    assert main(arguments("uniter", tmp_path / "weights.pth", vocabulary, tmp_path / "run", *more)) == 1
    told = capsys.readouterr().err
    for message in messages:
        assert message in told
    assert sorted(tmp_path.iterdir()) == before


def test_a_vocabulary_of_other_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "w.safetensors"
    save_file(weights_of("uniter"), file)
    shorter = write_vocabulary(tmp_path / "shorter.txt", 110)
    assert main(arguments("uniter", file, shorter, tmp_path / "run")) == 1
    assert "was trained with 120 tokens, and the vocabulary" in capsys.readouterr().err
    cased = tmp_path / "cased.txt"
    cased.write_text(write_vocabulary(tmp_path / "v.txt").read_text().replace("w7\n", "W7\n"))
    assert main(arguments("uniter", file, cased, tmp_path / "run")) == 1
    assert "set data.tokenizer.lowercase=false" in capsys.readouterr().err
    assert main(arguments("uniter", file, cased, tmp_path / "run", "data.tokenizer.lowercase=false")) == 0


def test_nothing_is_overwritten(vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file, out = tmp_path / "w.safetensors", tmp_path / "run"
    save_file(weights_of("uniter"), file)
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main(arguments("uniter", file, vocabulary, out)) == 1
    assert "exists already and nothing in it is overwritten" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_a_wrong_layout_name_lists_the_known(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["unitr", "x.pt", "--config=x", "--vocabulary=x", f"--out={tmp_path / 'run'}"]) == 1
    assert "'visualbert'" in capsys.readouterr().err


def test_a_table_of_data_facts_is_written(vocabulary: Path, tmp_path: Path) -> None:
    save_file(weights_of("lxmert"), tmp_path / "w.safetensors")
    assert main(arguments("lxmert", tmp_path / "w.safetensors", vocabulary, tmp_path / "run")) == 0
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert facts["feature_size"] == 32
    assert len(facts["class_names"]) == 22  # the original's classes leave the background out, ours count it
    assert len(facts["attribute_names"]) == 15
