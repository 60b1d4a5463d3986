"""The loss of the next token against loops."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from tokens_small import cogview, dalle, some_batch

from vlp.interfaces import NONE
from vlp.objectives.next_token import NextToken


@pytest.mark.parametrize("make", [dalle, cogview], ids=["apart", "joint"])
@pytest.mark.parametrize(("text", "image"), [(1.0, 7.0), (5.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("mean", ["parts", "tokens"])
def test_loss(make: Any, text: float, image: float, mean: Any) -> None:
    model = make().double().eval()
    decoded = model(some_batch())
    losses: dict[str, list[float]] = {"text": [], "codes": []}
    weight = decoded.text_weight
    for part, states, labels in (
        ("text", decoded.text_states, decoded.text),
        ("codes", decoded.code_states, decoded.codes),
    ):
        logits = model.logits(states, part)
        for pair in range(len(labels)):
            for place, label in enumerate(labels[pair].tolist()):
                if part == "codes" or weight[pair, place]:
                    row = logits[pair, place].tolist()
                    losses[part].append(math.log(sum(math.exp(x) for x in row)) - row[label])
    means = [sum(own) / len(own) for own in losses.values()]
    if mean == "parts":
        expected = (text * means[0] + image * means[1]) / (text + image)
    else:
        counts = [text * len(losses["text"]), image * len(losses["codes"])]
        expected = (counts[0] * means[0] + counts[1] * means[1]) / sum(counts)
    found, report = NextToken(model, text, image, mean).loss(decoded, None, model)
    assert float(found["next_token"].detach()) == pytest.approx(expected, rel=1e-9)
    assert float(report["next_token_text"]) == pytest.approx(means[0], rel=1e-9)
    assert float(report["next_token_image"]) == pytest.approx(means[1], rel=1e-9)


def test_captions_are_left_out() -> None:
    model, batch = dalle(), some_batch([[3, 4]] * 1000)
    corrupt = pickle.loads(pickle.dumps(NextToken(model, empty_share=0.2).corrupt))
    changed, targets = corrupt(batch, torch.Generator().manual_seed(0))
    assert targets is None
    lost = changed.pairs[:, 0] == NONE
    assert 150 < int(lost.sum()) < 250
    assert torch.equal(changed.pairs[~lost], batch.pairs[~lost])
    assert torch.equal(changed.pairs[:, 1], batch.pairs[:, 1])
    words = model.plan(changed).ids[:, 1:6]
    assert (words[lost] >= 12).all()  # padding alone
    assert words[~lost][:, :2].tolist() == [[3, 4]] * int((~lost).sum())
    assert NextToken(model).corrupt(batch, torch.Generator())[0] is batch


@pytest.mark.parametrize(
    "settings",
    [{"text_weight": 0.0, "image_weight": 0.0}, {"text_weight": -1.0}, {"empty_share": 1.5}],
)
def test_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="but must"):
        NextToken(dalle(), **settings)
