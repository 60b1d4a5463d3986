"""`init`: what fits is loaded, the rest is named; weights of another vocabulary are refused."""

from __future__ import annotations

from pathlib import Path

import made_up
import pytest
import torch
from torch import nn

from vlp.checkpoints.key_map import KeyMismatchError
from vlp.config import ConfigError, InitConfig
from vlp.initial_weights import describe, load_initial_weights
from vlp.run_folder import RunFolder, build_run
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

    def write(self) -> Path:
        run = RunFolder(Path(self.config.run_dir))
        run.create(self.config, self.tokenizer, made_up.FACTS)
        for name in ("model.safetensors", "best.safetensors"):
            run.write_weights(name, self.state_dict(), 0)
        return run.path

    def begin(self, path: Path, **lists: list[str]) -> str:
        init = InitConfig(str(path), **lists)  # type: ignore[arg-type]
        return describe(init, load_initial_weights(init, self, self.tokenizer))


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
    told = str(caught.value).splitlines()
    assert told[0] == f"init: {path} holds the weights of another model:"
    assert told[1].startswith("  missing: objectives.masked_region_class.classifier.classify.bias, ")
    assert told[2].startswith("  not expected: objectives.masked_region_regression.bias, ")
    assert told[3] == "  other shape: model.embedder.type_table.weight: (2, 32) in the file, (3, 32) in the model"
    assert "may_be_missing" in told[4]
    assert all(torch.equal(value, before[name]) for name, value in two.state_dict().items()), "nothing was loaded"
    lists = {"may_be_missing": ["masked_region_class"], "may_be_unused": ["masked_region_regression"]}
    with pytest.raises(KeyMismatchError, match=r"other shape: model\.embedder\.type_table") as caught:
        two.begin(path, **lists)
    assert "not expected" not in str(caught.value)
    said = two.begin(path, **lists, may_differ_in_rows=["type_table"])
    assert "missing, so random (init.may_be_missing): objectives.masked_region_class.classifier.classify.bias" in said
    assert "not used (init.may_be_unused): objectives.masked_region_regression.bias" in said
    assert "the first rows alone (init.may_differ_in_rows): model.embedder.type_table.weight" in said
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
