"""What the benchmark compares is the same computation, and its verdicts follow from the figures. No timing here."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tools import benchmark
from tools.benchmark import EQUAL, PADDED, RAGGED, VISUALBERT, Variant, build_variants
from vlp.config import load_config

CONFIG = Path(__file__).parent.parent / "configs" / "uniter_base.yaml"


@pytest.fixture(autouse=True)
def _one_thread_of_the_cpu(monkeypatch: pytest.MonkeyPatch):
    """Threads that wait for one another cost more than these sizes are worth on a busy machine."""
    monkeypatch.setattr(benchmark, "DEVICE", torch.device("cpu"))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # which measure() sets; undone after the test
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(dropout: float = 0.0) -> dict[str, Any]:
    """The benchmark's model block, made small."""
    settings = load_config(CONFIG).model
    sizes = {"hidden_size": 16, "layers": 2, "heads": 2, "mlp_size": 32, "initial_std": 0.3}
    embedder = {**settings["embedder"], "vocab_size": 200, "feature_size": 12}
    return {**settings, **sizes, "dropout": dropout, "attention_dropout": dropout, "embedder": embedder}


def loss_and_gradients(variant: Variant) -> tuple[Tensor, dict[str, Tensor]]:
    variant.module.zero_grad()
    loss = variant.loss()
    loss.backward()
    named = variant.module.named_parameters()
    return loss.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


def test_padded_is_the_ragged_computation() -> None:
    variants = build_variants(tiny())
    assert variants[RAGGED].module is variants[PADDED].module
    loss, gradients = loss_and_gradients(variants[RAGGED])
    padded_loss, padded_gradients = loss_and_gradients(variants[PADDED])
    torch.testing.assert_close(padded_loss, loss, rtol=1e-5, atol=0)
    assert gradients.keys() == padded_gradients.keys()
    assert len(gradients) > 30
    for name, gradient in gradients.items():
        torch.testing.assert_close(padded_gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_the_check_passes_in_training_mode_and_keeps_it() -> None:
    variants = build_variants(tiny(dropout=0.5))
    benchmark.check_same_loss(variants[RAGGED], variants[PADDED])
    assert all(part.training for part in variants[RAGGED].module.modules())
    with pytest.raises(ArithmeticError, match="not the same computation"):
        benchmark.check_same_loss(variants[RAGGED], variants[EQUAL])


def test_blank_regions_would_show_without_the_mask() -> None:
    """The comparison above can fail: attention to the padding changes the loss."""
    settings = tiny()
    model = benchmark.build_model(settings, benchmark.SPECIAL, benchmark.FeatureFacts(12, 0))
    batch = benchmark.made_up_batch([3, 5], [4, 9], 200, 12)
    padded, plan = benchmark.with_padding(batch, model)
    assert plan.computed_rows == 2 * max(model.layout.assemble(batch).offsets.diff())
    assert not torch.allclose(
        benchmark.encode_padded(model.eval(), padded, plan).pooled["pair"], model(padded).pooled["pair"], atol=1e-3
    )


def test_the_ragged_batch_is_as_described() -> None:
    texts, regions = benchmark.typical_lengths(14, 6, 60), benchmark.typical_lengths(38, 10, 100)
    assert len(texts) == len(regions) == 16
    assert 13.5 <= sum(texts) / 16 <= 14.5
    assert 37.5 <= sum(regions) / 16 <= 38.5
    assert min(texts) >= 6
    assert max(texts) <= 60
    assert min(regions) >= 10
    assert max(regions) <= 100


def test_rows_are_those_that_are_computed() -> None:
    variants = build_variants(tiny())
    for name in (RAGGED, PADDED, EQUAL):
        seen: list[int] = []
        encoder = variants[name].module[0].encoder  # type: ignore[index, union-attr]
        hook = encoder.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        variants[name].loss()
        hook.remove()
        assert seen == [variants[name].rows]


def test_visualbert_gets_the_same_tokens_and_targets() -> None:
    settings = tiny()
    model = benchmark.build_model(settings, benchmark.SPECIAL, benchmark.FeatureFacts(12, 0))
    objective = benchmark.MaskedLanguage(model, 103, list(range(104, 200)), 0.15, ["caption"])
    clean = benchmark.made_up_batch([5, 5, 5], [4, 4, 4], 200, 12)
    batch, targets = objective.corrupt(clean, torch.Generator().manual_seed(0))
    inputs = benchmark.visualbert_inputs(batch, targets)
    assert inputs["input_ids"].shape == (3, 7)
    assert inputs["labels"].shape == (3, 7 + 4)
    assert torch.equal(inputs["input_ids"][:, 1:-1].flatten(), batch.texts.segments["caption"].tokens)
    assert inputs["input_ids"][:, 0].eq(101).all()
    assert inputs["input_ids"][:, -1].eq(102).all()
    assert torch.equal(inputs["visual_embeds"].flatten(0, 1), batch.images.features)
    kept = inputs["labels"] != -100
    assert torch.equal(kept[:, 1:6].flatten(), targets.chosen["caption"])
    assert not kept[:, 0].any()
    assert not kept[:, 6:].any()
    assert torch.equal(inputs["labels"][kept], clean.texts.segments["caption"].tokens[targets.chosen["caption"]])


def test_visualbert_has_the_same_size_and_dropout() -> None:
    variants = build_variants(tiny(dropout=0.3))
    ours, other = variants[EQUAL], variants[VISUALBERT]
    assert ours.rows == other.rows == 16 * 56
    assert {m.p for m in other.module.modules() if isinstance(m, nn.Dropout)} == {0.3}
    assert all(part.training for part in other.module.modules())

    def linear_shapes(module: nn.Module) -> list[tuple[int, ...]]:
        return sorted(tuple(m.weight.shape) for m in module.modules() if isinstance(m, nn.Linear))

    mlp = [shape for shape in linear_shapes(ours.module) if 32 in shape]
    assert mlp == [shape for shape in linear_shapes(other.module) if 32 in shape]
    assert len(mlp) == 4
    assert other.module.visual_bert.embeddings.visual_projection.weight.shape == (16, 12)  # type: ignore[union-attr]


def test_memory_counts_what_was_freed_again() -> None:
    before = benchmark.memory(peak=False)
    torch.ones(2**26)  # 256 MiB, freed at once
    assert benchmark.memory(peak=True) - before >= 250 * 2**20
    assert benchmark.memory(peak=False) - before < 128 * 2**20


def test_measure_fills_every_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """In threads instead of processes, so that the memory means nothing here."""
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(workers))
    said: list[str] = []
    variants = benchmark.measure(tiny(dropout=0.1), 2, said.append)
    assert list(variants) == [RAGGED, PADDED, EQUAL, VISUALBERT]
    assert all(len(v.seconds) == 2 and min(v.seconds) > 0 for v in variants.values())
    assert variants[PADDED].operations > 1.5 * variants[RAGGED].operations
    assert [text for text in said if text.startswith("round 2")] == [f"round 2 of 2: {name}" for name in variants]


