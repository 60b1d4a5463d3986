"""The official layout of WenLan (BAAI-WuDao/BriVL, VL_model) as a key map.

The image tower's backbone has timm's names in both. Momentum copies and queues are those of the objective of type
`momentum_contrast`; files may be without them, as may models.
"""

from __future__ import annotations

from dataclasses import replace

from vlp.checkpoints.importers.bert_parts import both, text_trunk
from vlp.checkpoints.key_map import KeyMap, Rule

_OBJECTIVE = "objectives.momentum_contrast"


def _head(ours: str, theirs: str) -> list[Rule]:
    """The transformer, which is torch's own, and the two linear layers; theirs end in Att and FC."""
    layer, own = f"{ours}.encoder.layers.{{i}}", f"{theirs}Att.layers.{{i}}"
    return [
        *(Rule(f"{layer}.attention.qkv.{kind}", (f"{own}.self_attn.in_proj_{kind}",)) for kind in ("weight", "bias")),
        *both(f"{layer}.attention.out", f"{own}.self_attn.out_proj"),
        *both(f"{layer}.attention_norm", f"{own}.norm1"),
        *both(f"{layer}.mlp_in", f"{own}.linear1"),
        *both(f"{layer}.mlp_out", f"{own}.linear2"),
        *both(f"{layer}.mlp_norm", f"{own}.norm2"),
        *both(f"{ours}.hidden", f"{theirs}FC.fc1"),
        *both(f"{ours}.out", f"{theirs}FC.fc2"),
    ]


def _towers(ours: str, theirs: str) -> list[Rule]:
    """Both towers of a model, but for the image's backbone; the names of theirs end in `theirs`."""
    image, text = f"learnable.imgencoder{theirs}", f"learnable.textencoder{theirs}"
    return [
        *both(f"{ours}.image.projection", f"{image}.learnable.max_pool.0"),
        *_head(f"{ours}.image.head", f"{image}.learnable.img"),
        *text_trunk(f"{ours}.text.backbone", f"{text}.backbone.bert"),
        *_head(f"{ours}.text.head", f"{text}.learnable.text"),
    ]


_MOMENTUM = [
    *_towers(f"{_OBJECTIVE}.key_model", "_mom"),
    *(
        rule
        for ours, theirs in (("image", "img"), ("text", "text"))
        for rule in (
            Rule(f"{_OBJECTIVE}.{ours}_queue.keys", (f"{theirs}_queue",)),
            Rule(f"{_OBJECTIVE}.{ours}_queue.pointer", (f"{theirs}_queue_ptr",), scalar=True),
        )
    ),
]

KEY_MAP = KeyMap(
    rules=[*_towers("model", ""), *(replace(rule, optional=True) for rule in _MOMENTUM)],
    unused={
        r"learnable\.imgencoder(_mom)?\.backbone\.classifier\..*": "timm's classifier, which the towers don't use",
        r"learnable\.textencoder(_mom)?\.backbone\.bert\.pooler\..*": "BERT's pooler, which the towers don't use",
        r"learnable\.textencoder(_mom)?\.backbone\.bert\.embeddings\.position_ids": "the numbers from 0 on",
    },
    prefixes={
        "model.image.backbone.": "learnable.imgencoder.backbone.",
        f"{_OBJECTIVE}.key_model.image.backbone.": "learnable.imgencoder_mom.backbone.",
    },
    ours_alone={
        r"(.*\.key_)?model\.logit_scale": "their temperature is a constant",
        r".*\.started": "their copies always have",
    },
)

LAYOUTS: dict[str, KeyMap] = {
    "brivl": KEY_MAP,
}
