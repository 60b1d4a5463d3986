"""VL-BERT against numbers computed with the official implementation."""

from __future__ import annotations

import pytest
import torch
from golden import LOSSES, STATES, Golden, golden_cases, single_stream_sizes, text_tables
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlp.build import build_model
from vlp.checkpoints.importers.vlbert import ENCODER_KEY_MAP
from vlp.checkpoints.key_map import KeyMismatchError, export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.contracts import Encoded
from vlp.interfaces import NONE, Batch, Images, Segment, Texts
from vlp.needs import FeatureFacts
from vlp.nn.ragged import offsets_of, padded
from vlp.objectives.masked_language import MaskedLanguage, MaskedTokens
from vlp.objectives.masked_region import MaskedRegionDistribution, MaskedRegions
from vlp.objectives.matching import Matching, MatchingTargets
from vlp.registry import IMPORTERS

CASES = {"core": ("core", "core_visual_projection_scale"), "pretraining": ("pretraining", "pretraining_multitask")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    for fixture, names in CASES.items():
        if fixture in metafunc.fixturenames:
            paths = golden_cases(folder, "vlbert", fixture)  # by prefix, so it finds all of them
            for name in names:
                assert any(path.stem.startswith(name) for path in paths), f"{folder} has no file vlbert/{name}"
            metafunc.parametrize(fixture, paths, ids=[f"vlbert/{path.stem}" for path in paths])


def build(c: dict, features: int, frequencies: int, layout: dict, special: dict[str, int], text_only: bool):
    settings = {
        **single_stream_sizes(c),
        "regions_take": int(c["obj_pos_id_relative"]),
        **layout,
        "embedder": {
            "type": "vlbert",
            **text_tables(c),
            "frequencies": frequencies,
            "visual_size": c["visual_size"],
            "visual_norm": c["visual_ln"],
            "text_only": text_only,
        },
    }
    return build_model(settings, special, FeatureFacts(features, c["visual_region_classes"]))


class Capture:
    """Rows that a model's embedder and layers gave in the last call."""

    def __init__(self, model: nn.Module):
        self.rows: dict[str, Tensor] = {}
        parts = {"embeddings": model.embedder, **{f"layer{n}": p for n, p in enumerate(model.encoder.layers)}}
        for name, part in parts.items():
            part.register_forward_hook(lambda m, i, out, name=name: self.rows.__setitem__(name, out))


def compact(encoded: Encoded, width: int) -> tuple[Tensor, Tensor]:
    """States as the original's padded [P, width, H], and which of them are real: the first of each sequence."""
    view = padded(encoded.text.offsets)
    assert view.real.shape[1] == width
    return encoded.text.values[view.index], view.real


def check_gradients(golden: Golden, parts: nn.Module, key_map, prefix: str = "") -> None:
    gradients = {name: p.grad for name, p in parts.named_parameters() if p.grad is not None}
    for name, gradient in export_state(gradients, key_map).items():
        if name not in golden.ties:
            golden.check_gradient(name.removeprefix(prefix), gradient.norm())


def test_core(core) -> None:
    """The encoder alone, given a visual vector for each token and both vectors for each region.

    A token's own vector comes in as the region that it refers to, of an image that the layout does not show.
    """
    golden = Golden.read(core)
    g, c = golden.inputs, golden.config
    words, regions, types = g["text_mask"], g["object_mask"], g["text_token_type_ids"]
    layout = {"layout": ["question", "answer", "regions_2", "END"], "layout_types": [0, 1, 2, 2]}
    layout["max_tokens"] = {"question": c["max_position_embeddings"], "answer": c["max_position_embeddings"]}
    model = build(c, 4, 1, layout, {}, text_only=False).eval()
    weights = {f"vlbert.{name}": value for name, value in golden.weights.items()}
    imported = import_state(weights, ENCODER_KEY_MAP)
    back = export_state(imported, ENCODER_KEY_MAP)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    own = {f"model.{name}": value for name, value in model.state_dict().items()}
    assert {name.split(".")[2] for name in set(own) - set(imported)} == {
        "mask_vector", "region_projection", "region_word", "masked_region_word",
    }  # fmt: skip
    load_strictly(nn.ModuleDict({"model": model}), own | imported, str(core))

    count, visual = len(words), c["visual_size"]
    segments = {}
    for name, chosen in (("question", words & (types == 0)), ("answer", words & (types == 1))):
        tokens, place = g["text_input_ids"][chosen], torch.arange(words.shape[1]).expand_as(words)[chosen]
        starts = torch.ones_like(tokens, dtype=torch.bool)
        segments[name] = Segment(tokens, offsets_of(chosen.sum(1)), starts, token_region=place)
    # the answer follows the question, so the split of the original's types must be in this order
    assert (types[:, 1:] >= types[:, :-1])[words[:, 1:]].all()
    region_vectors, region_words = g["object_vl_embeddings"][regions].split([visual, c["hidden_size"]], 1)
    vectors = torch.cat([g["text_visual_embeddings"][words], region_vectors, torch.zeros(2 * count, visual)])
    model.embedder.vectors = lambda images, planned: vectors
    nothing = torch.zeros(int(words.sum()), c["hidden_size"])
    linguistic = torch.cat([nothing, region_words, torch.zeros(2 * count, c["hidden_size"])])
    model.embedder.region_words = lambda images: linguistic
    total = int(words.sum() + regions.sum())
    numbers = torch.arange(count)
    batch = Batch(
        Texts(segments, numbers),
        Images(
            ids=torch.arange(2 * count),
            offsets=offsets_of(torch.cat([words.sum(1), regions.sum(1)])),
            features=torch.zeros(total, 4),
            boxes=torch.zeros(total, 4),
        ),
        pairs=torch.stack([numbers, numbers, numbers + count], 1),
        matched=torch.ones(count, dtype=torch.bool),
    )
    seen = Capture(model)
    encoded = model(batch)
    real = golden.outputs["attention_mask"]
    states, found = compact(encoded, real.shape[1])
    assert torch.equal(found, real)
    golden.excuse("outputs/attention_mask", "boolean; compared above")
    index = padded(encoded.text.offsets).index
    for name, rows in (("text_positions", [*encoded.tokens.values()]), ("object_positions", [encoded.regions])):
        there = torch.zeros(len(encoded.text.values), dtype=torch.bool)
        for part in rows:
            there[part.row] = True
        assert torch.equal(there[index] & real, golden.outputs[name]), name
        golden.excuse(f"outputs/{name}", "boolean; compared above")
    for name, rows in seen.rows.items():
        if name in golden.outputs:
            golden.check(name, rows, real, **STATES)
    golden.check("pooled_output", encoded.pooled["pair"], **STATES)
    length = words.shape[1]
    golden.check("text_output", states[:, :length][real[:, :length]], real[:, :length], **STATES)
    placed = torch.zeros(*regions.shape, c["hidden_size"])
    placed[regions] = encoded.visual.values[encoded.regions.row]
    golden.check("object_output", placed, **STATES)
    for name in [name for name in golden.outputs if name.startswith("attention_probs")]:
        number = int(name.removeprefix("attention_probs"))
        rows = seen.rows["embeddings" if number == 0 else f"layer{number - 1}"]
        heads = model.encoder.layers[number].attention
        query, key, _ = heads.qkv(rows)[index].unflatten(2, (3, heads.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        probabilities = scores.masked_fill(~real[:, None, None], -10000.0).softmax(-1)
        golden.outputs[name] = golden.outputs[name].transpose(1, 2)  # queries before heads, to choose the real ones
        golden.check(name, probabilities.transpose(1, 2)[real], real, **STATES)
    probe = (encoded.text.values**2).sum() / (real.numel() * c["hidden_size"]) + encoded.pooled["pair"].sum()
    golden.check("probe_loss", probe, **LOSSES)
    probe.backward()
    check_gradients(golden, nn.ModuleDict({"model": model}), ENCODER_KEY_MAP, "vlbert.")
    golden.assert_all_read()


class Adapter:
    """Golden inputs as our batch: the original's region 0 is the whole image, and text-only rows come last."""

    def __init__(self, golden: Golden):
        g = golden.inputs
        self.count = len(g["text"])
        self.objects = g["boxes"][:, :, 0] > -1.5
        self.width = g["boxes"].shape[2] - 4
        length = max(g[name].shape[1] for name in ("text", "aux_text") if name in g)
        texts, labels = [], []
        for ids, mlm in (("text", "mlm_labels"), ("aux_text", "aux_mlm_labels")):
            if ids in g:
                pad = (0, length - g[ids].shape[1])
                texts.append(nn.functional.pad(g[ids], pad))
                labels.append(nn.functional.pad(g[mlm], pad, value=-1))
        self.text, self.labels = torch.cat(texts), torch.cat(labels)
        self.words = self.text > 0
        lengths = self.words.sum(1)
        self.special = {"CLS": int(self.text[0, 0]), "SEP": int(self.text[0, lengths[0] - 1])}
        assert (self.text[:, 0] == self.special["CLS"]).all()
        assert all(self.text[n, last - 1] == self.special["SEP"] for n, last in enumerate(lengths))
        inner = self.words.clone()
        inner[:, 0] = False
        inner[torch.arange(len(lengths)), lengths - 1] = False
        assert (self.labels[~inner] == -1).all()
        self.inner, self.lengths = inner, lengths
        self.regions = self.objects.clone()
        self.regions[:, 0] = False
        self.golden = golden

    def batch(self) -> Batch:
        g = self.golden.inputs
        numbers = torch.arange(len(self.text))
        tokens = self.text[self.inner]
        size = g["im_info"][:, :2].repeat(1, 2)[:, None]
        boxes = g["boxes"][:, :, :4] / size
        assert (g["mvrc_ops"][:, 0] == 0).all()
        images = Images(
            ids=numbers[: self.count],
            offsets=offsets_of(self.regions.sum(1)),
            features=g["boxes"][:, :, 4:][self.regions],
            boxes=boxes[self.regions],
            masked=g["mvrc_ops"][self.regions] == 1,
            whole=g["boxes"][:, 0, 4:],
            whole_boxes=boxes[:, 0],
        )
        segment = Segment(tokens, offsets_of(self.lengths - 2), torch.ones_like(tokens, dtype=torch.bool))
        image = torch.where(numbers < self.count, numbers, NONE)
        matched = torch.ones(len(numbers), dtype=torch.bool)
        return Batch(Texts({"caption": segment}, numbers), images, torch.stack([numbers, image], 1), matched)


def per_sample(losses: Tensor, owner: Tensor) -> Tensor:
    """The original's NORM_IN_BATCH_FIRST: mean of each sample, then of the samples that have something to predict."""
    means = [losses[owner == n].sum() / ((owner == n).sum() + 1e-4) for n in owner.unique()]
    return torch.stack(means).sum() / (len(means) + 1e-4)


def test_pretraining(pretraining) -> None:
    golden = Golden.read(pretraining)
    network, g = golden.config["NETWORK"], golden.inputs
    c, text_only = network["VLBERT"], "aux_text" in g
    adapter = Adapter(golden)
    frequencies = (golden.weights["image_feature_extractor.obj_downsample.1.weight"].shape[1] - adapter.width) // 8
    layout = {
        "layout": ["CLS", "caption", "SEP", "whole", "regions", "END"],
        "layout_types": [0, 0, 0, 2, 2, 2],
        "max_tokens": {"caption": c["max_position_embeddings"]},
    }
    model = build(c, adapter.width, frequencies, layout, adapter.special, text_only)
    words = list(range(4, c["vocab_size"]))
    soft = {"head_norm": False, "cross_entropy": True, "sum_tolerance": 0.1, "keep_share": 0.1, "force": False}
    o = nn.ModuleDict(
        {
            "masked_language": MaskedLanguage(model, 3, words, 0.15, ["caption"], whole_words=True, force=False),
            "masked_region_distribution": MaskedRegionDistribution(model, c["visual_region_classes"], 0.15, **soft),
            "matching": Matching(model, 0.5),
        }
    )
    parts = nn.ModuleDict({"model": model, "objectives": o}).eval()
    key_map = IMPORTERS["vlbert"]
    imported = import_state(golden.weights, key_map)
    load_strictly(parts, imported, str(pretraining))
    back = export_state(imported, key_map)
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[name], golden.weights[name]) for name in back)

    batch = adapter.batch()
    vectors = model.embedder.vectors(batch.images)
    placed = torch.zeros(*adapter.objects.shape, c["visual_size"])
    placed[adapter.regions] = vectors[: len(batch.images.features)]
    placed[:, 0] = vectors[len(batch.images.features) :]
    chosen = adapter.objects
    golden.check("object_representations", placed[chosen], chosen, **STATES)
    seen = Capture(model)
    encoded = model(batch)
    width = golden.outputs["embeddings"].shape[1]
    states, real = compact(encoded, width)
    assert torch.equal(real.sum(1)[: adapter.count], adapter.lengths[: adapter.count] + chosen.sum(1) + 1)
    golden.check("embeddings", seen.rows["embeddings"], real, **STATES)

    # the head over all columns of the text, which hold region states after a short text
    length = adapter.text.shape[1]
    word_head = o["masked_language"]
    logits = nn.functional.linear(word_head.transform(states), model.tied("word_embeddings"), word_head.bias)
    parts_of_batch = {"mlm_logits_wvc": slice(adapter.count), "mlm_logits_aux": slice(adapter.count, None)}
    for name, which in parts_of_batch.items() if text_only else {"mlm_logits": slice(None)}.items():
        golden.check(name, logits[which, :length][real[which, :length]], real[which, :length], **STATES)
    first = adapter.lengths[: adapter.count, None] + torch.arange(chosen.shape[1])
    rows = (encoded.text.offsets[: adapter.count, None] + first)[chosen]
    class_logits = o["masked_region_distribution"].classifier(encoded.visual.values[rows])
    golden.check("mvrc_logits", class_logits, chosen, **STATES)
    matching_logits = o["matching"].classify(encoded.pooled["pair"])[: adapter.count]
    golden.check("relationship_logits", matching_logits, **STATES)

    labels = adapter.labels[adapter.inner]
    with_image = batch.pairs[:, 1] != NONE
    tokens = MaskedTokens({"caption": labels}, {"caption": labels != -1}, with_image)
    # every region is offered: which count is decided by the sums of their scores
    every = torch.ones(len(batch.images.features), dtype=torch.bool)
    regions = MaskedRegions(every, g["mvrc_labels"][adapter.regions], with_image, sum_tolerance=0.1)
    region_head = o["masked_region_distribution"]
    if network["MLM_LOSS_NORM_IN_BATCH_FIRST"]:
        assert network["MVRC_LOSS_NORM_IN_BATCH_FIRST"]
        owner = torch.arange(adapter.count)[:, None]
        word_logits, truth = word_head.predict(encoded, tokens, model)
        one_by_one = cross_entropy(word_logits, truth, reduction="none")
        mlm = per_sample(one_by_one, owner.expand_as(adapter.labels)[adapter.labels != -1])
        golden.check("mlm_loss", mlm, **LOSSES)
        region_logits, scores = region_head.predict(encoded, regions)
        valid = (g["mvrc_labels"].sum(2) - 1).abs() < 0.1
        one_by_one = cross_entropy(region_logits, scores, reduction="none")
        mvrc = per_sample(one_by_one, owner.expand_as(valid)[valid])
    else:
        mlm = word_head.loss(encoded, tokens, model)[0]["masked_language"]
        mvrc = region_head.loss(encoded, regions, model)[0]["masked_region_distribution"]
        golden.check("mlm_loss_wvc" if text_only else "mlm_loss", mlm, **LOSSES)
        if text_only:
            # the original takes the mean over text-only rows apart and adds it
            alone = MaskedTokens(tokens.labels, tokens.chosen, ~with_image)
            mlm_alone = word_head.loss(encoded, alone, model)[0]["masked_language"]
            golden.check("mlm_loss_aux", mlm_alone, **LOSSES)
            mlm = mlm + mlm_alone
    golden.check("mvrc_loss", mvrc, **LOSSES)
    pooled = {"pair": encoded.pooled["pair"][: adapter.count]}
    shown = Encoded(**{**vars(encoded), "pooled": pooled})
    matching, _ = o["matching"].loss(shown, MatchingTargets(g["relationship_label"].bool()), model)
    golden.check("relationship_loss", matching["matching"], **LOSSES)
    total = mlm + mvrc + matching["matching"]
    golden.check("total_loss", total, **LOSSES)
    total.backward()
    check_gradients(golden, parts, key_map)
    golden.assert_all_read()


def test_published_layout(pretraining) -> None:
    """Published files have no pooler and no matching head; those trained on pixels hold the detector as well."""
    golden = Golden.read(pretraining)
    absent = ("vlbert.pooler", "vlbert.relationsip_head")
    weights = {name: value for name, value in golden.weights.items() if not name.startswith(absent)}
    detector = {
        "image_feature_extractor.backbone.conv1.weight": torch.zeros(1),
        "image_feature_extractor.roi_head_feature_extractor.0.bias": torch.zeros(1),
    }
    key_map = IMPORTERS["vlbert"]
    imported = import_state(weights | detector, key_map)
    whole = import_state(golden.weights, key_map)
    assert {name for name in whole if name not in imported} == {
        f"{part}.{kind}" for part in ("model.pooler", "objectives.matching.classify") for kind in ("weight", "bias")
    }
    assert export_state(imported, key_map).keys() == weights.keys()
    with pytest.raises(KeyMismatchError, match=r"not expected: vlbert\.unheard_of"):
        import_state(weights | {"vlbert.unheard_of": torch.zeros(1)}, key_map)
    with pytest.raises(KeyMismatchError, match=r"missing: vlbert\.end_embedding\.weight"):
        import_state({name: v for name, v in weights.items() if "end_embedding" not in name}, key_map)
