"""Layouts of dual encoders whose towers are open_clip's: its own, OpenAI's CLIP, Hugging Face's CLIP and SigLIP.

Sources: open_clip, model.py (CLIP, CustomTextCLIP, convert_to_custom_text_state_dict), hf_model.py; openai/CLIP,
clip/model.py; transformers, models/clip/modeling_clip.py, models/siglip/modeling_siglip.py.
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


# what layers of open_clip's and of timm's call query, key and value in one, and what follows
OF_OPEN_CLIP = ("attn.in_proj_", "attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
OF_TIMM = ("attn.qkv.", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")


def _layers(ours: str, theirs: str, names: tuple[str, ...] = OF_OPEN_CLIP) -> list[Rule]:
    """Rules of a stack of layers, whose query, key and value we have as one."""
    ours, theirs = f"{ours}.{{i}}.", f"{theirs}.encoder.layers.{{i}}."
    rules = [
        Rule(f"{ours}{names[0]}{kind}", tuple(f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv"))
        for kind in ("weight", "bias")
    ]
    rest = ("self_attn.out_proj", "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
    return rules + _pairs(ours, theirs, dict(zip(names[1:], rest, strict=True)))


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
        *_layers(f"{IMAGE}transformer.resblocks", "vision_model"),
        Rule(f"{IMAGE}proj", ("visual_projection.weight",), transposed=True),
        Rule(f"{TEXT}token_embedding.weight", ("text_model.embeddings.token_embedding.weight",)),
        Rule(f"{TEXT}positional_embedding", ("text_model.embeddings.position_embedding.weight",)),
        *_layers(f"{TEXT}transformer.resblocks", "text_model"),
        *_pairs(TEXT, "text_model.", {"ln_final": "final_layer_norm"}),
        Rule(f"{TEXT}text_projection", ("text_projection.weight",), transposed=True),
    ],
    unused={r".*\.embeddings\.position_ids": "a table of numbers, of older versions of transformers"},
)

HEAD = "vision_model.head."
PROBE = [f"{HEAD}attention.{part}" for part in "qkv"]  # attention's query, key and value, which SigLIP has as one
_IMAGE = f"{IMAGE}trunk."  # timm's

# the image tower is one of timm with a head of attention, the text tower reads the last token
SIGLIP = KeyMap(
    [
        Rule("model.logit_scale", ("logit_scale",), scalar=True),
        Rule("model.logit_bias", ("logit_bias",), scalar=True),
        *_pairs(_IMAGE, "vision_model.", {"patch_embed.proj": "embeddings.patch_embedding", "norm": "post_layernorm"}),
        Rule(f"{_IMAGE}pos_embed", ("vision_model.embeddings.position_embedding.weight",), leading=True),
        *_layers(f"{_IMAGE}blocks", "vision_model", OF_TIMM),
        Rule(f"{_IMAGE}attn_pool.latent", (f"{HEAD}probe",)),
        *(Rule(f"{_IMAGE}attn_pool.q.{kind}", (f"{PROBE[0]}_{kind}",)) for kind in ("weight", "bias")),
        *(
            Rule(f"{_IMAGE}attn_pool.kv.{kind}", tuple(f"{part}_{kind}" for part in PROBE[1:]))
            for kind in ("weight", "bias")
        ),
        *_pairs(
            f"{_IMAGE}attn_pool.",
            HEAD,
            {"proj": "attention.out_proj", "norm": "layernorm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"},
        ),
        Rule(f"{TEXT}token_embedding.weight", ("text_model.embeddings.token_embedding.weight",)),
        Rule(f"{TEXT}positional_embedding", ("text_model.embeddings.position_embedding.weight",)),
        *_layers(f"{TEXT}transformer.resblocks", "text_model"),
        *_pairs(TEXT, "text_model.", {"ln_final": "final_layer_norm", "text_projection": "head"}),
    ],
    unused={r".*\.embeddings\.position_ids": "a table of numbers, of older versions of transformers"},
    fused={f"{HEAD}attention.in_proj_{kind}": tuple(f"{part}_{kind}" for part in PROBE) for kind in ("weight", "bias")},
)

# open_clip's models whose text tower is one of transformers
TEXT_OF_TRANSFORMERS = KeyMap(
    SCALE,
    unused={"text.transformer.embeddings.position_ids": "a table of numbers, of older versions of transformers"},
    prefixes={IMAGE: "visual.", "model.text.backbone.": "text.transformer.", "model.text.projection.": "text.proj."},
)

LAYOUTS: dict[str, KeyMap] = {
    "clip_transformers": TRANSFORMERS,
    "siglip_transformers": SIGLIP,
    "open_clip": KEY_MAP,  # and OpenAI's
    "open_clip_custom_text": CUSTOM_TEXT,
    "open_clip_transformers_text": TEXT_OF_TRANSFORMERS,
}
