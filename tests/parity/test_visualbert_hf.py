"""VisualBERT against Hugging Face's implementation, imported and exported."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from golden import STATES
from torch import Tensor, nn
from torch.nn.functional import linear

from vlp.build import build_model
from vlp.checkpoints.key_map import export_state, import_state
from vlp.checkpoints.load import load_strictly
from vlp.interfaces import NONE, Batch, Images, Segment, Texts
from vlp.needs import FeatureFacts
from vlp.nn.ragged import offsets_of
from vlp.objectives.masked_language import MaskedLanguage, MaskedTokens
from vlp.objectives.segment_matching import SegmentMatching, SegmentTargets
from vlp.registry import IMPORTERS

transformers = pytest.importorskip("transformers")

VOCABULARY, HIDDEN, FEATURES, POSITIONS = 60, 16, 6, 40
START, SEPARATOR, MASK = 1, 2, 3
SEGMENTS = ("caption", "second_caption")
TEXTS = ([[10, 11, 12], [13, 14, 15, 16, 17]], [[18, 19], [20]])  # of each segment
REGIONS = [5, 2]
REGION_OF = ([NONE, 0, 4, 0, NONE, NONE, 1, NONE], [2, NONE, 1])  # of each token of each segment
PREDICTED = ([False, True, False, True, False, False, False, True], [True, False, False])


@pytest.fixture
def theirs() -> nn.Module:
    config = transformers.VisualBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=POSITIONS,
        visual_embedding_dim=FEATURES,
    )
    model = transformers.VisualBertForPreTraining(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


class Ours(nn.Module):
    """The model and all objectives, as a training run holds them."""

    def __init__(self) -> None:
        super().__init__()
        settings = {
            "type": "single_stream",
            "hidden_size": HIDDEN,
            "layers": 2,
            "heads": 2,
            "mlp_size": 32,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "norm_eps": 1e-12,
            "initial_std": 0.3,
            "layout": ["CLS", "caption", "SEP", "second_caption", "SEP", "regions"],
            "layout_types": [0, 0, 0, 1, 1, 1],  # theirs has the type 1 for regions
            "max_tokens": dict.fromkeys(SEGMENTS, 30),
            "embedder": {"type": "visualbert", "vocab_size": VOCABULARY, "positions": POSITIONS, "types": 2},
        }
        self.model = build_model(settings, {"CLS": START, "SEP": SEPARATOR}, FeatureFacts(FEATURES, 0))
        self.objectives = nn.ModuleDict(
            {
                "masked_language": MaskedLanguage(self.model, MASK, [10], 0.15, list(SEGMENTS)),
                "segment_matching": SegmentMatching(self.model, {"second_caption": 0.5, "matched": 0.5}),
            }
        )


@dataclass(frozen=True)
class Inputs:
    """The same two pairs for both sides; `places` bool [P, L]: the rows that are real, text and regions."""

    batch: Batch
    targets: MaskedTokens
    keywords: dict[str, Tensor]
    places: Tensor


def inputs(aligned: bool) -> Inputs:
    features, boxes = torch.randn(sum(REGIONS), FEATURES), torch.rand(sum(REGIONS), 4)
    segments, labels, chosen = {}, {}, {}
    for name, texts, region_of, predicted in zip(SEGMENTS, TEXTS, REGION_OF, PREDICTED, strict=True):
        tokens = torch.tensor([token for text in texts for token in text])
        offsets = offsets_of(torch.tensor([len(text) for text in texts]))
        region = torch.tensor(region_of) if aligned else None
        segments[name] = Segment(tokens, offsets, torch.ones_like(tokens, dtype=torch.bool), region)
        labels[name], chosen[name] = tokens, torch.tensor(predicted)
    numbers, yes = torch.arange(2), torch.ones(2, dtype=torch.bool)
    images = Images(numbers, offsets_of(torch.tensor(REGIONS)), features, boxes)
    batch = Batch(Texts(segments, numbers), images, torch.stack([numbers, numbers], 1), yes)

    longest = max(3 + len(a) + len(b) for a, b in zip(*TEXTS, strict=True))
    ids, types, text_mask = (torch.zeros(2, longest, dtype=torch.int64) for _ in range(3))
    token_labels = torch.full((2, longest + max(REGIONS)), -100)
    visual = torch.zeros(2, max(REGIONS), FEATURES)
    region_mask = torch.zeros(2, max(REGIONS), dtype=torch.int64)
    words: list[list[list[int]]] = [[[] for _ in range(max(REGIONS))] for _ in range(2)]
    for pair in range(2):
        row, kinds = [START], [0]
        for number, name in enumerate(SEGMENTS):
            first = int(segments[name].offsets[pair])
            for place, token in enumerate(TEXTS[number][pair], start=first):
                if chosen[name][place]:
                    token_labels[pair, len(row)] = token
                if REGION_OF[number][place] != NONE:
                    words[pair][REGION_OF[number][place]].append(len(row))
                row.append(token)
                kinds.append(number)
            row.append(SEPARATOR)
            kinds.append(number)
        ids[pair, : len(row)], types[pair, : len(row)] = torch.tensor(row), torch.tensor(kinds)
        text_mask[pair, : len(row)] = 1
        start = int(images.offsets[pair])
        visual[pair, : REGIONS[pair]] = features[start : start + REGIONS[pair]]
        region_mask[pair, : REGIONS[pair]] = 1
    most = max(len(places) for of_pair in words for places in of_pair)
    alignment = torch.tensor([[places + [-1] * (most - len(places)) for places in of_pair] for of_pair in words])
    keywords = {
        "input_ids": ids,
        "token_type_ids": types,
        "attention_mask": text_mask,
        "visual_embeds": visual,
        "visual_attention_mask": region_mask,
        "labels": token_labels,
        "sentence_image_labels": torch.tensor([1, 0]),
        **({"image_text_alignment": alignment} if aligned else {}),
    }
    places = torch.cat([text_mask, region_mask], 1).bool()
    return Inputs(batch, MaskedTokens(labels, chosen, yes), keywords, places)


@pytest.mark.parametrize("aligned", [False, True])
def test_imported_model_computes_the_same(theirs: nn.Module, aligned: bool) -> None:
    ours = Ours().eval()
    load_strictly(ours, import_state(theirs.state_dict(), IMPORTERS["visualbert_hf"]), "transformers")
    given = inputs(aligned)
    expected = theirs(**given.keywords, output_hidden_states=True)
    encoded = ours.model(given.batch)
    o = ours.objectives
    torch.testing.assert_close(encoded.text.values, expected.hidden_states[-1][given.places], **STATES)
    head = o["masked_language"]
    logits = linear(head.transform(encoded.text.values), ours.model.tied("word_embeddings"), head.bias)
    torch.testing.assert_close(logits, expected.prediction_logits[given.places], **STATES)
    scores = o["segment_matching"].classify(encoded.pooled["pair"])
    torch.testing.assert_close(scores, expected.seq_relationship_logits, **STATES)
    mlm = head.loss(encoded, given.targets, ours.model)[0]["masked_language"]
    matching, _ = o["segment_matching"].loss(encoded, SegmentTargets(torch.tensor([1, 0])), ours.model)
    torch.testing.assert_close(mlm + matching["segment_matching"], expected.loss, rtol=1e-5, atol=1e-7)


def test_another_type_of_regions_is_another_model(theirs: nn.Module) -> None:
    """The original's type 0 would show: the test above can fail."""
    ours = Ours().eval()
    load_strictly(ours, import_state(theirs.state_dict(), IMPORTERS["visualbert_hf"]), "transformers")
    batch = inputs(False).batch
    before = ours.model(batch).pooled["pair"]
    ours.model.layout.types = [0, 0, 0, 1, 1, 0]
    assert not torch.allclose(before, ours.model(batch).pooled["pair"], atol=1e-3)


def test_exported_weights_load_in_theirs(theirs: nn.Module) -> None:
    """Every key of theirs is written, and their model then computes what ours does."""
    ours = Ours().eval()
    exported = export_state(ours.state_dict(), IMPORTERS["visualbert_hf"])
    theirs.load_state_dict(exported, strict=True)
    given = inputs(True)
    expected = theirs(**given.keywords, output_hidden_states=True)
    rows = ours.model(given.batch).text.values
    torch.testing.assert_close(rows, expected.hidden_states[-1][given.places], **STATES)
    back = import_state(exported, IMPORTERS["visualbert_hf"])
    assert all(torch.equal(back[name], value) for name, value in ours.state_dict().items())


def test_a_file_as_saved_is_read(theirs: nn.Module) -> None:
    """Saved files leave tied entries out, and those of older versions hold the position ids."""
    state = dict(theirs.state_dict())
    whole = import_state(state, IMPORTERS["visualbert_hf"])
    del state["cls.predictions.decoder.weight"], state["cls.predictions.decoder.bias"]
    state["visual_bert.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    assert all(
        torch.equal(whole[name], value) for name, value in import_state(state, IMPORTERS["visualbert_hf"]).items()
    )
