"""What the parity tests of VOLTA's systems share: the heads, the losses and the gradients."""

from __future__ import annotations

import torch
from golden import LOSSES, STATES, Golden
from torch import Tensor, nn
from two_streams import labels

from vlp.checkpoints.key_map import KeyMap, export_state
from vlp.contracts import Encoded
from vlp.objectives.masked_language import MaskedTokens
from vlp.objectives.masked_region import MaskedRegions
from vlp.objectives.matching import MatchingTargets

SEGMENTS = ("first", "second")  # the recorded texts have both token types


def chosen_regions(golden: Golden) -> Tensor:
    """Bool [R]: the regions to predict; row 0 is the whole image, if the model is told of it."""
    g = golden.inputs
    regions = g["image_attention_mask"].bool()[:, -g["image_label"].shape[1] :]
    return g["image_label"][regions] == 1


def region_distribution(golden: Golden, volta: nn.Module, encoded: Encoded, visual: Tensor) -> Tensor:
    """The loss of region classes; `visual` [n, H] are the states of all real rows of images, the whole one too."""
    g, head = golden.inputs, volta.objectives["masked_region_distribution"]
    rows = g["image_attention_mask"].bool()
    golden.check("image_logits_target0", head.classifier(visual), rows, **STATES)
    truth = g["image_cls"][rows[:, -g["image_cls"].shape[1] :]]
    targets = MaskedRegions(chosen_regions(golden), truth, torch.ones(len(rows), dtype=torch.bool))
    return head.loss(encoded, targets, volta.model)[0]["masked_region_distribution"]


def finish(golden: Golden, volta: nn.Module, key_map: KeyMap, encoded: Encoded, text: Tensor, regions: Tensor) -> None:
    """Everything after the model and the heads of regions.

    Args:
        text: [n, H], states of all real rows of text. regions: the loss of masked regions.
    """
    g, model, o = golden.inputs, volta.model, volta.objectives
    words = g["attention_mask"].bool()
    for name, ours in (("text", "text"), ("image", "visual"), ("fused", "pair")):
        golden.check(f"{name}_pooled", encoded.pooled[ours], **STATES)
    head = o["masked_language"]
    every = nn.functional.linear(head.transform(text), model.tied("word_embeddings"), head.bias)
    golden.check("text_logits", every, words, **STATES)
    wanted = labels(golden, SEGMENTS)
    all_matched = torch.ones(len(words), dtype=torch.bool)
    tokens = MaskedTokens(wanted, {name: value != -1 for name, value in wanted.items()}, all_matched)
    mlm = head.loss(encoded, tokens, model)[0]["masked_language"]
    golden.check("masked_lm_loss", mlm[None], **LOSSES)
    golden.check("masked_region_loss", regions[None], **LOSSES)
    # class 0 of the official head is "matched"
    golden.check("alignment_logits", o["matching"].classify(encoded.pooled["pair"]).flip(1), **STATES)
    matched = MatchingTargets(g["next_sentence_label"] == 0)
    alignment = o["matching"].loss(encoded, matched, model)[0]["matching"]
    golden.check("alignment_loss", alignment[None], **LOSSES)
    total = mlm + regions + alignment
    golden.check("total_loss", total, **LOSSES)

    total.backward()
    gradients = {name: parameter.grad for name, parameter in volta.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    for name, gradient in export_state(gradients, key_map).items():
        if name not in golden.ties:
            golden.check_gradient(name, gradient.norm())
    golden.assert_all_read()
