"""Layouts of dual encoders whose towers are open_clip's: open_clip's own two, OpenAI's CLIP, Hugging Face's CLIP.

Sources: open_clip, model.py (CLIP, CustomTextCLIP, convert_to_custom_text_state_dict); openai/CLIP, clip/model.py;
transformers, models/clip/modeling_clip.py.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from vlp.checkpoints.key_map import KeyMap, Rule
from vlp.nn.towers.open_clip import settings_of, text_settings

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


def open_clip_config(model: dict[str, Any], special: dict[str, int]) -> dict[str, Any]:
    """What open_clip needs beside the weights: `open_clip_config.json` of a folder that it opens as `local-dir:`.

    Args:
        model: our `model` block, with two towers of open_clip.
        special: the tokenizer's special tokens.

    Raises:
        ValueError: the towers are not open_clip's, or of different open_clip models.
    """
    image, text = model["image"], model["text"]
    if (image["type"], text["type"]) != ("open_clip_image", "open_clip_text"):
        raise ValueError("open_clip can open models alone of which both towers are its own")
    settings = deepcopy(settings_of(image["name"]))
    of_text = settings_of(text["name"])
    if (settings.get("quick_gelu"), settings.get("custom_text")) != (
        of_text.get("quick_gelu"),
        of_text.get("custom_text"),
    ):
        raise ValueError(f"the towers of {image['name']} and {text['name']} can't be one model of open_clip")
    settings["embed_dim"] = image.get("embedding_size") or settings["embed_dim"]
    settings["vision_cfg"] |= image.get("settings") or {}
    settings["text_cfg"] = (
        of_text["text_cfg"] | text_settings(of_text["text_cfg"], special) | (text.get("settings") or {})
    )
    if model.get("logit_bias") is not None:
        settings["init_logit_bias"] = model["logit_bias"]
    size = model["pixels"]["size"]
    pictures = {
        "size": [size, size],
        "mode": "RGB",
        "mean": image["mean"],
        "std": image["std"],
        "interpolation": "bicubic",
        "resize_mode": model["pixels"].get("resize", "shortest"),
    }
    return {"model_cfg": settings, "preprocess_cfg": pictures}
