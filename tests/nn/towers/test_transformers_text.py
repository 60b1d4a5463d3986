"""Encoders of transformers as text towers, against transformers itself, open_clip, and runs that the commands make."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from made_up_encoders import KINDS, SPECIAL, WORDS, make_folder
from safetensors.torch import save_file
from torch import Tensor, nn

from vlp.build import standing_alone
from vlp.checkpoints.key_map import export_state, import_state
from vlp.config import ConfigError
from vlp.initial_weights import load_start_weights
from vlp.nn.towers.transformers_text import INSTALL, TransformersText
from vlp.registry import IMPORTERS
from vlp.text.choose import open_tokenizer

transformers = pytest.importorskip("transformers")

LENGTHS = torch.tensor([7, 2, 10, 3])


def padded_ids() -> Tensor:
    ids = torch.randint(4, WORDS, (len(LENGTHS), int(LENGTHS.max())), generator=torch.Generator().manual_seed(1))
    return torch.where(torch.arange(ids.shape[1]) < LENGTHS[:, None], ids, 1)


class Holder(nn.Module):
    """A model whose part `text` is a tower."""

    def __init__(self, text: nn.Module):
        super().__init__()
        self.text = text


def loaded(folder: Path, **settings: Any) -> tuple[TransformersText, list[str]]:
    """The tower with the weights of the folder, and what was said of them."""
    tower = TransformersText(SPECIAL, str(folder), **settings).eval()
    return tower, load_start_weights(Holder(tower), open_tokenizer(folder, lowercase=False))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_is_the_encoder_and_its_pooling(kind: str, tmp_path: Path) -> None:
    """Weights of a file with heads, whose names begin with the encoder's; each text by itself, without any padding."""
    model = make_folder(tmp_path, kind)
    ids = padded_ids()
    states = [
        model.base_model(input_ids=own[None, :length]).last_hidden_state[0]
        for own, length in zip(ids, LENGTHS.tolist(), strict=True)
    ]
    expected = {
        "first": torch.stack([own[0] for own in states]),
        "mean": torch.stack([own.mean(0) for own in states]),
        "max": torch.stack([own.amax(0) for own in states]),
    }
    for pooling, pooled in expected.items():
        tower, said = loaded(tmp_path, pooling=pooling)
        assert tower.embedding_size == 32
        torch.testing.assert_close(tower(ids, LENGTHS), pooled, atol=1e-5, rtol=1e-5)
        wider = nn.functional.pad(ids, (0, 4), value=1)
        torch.testing.assert_close(tower(wider, LENGTHS), pooled, atol=1e-5, rtol=1e-5)
    assert "tensors of heads are left out" in said[0]
    assert said[-1].endswith("model.safetensors")
    assert tower.context_length == KINDS[kind][2]
    longest = torch.full((1, tower.context_length), 5)
    assert tower(longest, torch.tensor([tower.context_length])).isfinite().all()
    assert len(tower.layer_order()) == 3
    names = {name for name, _ in tower.named_parameters()}
    placed = {name for parts in tower.layer_order() for part in parts for name in names if name.startswith(f"{part}.")}
    assert all("final_norm" in name for name in names - placed)  # above all layers
    assert len(tower.word_embeddings) == WORDS


def test_files_of_other_forms(tmp_path: Path) -> None:
    """Of torch's format, without the encoder's prefix, and with the oldest names of BERT's norms."""
    model = make_folder(tmp_path, "bert")
    expected = loaded(tmp_path)[0].state_dict()
    (tmp_path / "model.safetensors").unlink()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in model.bert.state_dict().items()
    }
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in old.items()}
    torch.save({**old, "embeddings.position_ids": torch.arange(20)[None]}, tmp_path / "pytorch_model.bin")
    tower, said = loaded(tmp_path)
    assert said[-1].endswith("pytorch_model.bin")
    assert all(torch.equal(value, expected[name]) for name, value in tower.state_dict().items())


@pytest.mark.parametrize(("projection", "layers"), [("linear", 1), ("mlp", 2)])
def test_open_clip_has_the_same(projection: str, layers: int, tmp_path: Path) -> None:
    """Its text tower of transformers, by the layout of its weights."""
    make_folder(tmp_path)
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1, "head_width": 32}
    text = {"hf_model_name": str(tmp_path), "hf_tokenizer_name": "", "hf_model_pretrained": False}
    text |= {"hf_pooler_type": "mean_pooler", "hf_proj_type": projection}
    theirs = open_clip.create_model("roberta-ViT-B-32", embed_dim=24, vision_cfg=vision, text_cfg=text).eval()
    state = import_state(theirs.state_dict(), IMPORTERS["open_clip_transformers_text"])
    back = export_state(state, IMPORTERS["open_clip_transformers_text"])
    assert back.keys() == theirs.state_dict().keys()
    tower = TransformersText(SPECIAL, str(tmp_path), embedding_size=24, projection=projection).eval()  # type: ignore[arg-type]
    begin = "model.text."
    tower.load_state_dict({k.removeprefix(begin): v for k, v in state.items() if k.startswith(begin)})
    assert len(list(tower.projection.parameters())) == layers
    with torch.no_grad():
        found, expected = tower(padded_ids(), LENGTHS), theirs.encode_text(padded_ids())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_it_trains_and_stays_where_frozen(tmp_path: Path) -> None:
    make_folder(tmp_path)
    tower, _ = loaded(tmp_path, embedding_size=8)
    tower(padded_ids(), LENGTHS).square().sum().backward()
    unmoved = [name for name, p in tower.named_parameters() if p.grad is None or not p.grad.any()]
    assert unmoved == []
    tower.zero_grad(set_to_none=True)
    tower.backbone.requires_grad_(False)
    tower(padded_ids(), LENGTHS).square().sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is not None] == ["projection.weight"]


