"""tools/export_checkpoint.py: what it writes opens in transformers, or in the official code, and computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_visualbert_hf import FEATURES, POSITIONS, VOCABULARY, inputs
from torch import Tensor, nn
from torch.nn.functional import linear

import vlp
from vlp.commands.export_checkpoint import main
from vlp.commands.import_checkpoint import NAMED, build
from vlp.commands.import_checkpoint import main as import_checkpoint
from vlp.config import load_config
from vlp.inference import TrainedModel
from vlp.interfaces import Batch, Images, Segment, Texts
from vlp.run_folder import RunFolder
from vlp.text.wordpiece import WordPiece

transformers = pytest.importorskip("transformers")

CONFIGS = Path(__file__).parent.parent / "configs"
CLOSE = {"rtol": 0.0, "atol": 2e-5}
TABLES = {"vocab_size": VOCABULARY, "positions": POSITIONS, "feature_size": FEATURES}
SIZES = ["model.hidden_size=16", "model.heads=2", "model.mlp_size=32", "data.tokenizer.lowercase=false",
         *(f"model.embedder.{key}={n}" for key, n in TABLES.items())]  # fmt: skip
VISUALBERT = [*SIZES, "model.layers=2"]
LXMERT = [
    *SIZES, "model.schedule=[text, text, visual, cross]", "model.visual_hidden_size=16", "model.visual_heads=2",
    "model.visual_mlp_size=32", "model.cross_hidden_size=16", "model.cross_heads=2",
]  # fmt: skip
FEWER_HEADS = (
    "objectives.0.objectives=[{type: masked_language, probability: 0.15, segments: [caption]},"
    " {type: region_prediction, probability: 0.15, predict: [feature, class]}, {type: matching, swap_probability: 0.5}]"
)


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    tokens = [f"[{name}]" for name in ("PAD", "CLS", "SEP", "MASK", "UNK")]
    (tmp_path / "vocab.txt").write_text("\n".join([*tokens, *(f"W{n}" for n in range(5, VOCABULARY))]) + "\n")
    return tmp_path / "vocab.txt"


def made_run(config: str, overrides: list[str], vocabulary: Path, path: Path) -> TrainedModel:
    """A run's folder with random weights, as training would leave it."""
    tokenizer = WordPiece(vocabulary, False)
    resolved = load_config(CONFIGS / f"{config}.yaml", overrides)
    names = {kind: [str(n) for n in range(count)] for kind, count in zip(NAMED, (6, 7, 9), strict=True)}
    trained = build(resolved, tokenizer, names)
    for parameter in trained.parameters():
        nn.init.normal_(parameter, std=0.3)
    RunFolder(path).create(resolved, tokenizer, trained.facts)
    RunFolder(path).write_weights("model.safetensors", trained.state_dict(), 7)
    return vlp.load(path)


