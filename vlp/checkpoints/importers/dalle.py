"""Layouts of DALLE-pytorch, a copy of DALL-E with published weights, and of OpenAI's coder of pictures as key maps.

Sources: DALLE-pytorch, dalle_pytorch/dalle_pytorch.py (DALLE, DiscreteVAE), transformer.py, and train_dalle.py
(save_model); openai/DALL-E, dall_e/encoder.py, decoder.py.

DALLE-pytorch reads id 0 of a text as padding, and begins every sequence with it: PAD of the template, which of CLIP's
byte pairs is the token "!". Where a text has that token, which only stands before other signs, ours reads it as a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vlp.checkpoints.importers.bert_parts import KINDS, both
from vlp.checkpoints.key_map import KeyMap, Rule

PICTURES, CODEBOOK = "model.pictures", "model.pictures.codebook.weight"
LAYER, THEIRS = "model.layers.{i}", "transformer.layers.layers.{i}"


def _discrete_vae(theirs: str, optional: bool) -> list[Rule]:
    """A coder's table of codes, and what it has of convolutions and residual blocks, which the model knows."""
    parts = [
        rule
        for side in ("encoder", "decoder")
        for part in (".0", ".net.0", ".net.2", ".net.4", "")
        for rule in both(f"{PICTURES}.{side}.{{i}}{part}", f"{theirs}{side}.{{i}}{part}", optional=True)
    ]
    return [Rule(CODEBOOK, (f"{theirs}codebook.weight",), optional=optional), *parts]


_MODEL = [
    *both("model.norm", "to_logits.0"),
    Rule("model.head_bias", ("to_logits.1.bias",)),
    Rule("model.text_positions", ("text_pos_emb.weight",), optional=True),
    Rule("model.row_positions", ("image_pos_emb.weights_0",), optional=True),
    Rule("model.column_positions", ("image_pos_emb.weights_1",), optional=True),
    Rule(f"{LAYER}.qkv.weight", (f"{THEIRS}.0.to_qkv.weight",)),
    *both(f"{LAYER}.out", f"{THEIRS}.0.to_out.0"),
    *both(f"{LAYER}.mlp_in", f"{THEIRS}.1.net.0"),
    *both(f"{LAYER}.mlp_out", f"{THEIRS}.1.net.3"),
    *(
        rule
        for number, part in enumerate(("attention", "mlp"))
        for rule in (
            *both(f"{LAYER}.{part}_norm", f"{THEIRS}.{number}.fn.norm"),
            *both(f"{LAYER}.{part}_end", f"{THEIRS}.{number}.fn.norm_out", optional=True),
            Rule(f"{LAYER}.{part}_scale", (f"{THEIRS}.{number}.scale",)),
        )
    ),
    *_discrete_vae("vae.", optional=True),
]
_SPELLINGS = {  # `as_saved` is the way back
    r"transformer\.layers\.blocks\.(\d+)\.f\.net\.": r"transformer.layers.layers.\1.0.",
    r"transformer\.layers\.blocks\.(\d+)\.g\.net\.": r"transformer.layers.layers.\1.1.",
    r"\.(fn\.)+(?=(to_qkv|to_out|net)\.)": ".",
}
_UNUSED = {r"transformer\.pos_emb": "a table of angles, which the model makes by itself"}


def as_saved(
    weights: Mapping[str, Tensor], reversible: bool, token_shift: bool, angles: Tensor | None
) -> dict[str, Tensor]:
    """What is exported, by the names that DALLE-pytorch's own file has: they tell how blocks are wrapped.

    angles: float [L, R], of rotary positions, which it keeps among its weights.
    """
    saved = {}
    for key, value in weights.items():
        name = key
        for number, part, wrapped in ((0, r"to_qkv|to_out", 3), (1, r"net", 2)):
            begin, fns = rf"(transformer\.layers\.layers\.\d+\.{number}\.)", "fn." * (wrapped + 2 * token_shift)
            name = re.sub(rf"^{begin}(?=({part})\.)", rf"\g<1>{fns}", name)
            if reversible:
                name = re.sub(rf"layers\.layers\.(\d+)\.{number}\.", rf"layers.blocks.\1.{'fg'[number]}.net.", name)
        saved[name] = value
    return saved if angles is None else {**saved, "transformer.pos_emb": angles[None]}


def _openai() -> list[Rule]:
    """OpenAI's coder: stages, of blocks that the published one has two of; a skip where widths differ."""
    ends = {"weight": "w", "bias": "b"}
    rules = []
    for side in ("encoder", "decoder"):
        ours, theirs = f"{PICTURES}.{side}", f"{side}.blocks"
        names = {f"{part}": (f"{part}", False) for part in ("input", "output.conv")}
        for block in (1, 2):
            begin = f"group_{{i}}.block_{block}"
            names[f"{begin}.skip"] = f"{begin}.id_path", True
            names |= {f"{begin}.net.conv_{n}": (f"{begin}.res_path.conv_{n}", block > 1) for n in range(1, 5)}
        rules += [
            Rule(f"{ours}.{own}.{kind}", (f"{theirs}.{other}.{ends[kind]}",), optional=optional)
            for own, (other, optional) in names.items()
            for kind in KINDS
        ]
    return rules


LAYOUTS: dict[str, KeyMap] = {
    "dalle_pytorch": KeyMap(
        [
            *_MODEL,
            Rule("model.tokens.weight", ("text_emb.weight", "image_emb.weight"), last_as=CODEBOOK),
            Rule("model.head.weight", ("to_logits.1.weight",)),
        ],
        unused=_UNUSED,
        spellings=_SPELLINGS,
    ),
    # with share_input_output_emb: the table of tokens is the head's weight
    "dalle_pytorch_shared": KeyMap(
        [*_MODEL, Rule("model.tokens.weight", ("to_logits.1.weight",))],
        {f"{side}_emb.linear.{kind}": f"to_logits.1.{kind}" for side in ("text", "image") for kind in KINDS},
        _UNUSED,
        _SPELLINGS,
    ),
    "dalle_pytorch_vae": KeyMap(_discrete_vae("", optional=False)),
    "openai_dvae": KeyMap(_openai()),  # as `vlp convert-dvae` writes it
}