def test_a_run_needs_no_folder(tmp_path: Path) -> None:
    """Its configuration has all of config.json but where that was."""
    make_folder(tmp_path)
    change(
        tmp_path, _name_or_path="/home/me", attn_implementation="someone/kernel", _attn_implementation="other/kernel"
    )
    settings = {"type": "transformers_text", "folder": str(tmp_path), "config": {"hidden_dropout_prob": 0.0}}
    whole = standing_alone({"text": settings, "logit_scale": 1.0})
    for file in tmp_path.iterdir():
        file.unlink()
    kept = whole["text"].pop("config")
    assert (kept["model_type"], kept["hidden_dropout_prob"], kept["num_hidden_layers"]) == ("roberta", 0.0, 2)
    assert not {"_name_or_path", "attn_implementation", "_attn_implementation"} & kept.keys()
    assert whole == {"text": {"type": "transformers_text", "folder": str(tmp_path)}, "logit_scale": 1.0}
    assert TransformersText(SPECIAL, str(tmp_path), kept).backbone.config.hidden_dropout_prob == 0.0
    with pytest.raises(ConfigError, match=r"model\.text: folder: there is no .*nothing is downloaded"):
        standing_alone({"text": settings})


def change(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"auto_map": {"AutoModel": "modeling_mine.Mine"}}, "has auto_map: it needs code that is not of transformers"),
        ({"model_type": "mine"}, "transformers .* has no model 'mine'"),
        ({"model_type": "bart"}, "an encoder and a decoder"),
        ({"model_type": "vit"}, "can't build a text encoder vit: it is no model of texts"),
        ({"model_type": "gpt2"}, "it is no model of texts that reads them in both directions"),
        ({"quantization_config": {"quant_method": "mine"}}, "has quantization_config"),
        ({"num_attention_heads": 5}, "can't build a text encoder roberta: .*not a multiple"),
        ({"pad_token_id": 0}, "the encoder's padding is token 0, that of the vocabulary 1"),
    ],
)
def test_configurations_that_are_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    change(tmp_path, **keys)
    with pytest.raises(ValueError, match=message):
        TransformersText(SPECIAL, str(tmp_path))


def test_other_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path)
    with pytest.raises(ValueError, match="folder is missing"):
        TransformersText(SPECIAL)
    with pytest.raises(ValueError, match="no token before a text"):
        TransformersText({"PAD": 1}, str(tmp_path), pooling="first")
    with pytest.raises(ValueError, match="text number 1 of the batch has nothing"):
        TransformersText.plan(torch.tensor([3, 0]), 3)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json can't be read"):
        TransformersText(SPECIAL, str(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="needs that package") as told:
        TransformersText(SPECIAL, config={"model_type": "roberta"})
    assert INSTALL in str(told.value)


def of_more_layers(folder: Path) -> None:
    change(folder, num_hidden_layers=1)


def of_fewer_layers(folder: Path) -> None:
    change(folder, num_hidden_layers=3)


def of_another_width(folder: Path) -> None:
    change(folder, intermediate_size=50)


def in_several_files(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


def with_nan(folder: Path) -> None:
    model = transformers.RobertaModel.from_pretrained(folder)
    nn.init.constant_(model.embeddings.LayerNorm.bias, float("nan"))
    save_file(model.state_dict(), folder / "model.safetensors")


def of_other_tokens(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("\u2581red", "\u2581blue"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (of_more_layers, r"not known: roberta\.encoder\.layer\.1\.attention"),
        (of_fewer_layers, r"missing: encoder\.layer\.2\.attention"),
        (of_another_width, r"of another shape: encoder\.layer\.0\.intermediate\.dense\.bias"),
        (in_several_files, "in several files, those of model.safetensors.index.json"),
        (with_nan, "not finite"),
        (of_other_tokens, "words would get the vectors of others: set data.tokenizer.vocabulary"),
    ],
)
def test_weights_that_are_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    folder, before = tmp_path / "encoder", tmp_path / "before.json"
    make_folder(folder)
    before.write_bytes((folder / "tokenizer.json").read_bytes())
    spoil(folder)
    tower = TransformersText(SPECIAL, str(folder))
    with pytest.raises(ConfigError, match=message) as told:
        load_start_weights(Holder(tower), open_tokenizer(before, lowercase=False))
    assert "model.text.folder: " in str(told.value) or "model.text" not in str(told.value)


def test_texts_are_not_changed_before(tmp_path: Path) -> None:
    make_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.lowercase=true takes their signs away"):
        load_start_weights(Holder(TransformersText(SPECIAL, str(tmp_path))), open_tokenizer(tmp_path, lowercase=True))
