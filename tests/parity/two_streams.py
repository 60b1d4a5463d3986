"""What the parity tests of two-stream models share: golden inputs as batches, and recomputed attention."""

from __future__ import annotations

import torch
from golden import Golden
from torch import Tensor, nn

from vlp.interfaces import Images, Segment, Texts
from vlp.nn.cross_attention import CrossAttention
from vlp.nn.ragged import offsets_of


def segments(golden: Golden, ids: str, names: tuple[str, ...]) -> Texts:
    """The texts of a golden case: the inner tokens of type k are the segment `names[k]`.

    Every text begins with the start token (type 0) and ends with the separator (the last type), which the layout puts
    there.
    """
    g = golden.inputs
    real = g["attention_mask"].bool()
    lengths, places = real.sum(1), torch.arange(real.shape[1])
    assert (g["token_type_ids"][:, 0] == 0).all()
    assert all(g["token_type_ids"][row, n - 1] == len(names) - 1 for row, n in enumerate(lengths))
    inner = real & (places > 0) & (places < lengths[:, None] - 1)
    made = {}
    for kind, name in enumerate(names):
        chosen = inner & (g["token_type_ids"] == kind)
        tokens = g[ids][chosen]
        made[name] = Segment(tokens, offsets_of(chosen.sum(1)), torch.ones_like(tokens, dtype=torch.bool))
    return Texts(made, torch.arange(len(real)))


def labels(golden: Golden, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The labels of masked words of each segment, -1 where nothing is predicted."""
    g = golden.inputs
    real = g["attention_mask"].bool()
    lengths, places = real.sum(1), torch.arange(real.shape[1])
    inner = real & (places > 0) & (places < lengths[:, None] - 1)
    assert (g["masked_lm_labels"][~inner] == -1).all()
    return {name: g["masked_lm_labels"][inner & (g["token_type_ids"] == kind)] for kind, name in enumerate(names)}


def special(golden: Golden) -> dict[str, int]:
    """The start token and the separator, which all texts share."""
    g = golden.inputs
    ends = {int(ids[mask.sum() - 1]) for ids, mask in zip(g["input_ids"], g["attention_mask"], strict=True)}
    starts = {int(ids[0]) for ids in g["input_ids"]}
    assert len(starts) == len(ends) == 1
    return {"CLS": starts.pop(), "SEP": ends.pop()}


def images(features: Tensor, boxes: Tensor, real: Tensor, **more: Tensor) -> Images:
    """Images of padded regions [B, R, ...], of which `real` bool [B, R] are meant."""
    given = {name: value[real] for name, value in more.items()}
    return Images(torch.arange(len(real)), offsets_of(real.sum(1)), features[real], boxes[real][:, :4], **given)


def capture(modules: dict[str, nn.Module], into: dict[str, object]) -> list[torch.utils.hooks.RemovableHandle]:
    """Record what goes into (`name/in`) and comes out of modules."""

    def hook(name: str):
        def record(module: nn.Module, given: tuple, out: object) -> None:
            into[f"{name}/in"], into[name] = given, out

        return record

    return [module.register_forward_hook(hook(name)) for name, module in modules.items()]


def probabilities(attention: CrossAttention, query: Tensor, key: Tensor) -> Tensor:
    """Attention probabilities [h, Lq, Lk] of one pair's rows, written out."""
    q = attention.query(query).view(len(query), attention.heads, -1).transpose(0, 1)
    keys = attention.key_value(key)[:, : attention.query.out_features]
    k = keys.view(len(key), attention.heads, -1).transpose(0, 1)
    return (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