@pytest.mark.parametrize(("slower", "bigger", "words"), [(1.5, 1.2, "reached; 83"), (1.05, 0.8, "MISSED; 125")])
def test_the_verdict_follows_from_the_figures(
    slower: float, bigger: float, words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    def measured(factor: float, memory: float) -> Variant:
        seconds = [factor * s for s in (1.0, 2.0, 4.0)]
        return Variant(nn.Identity(), lambda: torch.zeros(()), 10, seconds, 10**12, int(memory * 2**30))

    ours, other = measured(1.0, 1.0), measured(slower, bigger)
    variants = {RAGGED: ours, PADDED: other, EQUAL: ours, VISUALBERT: other}
    monkeypatch.setattr(benchmark, "measure", lambda *_: variants)
    assert benchmark.main(["train_step", "--json", str(tmp_path / "figures.json")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count(words) == 2
    assert f"{slower:.3f} times as fast (1.00 by operations), target 1.4" in out
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["compared"][RAGGED]["times"] == pytest.approx(slower)
    assert written["variants"][PADDED]["seconds"] == other.seconds


def test_the_ratio_is_taken_round_by_round() -> None:
    """A round in which the machine was slow for both sides does not change the ratio."""
    ours = Variant(nn.Identity(), lambda: torch.zeros(()), 1, [1.0, 10.0, 1.0], 2, 3)
    other = Variant(nn.Identity(), lambda: torch.zeros(()), 1, [2.0, 20.0, 3.0], 5, 4)
    compared = benchmark.compare(ours, other)
    assert compared == pytest.approx({"times": 2.0, "low": 2.0, "high": 2.5, "by_operations": 2.5, "memory": 0.75})


def test_without_transformers_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["train_step"])
    assert stop.value.code == 2
    assert "pip install -e '.[test]'" in capsys.readouterr().err
