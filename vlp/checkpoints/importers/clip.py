"""Layouts of dual encoders whose towers are open_clip's: open_clip's own two, OpenAI's CLIP, Hugging Face's CLIP.

Sources: open_clip, model.py (CLIP, CustomTextCLIP, convert_to_custom_text_state_dict); openai/CLIP, clip/model.py;
transformers, models/clip/modeling_clip.py.
"""

from __future__ import annotations

from vlp.checkpoints.key_map import KeyMap, Rule

IMAGE, TEXT = "model.image.trunk.", "model.text.trunk."
SCALE = [
    Rule("model.logit_scale", ("logit_scale",)),
    Rule("model.logit_bias", ("logit_bias",), optional=True),
]

# the text tower's keys stand at the root; OpenAI's files have three numbers beside the weights
KEY_MAP = KeyMap(
    [
        *SCALE,
        Rule(f"{TEXT}positional_embedding", ("positional_embedding",)),
        Rule(f"{TEXT}text_projection", ("text_projection",)),
    ],
    unused={
        "attn_mask": "the causal mask, which the model makes by itself",
        "input_resolution|context_length|vocab_size": "a size, which the configuration says",
    },
    prefixes={
        IMAGE: "visual.",
        f"{TEXT}token_embedding.": "token_embedding.",
        f"{TEXT}transformer.": "transformer.",
        f"{TEXT}ln_final.": "ln_final.",
    },
)

# models with a text tower of their own: SigLIP, CoCa's two towers and others
CUSTOM_TEXT = KeyMap(
    SCALE,
    unused={
        "text_decoder.*": "CoCa's decoder of captions, which a dual encoder lacks",
        "text.transformer.embeddings.position_ids": "a table of numbers, of older versions of transformers",
    },
    prefixes={IMAGE: "visual.", TEXT: "text."},
)


def _layers(ours: str, theirs: str) -> list[Rule]:
    """Rules of a stack of layers, whose query, key and value we have as one."""
    ours, theirs = f"{ours}transformer.resblocks.{{i}}.", f"{theirs}.encoder.layers.{{i}}."
    rules = [
        Rule(f"{ours}attn.in_proj_{kind}", tuple(f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv"))
        for kind in ("weight", "bias")
    ]
    names = {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    return rules + _pairs(ours, theirs, names)


def _pairs(ours: str, theirs: str, names: dict[str, str]) -> list[Rule]:
    return [
        Rule(f"{ours}{own}.{kind}", (f"{theirs}{other}.{kind}",))
        for own, other in names.items()
        for kind in ("weight", "bias")
    ]


TRANSFORMERS = KeyMap(
    [
        Rule("model.logit_scale", ("logit_scale",)),
        Rule(f"{IMAGE}class_embedding", ("vision_model.embeddings.class_embedding",)),
        Rule(f"{IMAGE}conv1.weight", ("vision_model.embeddings.patch_embedding.weight",)),
        Rule(f"{IMAGE}positional_embedding", ("vision_model.embeddings.position_embedding.weight",)),
        # misspelt there
        *_pairs(IMAGE, "vision_model.", {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}),
        *_layers(IMAGE, "vision_model"),
        Rule(f"{IMAGE}proj", ("visual_projection.weight",), transposed=True),
        Rule(f"{TEXT}token_embedding.weight", ("text_model.embeddings.token_embedding.weight",)),
        Rule(f"{TEXT}positional_embedding", ("text_model.embeddings.position_embedding.weight",)),
        *_layers(TEXT, "text_model"),
        *_pairs(TEXT, "text_model.", {"ln_final": "final_layer_norm"}),
        Rule(f"{TEXT}text_projection", ("text_projection.weight",), transposed=True),
    ],
    unused={r".*\.embeddings\.position_ids": "a table of numbers, of older versions of transformers"},
)

LAYOUTS: dict[str, KeyMap] = {
    "clip_transformers": TRANSFORMERS,
    "open_clip": KEY_MAP,  # and OpenAI's
    "open_clip_custom_text": CUSTOM_TEXT,
}