def opened(name: str, path: Path) -> nn.Module:
    """The exported model in transformers, without a key missing, unexpected or of another shape."""
    model, info = getattr(transformers, name).from_pretrained(path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def words_of(trained: TrainedModel, rows: Tensor) -> Tensor:
    head = trained.objectives["masked_language"]
    return linear(head.transform(rows), trained.model.tied("word_embeddings"), head.bias)


@torch.no_grad()
@pytest.mark.parametrize("kind", [0, 1])
def test_visualbert(kind: int, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Regions of the type 0, which transformers has to be told, and of its own default 1."""
    types = f"model.layout_types=[0, 0, 0, 1, 1, {kind}]"
    ours = made_run("visualbert_base", [*VISUALBERT, types], vocabulary, tmp_path / "run")
    assert main([str(tmp_path / "run"), "--to=hf", f"--out={tmp_path / 'hf'}"]) == 0
    said = capsys.readouterr().out
    assert "VisualBertForPreTraining" in said
    assert ("visual_token_type_ids" in said) == (kind == 0)
    given = inputs(True)
    more = {} if kind else {"visual_token_type_ids": torch.zeros(given.keywords["visual_embeds"].shape[:2]).long()}
    expected = opened("VisualBertForPreTraining", tmp_path / "hf")(**given.keywords, **more, output_hidden_states=True)
    encoded = ours.model(given.batch)
    torch.testing.assert_close(encoded.text.values, expected.hidden_states[-1][given.places], **CLOSE)
    torch.testing.assert_close(words_of(ours, encoded.text.values), expected.prediction_logits[given.places], **CLOSE)
    matching = ours.objectives["segment_matching"].classify(encoded.pooled["pair"])
    torch.testing.assert_close(matching, expected.seq_relationship_logits, **CLOSE)
    words = transformers.BertTokenizer.from_pretrained(tmp_path / "hf")("W7 W9")["input_ids"]
    assert words == [1, 7, 9, 2]


@torch.no_grad()
@pytest.mark.parametrize("heads", ["shipped", "fewer"])
def test_lxmert(heads: str, vocabulary: Path, tmp_path: Path) -> None:
    """With the objectives of the shipped configuration, which the original has, and with fewer."""
    overrides = [*LXMERT, FEWER_HEADS] if heads == "fewer" else LXMERT
    ours = made_run("lxmert_base", overrides, vocabulary, tmp_path / "run")
    assert main([str(tmp_path / "run"), "--to=hf", f"--out={tmp_path / 'hf'}"]) == 0
    theirs = opened("LxmertForPreTraining", tmp_path / "hf")
    tokens, features, corners = torch.randint(5, VOCABULARY, (3, 6)), torch.randn(3, 4, FEATURES), torch.rand(3, 4, 2)
    boxes = torch.cat([corners / 2, corners / 2 + 0.4], 2)
    numbers, yes = torch.arange(3), torch.ones(3, dtype=torch.bool)
    segment = Segment(tokens.flatten(), torch.arange(4) * 6, torch.ones(18, dtype=torch.bool))
    images = Images(numbers, torch.arange(4) * 4, features.flatten(0, 1), boxes.flatten(0, 1))
    encoded = ours.model(Batch(Texts({"caption": segment}, numbers), images, torch.stack([numbers] * 2, 1), yes))
    ids = torch.cat([torch.full((3, 1), 1), tokens, torch.full((3, 1), 2)], 1)
    expected, trunk = theirs(ids, features, boxes), theirs.lxmert(ids, features, boxes)
    torch.testing.assert_close(encoded.visual.values, trunk.vision_output.flatten(0, 1), **CLOSE)
    torch.testing.assert_close(encoded.pooled["pair"], trunk.pooled_output, **CLOSE)
    logits = words_of(ours, encoded.text.values)
    torch.testing.assert_close(logits, expected.prediction_logits.flatten(0, 1), **CLOSE)
    matching = ours.objectives["matching"].classify(encoded.pooled["pair"])
    torch.testing.assert_close(matching, expected.cross_relationship_score, **CLOSE)
    regions = ours.objectives["region_prediction"]
    states, scores = regions.transform(encoded.visual.values), theirs.obj_predict_head(trunk.vision_output)
    names = {"feature": "feat", "class": "obj", "attribute": "attr"}
    assert set(scores) == {names[name] for name in regions.decoders}
    for name, decoder in regions.decoders.items():
        torch.testing.assert_close(decoder(states), scores[names[name]].flatten(0, 1), **CLOSE)
    if heads == "shipped":
        answers = ours.objectives["answering"](encoded.pooled["pair"])
        torch.testing.assert_close(answers, expected.question_answering_score, **CLOSE)


@pytest.mark.parametrize(
    ("config", "overrides", "layout"),
    [
        ("visualbert_base", VISUALBERT, "visualbert_hf"),
        ("visualbert_base", VISUALBERT, "visualbert_released"),
        ("lxmert_base", [*LXMERT, FEWER_HEADS], "lxmert_transformers"),
        ("lxmert_base", LXMERT, "lxmert"),
        ("uniter_base", VISUALBERT, "uniter"),
    ],
)
def test_there_and_back(config: str, overrides: list[str], layout: str, vocabulary: Path, tmp_path: Path) -> None:
    """What is exported and imported again by the commands is the run's weights, to the bit."""
    before = made_run(config, overrides, vocabulary, tmp_path / "run").state_dict()
    assert main([str(tmp_path / "run"), f"--to={layout}", f"--out={tmp_path / 'out'}"]) == 0
    options = [f"--config={CONFIGS}/{config}.yaml", f"--vocabulary={vocabulary}", f"--out={tmp_path / 'back'}"]
    assert import_checkpoint([layout, str(tmp_path / "out" / "model.safetensors"), *options, *overrides]) == 0
    after = vlp.load(tmp_path / "back").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_official_layouts_have_their_ties(vocabulary: Path, tmp_path: Path) -> None:
    """Their code loads files that hold a tied weight under both names."""
    made_run("uniter_base", VISUALBERT, vocabulary, tmp_path / "run")
    assert main([str(tmp_path / "run"), "--to=uniter", f"--out={tmp_path / 'out'}"]) == 0
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(state["cls.predictions.decoder.weight"], state["uniter.embeddings.word_embeddings.weight"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


def test_queues_stay_behind(vocabulary: Path, tmp_path: Path) -> None:
    queue = "[{type: momentum_contrast, queue_length: 4, momentum: 0.9, temperature: 0.1}]"
    overrides = ["data.tokenizer.lowercase=false", f"objectives.0.objectives={queue}"]
    run = made_run("clip_small", overrides, vocabulary, tmp_path / "run")
    assert main([str(tmp_path / "run"), "--to=open_clip", f"--out={tmp_path / 'out'}"]) == 0
    state = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert len(state) == len(run.model.state_dict())
    assert torch.equal(state["logit_scale"], run.model.state_dict()["logit_scale"])


def test_what_cannot_be_exported_is_told(vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made_run("uniter_base", VISUALBERT, vocabulary, tmp_path / "uniter")
    made_run("lxmert_base", [*LXMERT, "model.norm_eps=1.0e-6"], vocabulary, tmp_path / "lxmert")
    made_run("clip_small", ["data.tokenizer.lowercase=false"], vocabulary, tmp_path / "clip")
    for run, messages in {
        "clip": ["for a dual encoder take --to open_clip"],
        "uniter": ["transformers has no class for this run; layouts that it can be written in: uniter"],
        "lxmert": ["other settings: norm_eps (1e-12)"],
        "nothing": ["there is no run in"],
    }.items():
        assert main([str(tmp_path / run), "--to=hf", f"--out={tmp_path / 'out'}"]) == 1
        told = capsys.readouterr().err
        assert all(message in told for message in messages), told
        assert not (tmp_path / "out").exists()
    bert = "{vocab_size: 99, positions: 62, hidden_size: 8, layers: 1, heads: 2, mlp_size: 8}"
    mixed = f"model.text={{type: bert_text, pooling: first, embedding_size: 128, bert: {bert}}}"
    made_run("clip_small", ["data.tokenizer.lowercase=false", mixed], vocabulary, tmp_path / "mixed")
    for run, message in {"mixed": "of which both towers are its own", "uniter": "writes dual encoders"}.items():
        assert main([str(tmp_path / run), "--to=open_clip", f"--out={tmp_path / 'out'}"]) == 1
        assert message in capsys.readouterr().err
    assert main([str(tmp_path / "uniter"), "--to=uniter", f"--out={tmp_path / 'lxmert'}"]) == 1
    assert "nothing in it is overwritten" in capsys.readouterr().err
