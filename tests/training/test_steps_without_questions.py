"""A training step asks its tensors for no size and no number: it runs where there are none.

On PyTorch's meta device tensors have shapes and no numbers, so whatever would make a GPU be waited for raises there:
`tolist`, `item`, `nonzero`, selection by a mask, `repeat_interleave` and `bincount` without a size. Assignment by a
mask does not, so it is searched for in the text.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vlp
from data_pipelines.batches import collate
from data_pipelines.scenes.build import build_scenes
from data_pipelines.sources.source import Source
from vlp.checkpoints.by_token import word_rows
from vlp.commands.learn import shortened
from vlp.commands.train import open_data
from vlp.config import RunConfig, load_config, ratio_for
from vlp.interfaces import map_tensors
from vlp.run_folder import tokenizer_of
from vlp.training.fit import build_module
from vlp.training.module import StepRecord, TrainingModule
from vlp.training.prepare import Prepared

ROOT = Path(__file__).parent.parent.parent
CONFIGS = [name for name in vlp.list_configs() if not name.startswith("studies/")]
# whose choice of negatives needs scores
CHOOSING_BY_SCORES = {
    "multi_task/uniter_small",
    "retrieval/flickr30k_uniter_base",
    "retrieval/uniter_small",
}
# which draw captions, word after word until all have ended
DRAWING = {"captioning/oscar_small_cider"}
# the scenes that stand in for data that nobody can ship
SCENES = {
    **dict.fromkeys(
        ("coco", "flickr30k", "vqa_v2", "gqa", "easy_vqa", "scenes_of_two", "scenes_of_two_zh", "scenes_zh"), "scenes"
    ),
    **{"nlvr1": "scene_hypotheses", "nlvr1_statements": "scene_hypotheses", "nlvr2": "scene_pairs"},
    **{
        "refcoco_plus": "scene_expressions",
        "flickr30k_entities": "scene_phrases",
        "snli_ve": "scene_hypotheses",
        "vcr": "scene_choices",
    },
}
ASKED = {
    "scenes": "questions",
    "scene_pairs": "statements",
    "scene_expressions": "expressions",
    "scene_phrases": "phrases",
    "scene_hypotheses": "hypotheses",
    "scene_choices": "choices",
}
WIDTHS = ("hidden_size", "visual_hidden_size", "cross_hidden_size", "pooled_size", "mlp_size", "visual_mlp_size")
SMALL: dict[str, Any] = dict.fromkeys(WIDTHS, 32) | dict.fromkeys(("layers", "heads", "visual_heads", "cross_heads"), 2)
BERT = "{vocab_size: 1000, positions: 90, hidden_size: 32, layers: 1, heads: 2, mlp_size: 32, dropout: 0.1}"
HEAD = "{layers: 1, heads: 2, mlp_size: 32, dropout: 0.1}"
PAIRS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, asks in ASKED.items():
        build_scenes(folder / name, 24, 8, 0, lambda text: None, processes=1, asks=asks)
    return folder


def small_config(name: str, root: Path) -> RunConfig:
    """A shipped configuration on scenes, with a model as small as can be."""
    path = ROOT / "configs" / f"{name}.yaml"
    config = load_config(path, [])
    model = config.model
    changed = [f"model.{key}={value}" for key, value in SMALL.items() if key in model]
    if "pictures" in model:
        changed += ["model.pixels.size=32", "model.pictures.codes=16"]
        changed += ["model.pictures.width=8"] if "width" in model["pictures"] else []
        changed += ["model.vocab_size=50000"] if "vocab_size" in model else []
        changed += ["model.windows={size: 4, times: 2, pivots: 8}"] if "windows" in model else []
    elif model["type"] != "dual_encoder":
        changed.append("model.embedder.vocab_size=1000")
    elif model["image"]["type"] == "wenlan_image":
        changed += [
            "model.image.trunk=test_efficientnet_gn",
            "model.image.trained=null",
            "model.image.weights=null",
            f"model.image.head={HEAD}",
            f"model.text.head={HEAD}",
            f"model.text.bert={BERT}",
            "model.text.trained=null",
            "objectives.0.objectives.0.queue_length=48",
        ]
    elif name != "clip_small":
        words = "" if config.data.tokenizer.vocabulary == "clip" else ", vocab_size: 1000"
        changed += [
            "model.pixels.size=32",
            "model.recompute_chunk=4",  # so that this is tried too
            "model.image.settings={layers: 1, width: 64, patch_size: 16, image_size: 32}",
            f"model.text.settings={{layers: 1, width: 64, heads: 2{words}}}",
        ]
    if model.get("backbone", {}).get("type") == "timm_grid":
        changed += ["model.backbone.name=test_efficientnet_gn", "model.pixels={shorter: 96, longer: 96, multiple: 32}"]
    if "backbone" in model and not model["pixels"].get("boxes"):  # whose regions are cells
        changed.append("model.backbone.most=5")
    if "schedule" in model:
        changed.append(f"model.schedule={json.dumps(shortened(model['schedule'])[-5:])}")
    for number, source in enumerate(config.data.sources):
        changed.append(f"data.sources.{number}.path={SCENES.get(source.path, source.path)}")
    for place, listed in enumerate(config.objectives[0].objectives):
        if "attention_heads" in listed:
            changed.append(f"objectives.0.objectives.{place}.attention_heads=2")
    if config.data.tokenizer is not None and config.data.tokenizer.vocabulary != "clip":
        changed += ["data.tokenizer.vocabulary=scenes/vocabulary.txt", "data.tokenizer.lowercase=true"]
    if any(source.neighbours for source in config.data.sources):
        changed.append("data.sources.0.neighbours=null")
    changed += [f"data.root={root}", "init=null", "trainer.accelerator=cpu"]
    return load_config(path, [change for change in changed if change != "init=null" or config.init is not None])


def steps(module: TrainingModule, sources: list[Source]) -> Iterator[Prepared]:
    """A prepared micro-batch of each source for each group that is drawn for it."""
    choose = torch.Generator().manual_seed(0)
    for source in sources:
        loaded = [source.load(number) for number in range(min(PAIRS, len(source)))]
        batch = collate(loaded, source.name, 0, 0, [])
        for group in module.groups:
            if ratio_for(group.sampling_ratio, source.name):
                yield module.preparation.of_group(batch, group, source.name, choose=choose)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in DRAWING])
def test_a_step_without_numbers(name: str, root: Path) -> None:
    """Backward included; whatever learns on the CPU has a gradient there."""
    config = small_config(name, root)
    tokenizer = tokenizer_of(config)
    sources, facts = open_data(config, tokenizer, None)
    real, module = (build_module(config, tokenizer, facts) for _ in range(2))
    module = module.to("meta").train()
    count, chosen_by_scores = 0, False
    for prepared in steps(real, sources):
        choosing = any(getattr(real.objectives[name], "hardest", None) for name in prepared.group.weights)
        chosen_by_scores |= choosing
        real.zero_grad()
        module.zero_grad()
        real.train().training_step(prepared, 0).backward()
        there = prepared.to("meta")
        if choosing:
            with pytest.raises((RuntimeError, NotImplementedError)):
                module.training_step(there, 0)
            continue
        loss = module.training_step(there, 0)
        assert loss.is_meta
        loss.backward()
        learning = {name for name, p in real.named_parameters() if p.grad is not None}
        assert learning
        assert {name for name, p in module.named_parameters() if p.grad is not None} == learning
        count += 1
    assert chosen_by_scores == (name in CHOOSING_BY_SCORES)
    assert count or chosen_by_scores


@pytest.mark.parametrize("way", ["ignored", "positives"])
@pytest.mark.parametrize("name", ["clip_small", "siglip_vit_b16", "wenlan_base"])
def test_pairs_of_one_image_without_numbers(name: str, way: str, root: Path) -> None:
    config = small_config(name, root)
    config.objectives[0].objectives[0]["same_image"] = way
    tokenizer = tokenizer_of(config)
    sources, facts = open_data(config, tokenizer, None)
    real, module = (build_module(config, tokenizer, facts) for _ in range(2))
    module = module.to("meta").train()
    for prepared in steps(real, sources):
        loss = module.training_step(prepared.to("meta"), 0)
        assert loss.is_meta
        loss.backward()
        for objective in module.objectives.values():
            if hasattr(objective, "after_step"):
                objective.after_step(module.model, True)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in DRAWING])
def test_what_has_a_row_for_each_word(name: str, root: Path) -> None:
    """It is what grows with the vocabulary, in models and objectives; a model with codes in its table says so."""
    config = small_config(name, root)
    tokenizer = tokenizer_of(config)
    _, facts = open_data(config, tokenizer, None)
    shapes = []
    with torch.device("meta"):
        for more in (0, 3):
            text = config.model.get("text", {})
            for place in (
                config.model,
                config.model.get("embedder", {}),
                text.get("settings", {}),
                text.get("bert", {}),
            ):
                if "vocab_size" in place:
                    place["vocab_size"] += more
            module = build_module(config, tokenizer, facts)
            shapes.append({name: value.shape for name, value in module.state_dict().items()})
    grown = {name for name, shape in shapes[0].items() if shapes[1][name] != shape}
    if config.data.tokenizer is None:
        assert word_rows(module) == []
    elif config.model["type"] == "token_decoder":
        with pytest.raises(ValueError, match="the table of model has rows that are no words, as of codes"):
            word_rows(module)
    elif "vocab_size" not in str(config.model):  # it is open_clip's
        assert [shapes[1][name][0] for name in word_rows(module)] == [len(tokenizer)]
    else:
        assert set(word_rows(module)) == grown
        assert grown


@pytest.mark.parametrize(
    "name", ["uniter_small", "vilt_base", "uniter_grid", "clip_small", "dvae_small", "vqvae_small"]
)
def test_float64(name: str, root: Path) -> None:
    """Numbers that come from plans, as boxes of patches, are of that type too."""
    config = small_config(name, root)
    config = replace(config, trainer=replace(config.trainer, precision="64-true"))
    tokenizer = tokenizer_of(config)
    sources, facts = open_data(config, tokenizer, None)
    module = build_module(config, tokenizer, facts)
    for prepared in steps(module, sources):
        loss = module.training_step(prepared, 0)
        assert loss.dtype == torch.float64
        loss.backward()


@pytest.mark.parametrize(
    "name", ["uniter_small", "lxmert_base", "clip_small", "wenlan_base", "dvae_small", "vqvae_small"]
)
def test_one_question_a_step(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first micro-batch to what objectives do after the optimizer; the question is answered here."""
    config = small_config(name, root)
    tokenizer = tokenizer_of(config)
    sources, facts = open_data(config, tokenizer, None)
    module = build_module(config, tokenizer, facts)
    prepared = next(steps(module, sources)).to("meta")
    module = module.to("meta").train()
    optimizer = module.configure_optimizers()["optimizer"]
    asked: list[Tensor] = []

    def answer(values: Tensor) -> Tensor:
        asked.append(values)
        return torch.zeros(len(values), dtype=values.dtype)

    monkeypatch.setattr("vlp.training.module.sum_over_ranks", answer)
    for step in range(2):
        for _ in range(2):
            module.training_step(prepared, 0).backward()
        module.on_before_optimizer_step(optimizer)
        assert len(asked) == step + 1
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        for objective in module.objectives.values():
            if hasattr(objective, "after_step"):
                objective.after_step(module.model, True)
        assert module.record.sums.keys() == module.record.values.keys()
        assert len(module.record.counts) == 5
        module.record = StepRecord()


