"""Any fusion system, any task: the table of combinations, each tried on a small batch of embedded scenes.

A cell is the shipped configuration of a system, made tiny, edited for the task as its user would edit it. `pytest -s
tests/tasks/test_combinations.py -k docs` prints the table for docs/contracts.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_shards import loads
from slow_writing import assert_fast_is_slow
from torch import Tensor

from data_pipelines.batches import collate
from data_pipelines.prepare import open_sources
from data_pipelines.scenes.build import Asked, build_scenes
from data_pipelines.sources.source import LoadedPair
from vlp.build import build_model, build_objectives, pixel_size
from vlp.commands.learn import shortened
from vlp.config import ConfigError, GroupConfig, load_config
from vlp.distributed import generator_for
from vlp.fine_tuning import model_for_task
from vlp.interfaces import AnswerScores, Batch, Tokenizer
from vlp.needs import FeatureFacts
from vlp.tasks.captioning import Captioning
from vlp.tasks.pair_ranking import PairRanking
from vlp.text.choose import open_tokenizer

ROOT = Path(__file__).parent.parent.parent
# name: what the scenes' data asks, the task's settings, and what it is called in the docs
TASKS: dict[str, tuple[Asked, dict[str, Any], str]] = {
    "answer": ("questions", {"type": "answer_classification"}, "VQA, GQA"),
    "entail": ("hypotheses", {"type": "answer_classification", "loss": "softmax"}, "entailment"),
    "triplet": ("statements", {"type": "answer_classification", "loss": "softmax", "images": 2}, "NLVR2, triplet"),
    "first": ("statements", {"type": "paired_images"}, "NLVR2, pair (first)"),
    "own": ("statements", {"type": "paired_images", "shown": "own"}, "NLVR2, pair (own)"),
    "attend": ("statements", {"type": "paired_images", "attention_heads": 2}, "NLVR2, pair with attention"),
    "softmax": ("expressions", {"type": "region_choice"}, "RefCOCO, softmax"),
    "ranking": ("expressions", {"type": "region_choice", "loss": "ranking"}, "RefCOCO, ranking"),
    "binary": ("expressions", {"type": "region_choice", "loss": "binary"}, "RefCOCO, binary"),
    "phrase": ("phrases", {"type": "phrase_grounding", "head_size": 8}, "Flickr30k Entities"),
    "choices": ("questions", {"type": "multiple_choice"}, "multiple choice"),
    "pairs": ("questions", {"type": "pair_ranking", "negatives": 2}, "retrieval"),
    "mined": (
        "questions",
        {"type": "pair_ranking", "negatives": 3, "hardest": 2, "loss": "softmax"},
        "retrieval, hardest",
    ),
    "captions": ("questions", {"type": "captioning"}, "captioning"),
}
ASKING = [name for name in TASKS if name not in ("pairs", "mined", "captions")]
REFUSED = {  # what stands in the table, and the words of the error
    "two": r"shows the second image as regions_2, which model\.layout has not",
    "rows": r"(region_choice|phrase_grounding) needs region rows, and model\.layout has no `regions`",
    "pixels": "(region_choice|phrase_grounding) needs regions of the data, and this model makes its own of pixels",
    "stream": r"(attention_heads|captioning) needs a model of one stream",
    "dual": "is no objective of this model, which has contrastive",
}
TABLE = """
system                answer entail triplet first own  attend softmax ranking binary phrase choices pairs mined captions
b2t2_large            +      +      two     +     two  +      rows    rows    rows   rows   +       +     +     +
imagebert_base        +      +      +       +     +    +      +       +       +      +      +       +     +     +
lxmert_base           +      +      +       +     +    stream +       +       +      +      +       +     +     stream
oscar_base            +      +      +       +     +    +      +       +       +      +      +       +     +     +
oscar_large           +      +      +       +     +    +      +       +       +      +      +       +     +     +
oscar_plus_base       +      +      +       +     +    +      +       +       +      +      +       +     +     +
oscar_plus_large      +      +      +       +     +    +      +       +       +      +      +       +     +     +
unicoder_vl_base      +      +      +       +     +    +      +       +       +      +      +       +     +     +
uniter_base           +      +      +       +     +    +      +       +       +      +      +       +     +     +
uniter_grid           +      +      +       +     +    +      pixels  pixels  pixels pixels +       +     +     +
vilbert_base          +      +      +       +     +    stream +       +       +      +      +       +     +     stream
vilt_base             +      +      +       +     +    +      pixels  pixels  pixels pixels +       +     +     +
visualbert_base       +      +      +       +     +    +      +       +       +      +      +       +     +     +
vlbert_base           +      +      +       +     +    +      +       +       +      +      +       +     +     +
vlbert_large          +      +      +       +     +    +      +       +       +      +      +       +     +     +
volta_lxmert_base     +      +      +       +     +    stream +       +       +      +      +       +     +     stream
volta_uniter_base     +      +      +       +     +    +      +       +       +      +      +       +     +     +
volta_vilbert_base    +      +      +       +     +    stream +       +       +      +      +       +     +     stream
volta_visualbert_base +      +      +       +     +    +      +       +       +      +      +       +     +     +
volta_vlbert_base     +      +      +       +     +    +      +       +       +      +      +       +     +     +
vlp_base              +      +      +       +     +    +      +       +       +      +      +       +     +     +
xgpt_base             +      +      +       +     +    +      +       +       +      +      +       +     +     +
clip_small            dual   dual   dual    dual  dual dual   dual    dual    dual   dual   dual    dual  dual  dual
"""
HEADER, *ROWS = (line.split() for line in TABLE.strip().splitlines())
CELLS = [(row[0], task, cell) for row in ROWS for task, cell in zip(HEADER[1:], row[1:], strict=True)]
SIZES = {
    **dict.fromkeys(("hidden_size", "visual_hidden_size", "cross_hidden_size", "pooled_size"), 32),
    **dict.fromkeys(("mlp_size", "visual_mlp_size"), 32),
    **dict.fromkeys(("layers", "heads", "visual_heads", "cross_heads"), 2),
    **dict.fromkeys(("dropout", "attention_dropout"), 0.0),
    "initial_std": 0.1,
}
CAPTIONING = [
    path
    for path in (ROOT / "configs" / "captioning").glob("*.yaml")
    if load_config(path, []).model["type"] != "token_decoder"  # these write by another objective
]
SEEN = 6  # pairs, or questions, of a batch
STEPS = 12


def small(system: str) -> dict[str, Any]:
    """The `model` block of a shipped configuration, made tiny."""
    path = ROOT / "configs" / f"{system}.yaml"
    block = load_config(path, []).model
    overrides = [f"model.{key}={value}" for key, value in SIZES.items() if key in block]
    if block["type"] != "dual_encoder":
        overrides.append("model.embedder.vocab_size=1000")
    if block.get("backbone", {}).get("type") == "timm_grid":
        overrides += [
            "model.backbone.name=test_efficientnet_gn",
            "model.pixels={shorter: 96, longer: 96, multiple: 32}",
        ]
    if "schedule" in block:
        overrides.append(f"model.schedule={json.dumps(shortened(block['schedule'])[-5:])}")
    return load_config(path, overrides).model


def for_task(block: dict[str, Any], task: str) -> dict[str, Any]:
    """The `model` block as a user edits it to fine-tune the system on a task."""
    text = "question" if task in ASKING else "caption"
    layout = ["CLS", text] if task == "captions" else ["CLS", text, "SEP", "regions"]
    if task == "choices":
        layout[3:3] = ["answer", "SEP"]
    if task in ("triplet", "own"):
        layout.append("regions_2")
    wanted: dict[str, Any] = {"layout": layout, "max_tokens": {text: 30, "answer": 4}}
    if task == "captions":
        wanted["layout_causal"] = ["CLS", "caption"]
    return model_for_task(block, wanted)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for asks in {asks for asks, _, _ in TASKS.values()}:
        build_scenes(folder / asks, 24, 3, 0, lambda text: None, processes=1, asks=asks)
    return folder


@pytest.fixture(scope="module")
def batch_of(scenes: Path) -> Callable[[dict[str, Any], str], tuple[Batch, Tokenizer, FeatureFacts]]:
    """A batch for a model and a task, its tokenizer and what the model has to know of the data."""

    @cache
    def made(block: str, task: str) -> tuple[Batch, Tokenizer, FeatureFacts]:
        settings = json.loads(block)
        asks, _, _ = TASKS[task]
        tokenizer = open_tokenizer(str(scenes / asks / "vocabulary.txt"), lowercase=True)
        segments = {name: most for name, most in settings["max_tokens"].items() if name != "answer"}
        token_region, pixels = settings.get("token_region", False), pixel_size(settings)
        (source,), manifest = open_sources(
            [asks],
            [scenes / asks],
            ["train"],
            tokenizer,
            [loads(segments, 10, token_region=token_region, pixels=pixels)],
        )
        # of different scenes, so that there are negatives
        _, chosen = np.unique(source.sample_of, return_index=True)
        loaded = [source.load(int(pair)) for pair in chosen[:SEEN]]
        answers = {asks: source.reader.manifest.answer_names}
        facts = FeatureFacts(manifest.feature_size, len(manifest.class_names), 0, answers)
        if task != "choices":
            return collate(loaded, asks, 0, 0, []), tokenizer, facts
        choices, right = [], []
        for number, pair in enumerate(loaded):
            names = ["yes", "no", "red", "blue"]
            right.append({number % 4: 1.0})
            for answer in tokenizer.encode(names):
                segments_of = {**pair.segments, "answer": answer}
                choices.append(LoadedPair(pair.sample, pair.text, segments_of, pair.regions))
        batch = replace(collate(choices, asks, 0, 0, []), answers=None, answer_scores=AnswerScores.from_dicts(right))
        return batch, tokenizer, facts

    def of(block: dict[str, Any], task: str) -> tuple[Batch, Tokenizer, FeatureFacts]:
        kept = {key: block[key] for key in ("type", "max_tokens", "token_region", "pixels", "backbone") if key in block}
        return made(json.dumps(kept), task)

    return of


def with_gradient(batch: Batch) -> tuple[Batch, Tensor]:
    """The batch with what is seen of its images as a leaf that gets a gradient, and that leaf."""
    images = batch.images
    if images.pixels is not None:
        seen = (images.pixels.float() / 255).requires_grad_()
        return replace(batch, images=replace(images, pixels=seen)), seen
    seen = images.features.clone().requires_grad_()
    return replace(batch, images=replace(images, features=seen)), seen


def images_seen(batch: Batch, gradient: Tensor) -> Tensor:
    """Which images of the batch the loss depends on, bool [I]."""
    images = batch.images
    rows = images.offsets.diff().tolist()
    if images.sizes is not None:
        rows = [height * width for height, width in images.sizes]
    return torch.stack([part.abs().sum() > 0 for part in gradient.split(rows)])


@pytest.mark.parametrize(("system", "task", "expected"), CELLS, ids=[f"{system}-{task}" for system, task, _ in CELLS])
def test_combination(system: str, task: str, expected: str, batch_of: Callable) -> None:
    block = for_task(small(system), task)
    _, settings, _ = TASKS[task]
    group = GroupConfig(task, 1.0, [settings])
    clean, tokenizer, facts = batch_of(for_task(small("uniter_base"), task) if expected == "dual" else block, task)
    if block["type"] != "dual_encoder":
        block = block | {"embedder": {k: v for k, v in block["embedder"].items() if k != "feature_size"}}

    def build() -> tuple[Any, Any]:
        model = build_model(block, tokenizer.special, facts)
        objectives, _ = build_objectives([group], model, tokenizer, facts)
        return model, objectives[settings["type"]]

    if expected != "+":
        with pytest.raises(ConfigError, match=REFUSED[expected]):
            build()
        return
    model, objective = build()
    batch, seen = with_gradient(clean)
    parameters = {**dict(model.named_parameters(prefix="model")), **dict(objective.named_parameters(prefix="task"))}
    optimizer = torch.optim.Adam(parameters.values(), lr=3e-3)
    least = 1.0 if "hardest" in settings else 0.95  # the hardest are others after each step
    values = []
    for _ in range(STEPS):
        corrupted, targets = objective.corrupt(batch, generator_for("cpu", 0))
        encoded = model(corrupted)
        losses, _ = objective.loss(encoded, targets, model)
        (loss,) = losses.values()
        values.append(float(loss.detach()))
        if len(values) > 2 and values[-1] < least * values[0]:
            break
        optimizer.zero_grad()
        loss.backward()
        if len(values) == 2:  # VL-BERT's images begin with the weight zero
            blind = {name for name, parameter in parameters.items() if parameter.grad is None}
            assert not {name for name in blind if name.startswith("task")}
            assert model.tied("word_embeddings").grad.abs().sum() > 0
            assert images_seen(batch, seen.grad).all(), "an image that the loss does not depend on"
            seen.grad = None
        optimizer.step()
    assert values[-1] < least * values[0], values
    with torch.no_grad():
        if isinstance(objective, Captioning):
            assert len(objective.write(model.eval(), clean)) == SEEN
        elif isinstance(objective, PairRanking):
            assert objective.score(encoded).shape == (len(corrupted.pairs),)
        else:
            kind, regions = settings["type"], int(batch.images.offsets.diff().max())
            answers = {"region_choice": regions, "phrase_grounding": regions, "multiple_choice": 4}
            asked = len(batch.texts.segments["question"].tokens) if kind == "phrase_grounding" else SEEN
            logits = objective.logits(encoded)
            assert logits.shape == (asked, answers.get(kind, len(next(iter(facts.answers.values())))))
            assert ((objective.probabilities(logits) >= 0) & (objective.probabilities(logits) <= 1)).all()


WRITING = [system for system, task, cell in CELLS if task == "captions" and cell == "+"]


@pytest.mark.parametrize("system", [*WRITING, *sorted(f"captioning/{path.stem}" for path in CAPTIONING)])
def test_kept_keys_write_the_same(system: str, batch_of: Callable) -> None:
    """Of every system that writes, and every configuration of captioning: against reading all anew for each word."""
    block = small(system)
    if system in WRITING:
        block = for_task(block, "captions")
    if "tags" in block["layout"]:
        block = block | {"max_tokens": {**block["max_tokens"], "tags": 12}}
    clean, tokenizer, facts = batch_of(block, "captions")
    block = block | {"embedder": {k: v for k, v in block["embedder"].items() if k != "feature_size"}}
    torch.manual_seed(0)
    model = build_model(block, tokenizer.special, facts).eval()
    settings = {"type": "captioning", "most_written": 9}
    objectives, _ = build_objectives([GroupConfig("captions", 1.0, [settings])], model, tokenizer, facts)
    assert_fast_is_slow(objectives["captioning"].eval(), model, clean)


def test_every_fusion_system_is_in_the_table() -> None:
    shipped = {path.stem for path in (ROOT / "configs").glob("*.yaml") if "_small" not in path.stem}
    shipped -= {"twelve_in_one"}  # ViLBERT, trained on tasks
    shipped = {name for name in shipped if "embedder" in load_config(ROOT / "configs" / f"{name}.yaml", []).model}
    assert {row[0] for row in ROWS} == shipped | {"clip_small"}


def markdown() -> str:
    """The table for the docs; systems that agree share a line."""
    same: dict[tuple[str, ...], list[str]] = {}
    for name, *cells in ROWS:
        same.setdefault(tuple(cells), []).append(name)
    lines = ["| task | settings |" + "".join(f" {', '.join(names)} |" for names in same.values())]
    lines.append("|---|---|" + "---|" * len(same))
    for number, (_, settings, title) in enumerate(TASKS.values()):
        keys = ", ".join(f"{key}: {value}" for key, value in settings.items())
        lines.append(f"| {title} | `{keys}` |" + "".join(f" {cells[number].replace('+', 'yes')} |" for cells in same))
    return "\n".join(lines)


def test_the_docs_have_this_table() -> None:
    print("\n" + markdown())
    assert markdown() in (ROOT / "docs" / "contracts.md").read_text()


@pytest.mark.parametrize(
    ("system", "item", "kind", "message"),
    [
        ("b2t2_large", "regions", 0, "this embedder has no rows for regions"),
        ("oscar_base", "whole", 0, "this embedder has no rows for whole"),
        ("uniter_base", "regions_2", 2, r"model\.layout_types has 2, but model\.embedder\.types is 2"),
    ],
)
def test_what_an_embedder_has_no_rows_for_is_refused(system: str, item: str, kind: int, message: str) -> None:
    block = small(system)
    block = block | {"layout": [*block["layout"], item], "layout_types": [*block["layout_types"], kind]}
    special = dict.fromkeys(("PAD", "UNK", "CLS", "SEP", "MASK"), 0)
    with pytest.raises(ConfigError, match=message):
        build_model(block, special, FeatureFacts(2048, 0))
