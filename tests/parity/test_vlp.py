"""VLP against numbers computed with the official implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden import LOSSES, STATES, Golden, golden_cases, text_tables
from torch import Tensor, nn

from vlp.build import build_model
from vlp.checkpoints.key_map import export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.contracts import Encoded
from vlp.interfaces import Batch, Images, Segment, Texts
from vlp.models.single_stream import SingleStreamPlan
from vlp.needs import FeatureFacts
from vlp.nn.embedders.vlp import RegionsOfImages, region_numbers
from vlp.nn.heads import HeadShape
from vlp.nn.ragged import offsets_of, owner_of_rows, padded
from vlp.objectives.region_matching import RegionMatching, RegionMatchingTargets
from vlp.registry import IMPORTERS
from vlp.tasks.answer_classification import AnswerClassification, AnswerTargets
from vlp.tasks.captioning import Captioning, CaptionTargets

CASES = {
    "numbers": ["region_preproc"],
    "states": ["pretrain_bi", "pretrain_s2s", "relaxproj_s2s"],
    "questions": ["vqa"],
}
START, END, UNKNOWN, MASK = 2, 3, 1, 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    for fixture, cases in CASES.items():
        if fixture in metafunc.fixturenames:
            paths = [path for case in cases for path in golden_cases(folder, "vlp", case)]
            assert paths, f"{folder} has no file vlp/{cases[0]}*.safetensors"
            metafunc.parametrize(fixture, paths, ids=[f"vlp/{path.stem}" for path in paths])


def test_region_numbers(numbers) -> None:
    golden = Golden.read(numbers)
    boxes, scores = golden.inputs["boxes"], golden.inputs["cls_prob"]
    count, regions = boxes.shape[:2]
    offsets = torch.arange(count + 1) * regions
    planned = RegionsOfImages(padded(offsets), owner_of_rows(offsets.diff()))
    flat = boxes.flatten(0, 1)
    found = region_numbers(flat[:, :4], scores.flatten(0, 1), flat[:, 5], planned)
    golden.check("vis_pe", found.view(count, regions, -1), **STATES)
    golden.assert_all_read()


class Vlp(nn.Module):
    """The model of a file, and its batch."""

    def __init__(self, golden: Golden):
        super().__init__()
        c, g = golden.config, golden.inputs
        self.regions, self.length = c["len_vis_input"], g["attention_mask"].shape[1]
        self.first_word = self.regions + 2
        settings = {
            "type": "single_stream",
            "hidden_size": c["hidden_size"],
            "layers": c["num_hidden_layers"],
            "heads": c["num_attention_heads"],
            "mlp_size": c["intermediate_size"],
            "dropout": c["hidden_dropout_prob"],
            "attention_dropout": c["attention_probs_dropout_prob"],
            "norm_eps": 1e-5,
            "initial_std": 0.02,
            "layout": ["CLS", "regions", "SEP:image", "caption"],
            "layout_types": [0, 0, 0, 1],
            "layout_causal": ["caption"],
            "layout_causal_types": [4, 4, 4, 5],
            "regions_take": self.regions,
            "max_tokens": {"caption": self.length - self.first_word},
            "embedder": {"type": "vlp", **text_tables(c)},
        }
        special = {"CLS": START, "SEP": END, "UNK": UNKNOWN, "MASK": MASK}
        self.model = build_model(settings, special, FeatureFacts(c["region_dim"], c["n_classes"]))
        numbers = g["vis_pe"].flatten(0, 1)
        self.model.embedder.numbers = lambda images, planned: numbers  # which the files give
        causal = golden.config.get("mode") == "s2s"
        self.causal = causal
        self.real = self.real_rows(golden, causal)
        self.batch = self.read(golden, causal)

    def real_rows(self, golden: Golden, causal: bool) -> Tensor:
        """Which rows of the padded sequences are real, bool [P, L]: those that the last row of each sees, at least."""
        seen = golden.inputs["attention_mask"].bool()
        real = seen.any(1)
        if causal:
            own = torch.diagonal(seen, dim1=1, dim2=2)
            real = real & own
        real[:, : self.first_word] = True
        return real

    def read(self, golden: Golden, causal: bool) -> Batch:
        g = golden.inputs
        ids = g["input_ids"]
        words = self.real[:, self.first_word : ids.shape[1]]  # of texts that are to be written there are none
        count = len(ids)
        assert (ids[:, 0] == START).all()
        assert (ids[:, self.first_word - 1] == END).all()
        tokens = ids[:, self.first_word :][words]
        segment = Segment(tokens, offsets_of(words.sum(1)), torch.ones_like(tokens, dtype=torch.bool))
        numbers = torch.arange(count)
        images = Images(
            ids=numbers,
            offsets=torch.arange(count + 1) * self.regions,
            features=g["vis_feats"].flatten(0, 1),
            boxes=torch.zeros(count * self.regions, 4),
            scores=torch.zeros(count * self.regions, golden.config["n_classes"]),
        )
        if "vis_masked_pos" in g:
            masked = torch.zeros(count, self.regions, dtype=torch.bool).scatter(1, g["vis_masked_pos"] - 1, True)
            images = replace(images, masked=masked.flatten(), chosen=masked.flatten())
        texts = Texts({"caption": segment}, numbers, torch.full((count,), causal))
        return Batch(texts, images, torch.stack([numbers, numbers], 1), torch.ones(count, dtype=torch.bool))

    def planned(self, golden: Golden) -> SingleStreamPlan:
        """The plan of the batch without the regions that the file's mask hides: the masked ones, where there are any.

        The original's loader means to hide them and doesn't, for it fills a copy (vlp/seq2seq_loader.py), nor do we.
        """
        seen = golden.inputs["attention_mask"][:, 0, 1 : self.regions + 1].bool()
        images, whole = self.batch.images, self.model.plan(self.batch)
        if images.masked is not None:
            assert not (seen.flatten() & images.masked).any()
        shown = seen.flatten().nonzero()[:, 0]
        parts = {name: getattr(images, name)[shown] for name in ("features", "boxes", "scores")}
        fewer = replace(images, offsets=offsets_of(seen.sum(1)), **parts, masked=None, chosen=None)
        planned = self.model.plan(replace(self.batch, images=fewer))
        regions = planned.sequences.regions
        sequences = replace(planned.sequences, regions=replace(regions, source=shown[regions.source]))
        return replace(planned, sequences=sequences, embedded=whole.embedded)

    def captions(self, golden: Golden) -> CaptionTargets:
        """What is to be predicted."""
        g = golden.inputs
        labels, chosen = torch.zeros_like(g["input_ids"]), torch.zeros_like(g["input_ids"], dtype=torch.bool)
        weights = g["masked_weights"].bool()
        row = torch.arange(len(labels))[:, None].expand_as(weights)[weights]
        labels[row, g["masked_pos"][weights]] = g["masked_ids"][weights]
        chosen[row, g["masked_pos"][weights]] = True
        words = self.real[:, self.first_word :]
        of_words = (part[:, self.first_word :][words] for part in (labels, chosen))
        causal = torch.full((int(words.sum()),), self.causal)
        return CaptionTargets(*of_words, self.batch.matched, step=0, causal=causal)


def load(golden: Golden, model: nn.Module, name: str, head: nn.Module, layout: str) -> nn.Module:
    """The parts with the weights of the file, which come back out as they went in."""
    parts = nn.ModuleDict({"model": model, "objectives": nn.ModuleDict({name: head})})
    key_map = IMPORTERS[layout]
    load_strictly(parts, import_state(golden.weights, key_map), str(golden.path))
    back = export_state(parts.state_dict(), key_map)
    for key, value in back.items():
        assert torch.equal(value, golden.weights[key]), key
    return parts


def finish(golden: Golden, parts: nn.Module, layout: str, loss: Tensor, others: list[str]) -> None:
    """Compare gradients, and see that all was read; the losses of other tasks are zero."""
    for name in others:
        assert float(golden.outputs[name]) == 0
        golden.excuse(f"outputs/{name}", "zero: another task's")
    loss.backward()
    gradients = {name: p.grad for name, p in parts.named_parameters() if p.grad is not None}
    for name, gradient in export_state(gradients, IMPORTERS[layout]).items():
        if f"grads/{name}" not in golden.checked and name in golden.grads:
            golden.check_gradient(name, gradient.norm())
    for name, norm in golden.grads.items():
        if float(norm) == -1:
            golden.excuse(f"grads/{name}", "it has no gradient in the original, nor here")
            assert name not in export_state(gradients, IMPORTERS[layout])
    golden.assert_all_read()


def words_that_count(
    task: Captioning, encoded: Encoded, targets: CaptionTargets, model: nn.Module, drop_worst: float
) -> int:
    """The words of the texts whose losses sum to least, text by text."""
    at = targets.locate(encoded.places)
    logits, labels = task.predict(encoded, at, model)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist()
    texts: list[list[float]] = [[] for _ in range(at.pairs)]
    for loss, pair in zip(losses, at.pair.tolist(), strict=True):
        texts[pair].append(loss)
    return sum(len(text) for text in sorted(texts, key=sum)[: int(len(texts) * (1 - drop_worst))])


def test_pretraining(states) -> None:
    golden = Golden.read(states)
    vlp, c, g = Vlp(golden), golden.config, golden.inputs
    model = vlp.model
    # whatever `relax_projection` says, the weights tell
    modes = len(golden.weights["cls.predictions.transform.dense.bias"]) // c["hidden_size"]
    if modes > 1:
        assert (g["task_idx"] == (modes - 1 if vlp.causal else 0)).all()
    smoothing = c["label_smoothing"]
    task = Captioning(
        model,
        MASK,
        END,
        list(range(c["vocab_size"])),
        label_smoothing=smoothing,
        smoothing_skips=0 if smoothing else None,
        drop_worst=c["drop_worst_ratio"],
        drop_worst_of="texts",
        transforms=modes,
    )
    parts = load(golden, model, "captioning", task, "vlp")
    rows: dict[str, Tensor] = {}
    model.embedder.register_forward_hook(lambda m, i, out: rows.__setitem__("embedding_output", out[0]))
    for number, layer in enumerate(model.encoder.layers):
        layer.register_forward_hook(lambda m, i, out, n=number: rows.__setitem__(f"layer{n}", out))
    encoded: Encoded = model(vlp.batch, vlp.planned(golden))
    for name, value in rows.items():
        if name in golden.outputs:
            golden.check(name, value, vlp.real, **STATES)
    if "pooled" in golden.outputs:
        golden.check("pooled", encoded.pooled["pair"], **STATES)
        for name, part in (
            ("vis_embed", encoded.region_parts.shown),
            ("vis_pe_embed", encoded.region_parts.placed),
        ):
            golden.check(name, part.view_as(golden.outputs[name]), **STATES)
    targets = vlp.captions(golden)
    if "masked_lm_logits" in golden.outputs:
        weights = g["masked_weights"].bool()
        order = g["masked_pos"].masked_fill(~weights, 10**6).argsort(1)  # ours come in the order of the text
        logits, _ = task.predict(encoded, targets, model)
        expected = golden.outputs["masked_lm_logits"].gather(1, order[:, :, None].expand(-1, -1, logits.shape[1]))
        torch.testing.assert_close(logits, expected[weights.gather(1, order)], **STATES)
        golden.excuse("outputs/masked_lm_logits", "compared above, but for places that hold nothing")
    loss = task.loss(encoded, targets, model)[0]["captioning"]
    words = words_that_count(task, encoded, targets, model, c["drop_worst_ratio"])
    loss = loss * (words / (words + 1e-5))  # as the original divides; where few words count, that is seen
    golden.check("masked_lm_loss", loss, **LOSSES)
    others = ["vis_pretext_loss", "vqa2_loss"]
    if "vis_masked_pos" in g:
        matching = RegionMatching(model, 0.25)
        of_places = RegionMatchingTargets(vlp.batch.images.masked, vlp.batch.matched).locate(
            model.plan(vlp.batch).places
        )
        own = matching.loss(encoded, of_places, model)[0]["region_matching"]
        golden.check(others.pop(0), own, **LOSSES)
        loss = loss + own
    golden.check("loss", loss, **LOSSES)
    finish(golden, parts, "vlp", loss, others)


def test_questions(questions) -> None:
    golden = Golden.read(questions)
    vlp, c, g = Vlp(golden), golden.config, golden.inputs
    shape = HeadShape(hidden_size=2 * c["hidden_size"], activation="relu", norm=False)
    task = AnswerClassification(vlp.model, c["n_answers"], head=shape, read="CLS*SEP:image", loss="binary")
    parts = load(golden, vlp.model, "answer_classification", task, "vlp_vqa")
    encoded = vlp.model(vlp.batch)
    golden.check("sequence_output", encoded.text.values, vlp.real, **STATES)
    logits = task.logits(encoded)
    golden.check("logits", logits, **STATES)
    asked = torch.ones(len(logits), dtype=torch.bool)
    loss = task.loss(encoded, AnswerTargets(g["ans_labels"], asked), vlp.model)[0]["answer_classification"]
    golden.check("vqa2_loss", loss, **LOSSES)
    # the original never answers with class 0, which stands for no answer there
    assert torch.equal(logits[:, 1:].argmax(1) + 1, golden.outputs["answer_idx"])
    golden.excuse("outputs/answer_idx", "compared above")
    finish(golden, parts, "vlp_vqa", loss, ["masked_lm_loss", "vis_pretext_loss"])