@pytest.mark.parametrize(
    "question",
    [
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: torch.repeat_interleave(x, x.long()),
        lambda x: torch.bincount(x.long()),
    ],
)
def test_questions_raise_there(question: Any) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        question(torch.ones(3, device="meta"))


# functions that are called where a batch is prepared: all that assign to places that a tensor names
PREPARING = {
    "nn/attention.py": {"plan_attention"},
    "nn/backbones/pixels.py": {"plan_grid"},
    "nn/cross_attention.py": {"_buckets"},
    "nn/embedders/visualbert.py": {"aligned"},
    "nn/layout.py": {"assemble"},
    "objectives/corruption.py": {"choose_some", "leaders", "mask_regions"},
}
# what is assigned by a name or a number, and what is no step of training
OTHERS = {
    "models/two_stream.py": {"layer_order"},
    "objectives/region_prediction.py": {"loss"},
    "objectives/sigmoid_contrastive.py": {"pairs_loss"},
    "nn/token_block.py": {"shift"},
}


def assignments(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Subscript]]:
    """Assignments to something in brackets, with the function that they are in."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef) else function
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for part in ast.walk(target):
                    if isinstance(part, ast.Subscript):
                        yield inside, part
        yield from assignments(node, inside)


def by_tensor(part: ast.Subscript) -> bool:
    """Whether what is in the brackets may be a tensor: it is neither a text or number nor slices."""
    indices = part.slice.elts if isinstance(part.slice, ast.Tuple) else [part.slice]
    return not all(isinstance(index, ast.Constant | ast.Slice) for index in indices)


def test_nothing_is_assigned_by_a_mask() -> None:
    found: dict[str, set[str]] = {}
    for room in ("models", "nn", "objectives", "tasks"):
        for path in sorted((ROOT / "vlp" / room).rglob("*.py")):
            file = path.relative_to(ROOT / "vlp").as_posix()
            for function, part in assignments(ast.parse(path.read_text())):
                # dicts by name, as `losses[name] = ...`
                if by_tensor(part) and ast.unparse(part.slice) not in ("name", "item"):
                    found.setdefault(file, set()).add(function)
    assert found == PREPARING | OTHERS


def test_an_assignment_by_a_mask_would_be_found() -> None:
    code = "def forward(x, mask):\n    x[mask] = 0\n    x[:, 0] = 1\n    x[2:] += 1\n    x[mask > 0] *= 2\n"
    assert [ast.unparse(part) for _, part in assignments(ast.parse(code)) if by_tensor(part)] == [
        "x[mask]",
        "x[mask > 0]",
    ]


def test_a_prepared_batch_has_no_module(root: Path) -> None:
    """It would take weights along to each loader process."""
    config = small_config("uniter_small", root)
    tokenizer = tokenizer_of(config)
    sources, facts = open_data(config, tokenizer, None)
    module = build_module(config, tokenizer, facts)
    weights = {p.data_ptr() for p in module.parameters()}
    for prepared in steps(module, sources):
        held: list[Tensor] = []
        map_tensors(prepared, held.append)
        assert len(held) > 20
        assert weights.isdisjoint(tensor.data_ptr() for tensor in held)
        assert not any(tensor.requires_grad for tensor in held)
