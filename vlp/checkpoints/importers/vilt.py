"""ViLT as key maps: the official layout (dandelin/ViLT) and Hugging Face's (ViltForMaskedLM)."""

from __future__ import annotations

from vlp.checkpoints.importers.uniter import both
from vlp.checkpoints.key_map import KeyMap, Rule

_EMBEDDER = "model.embedder"
_LAYERS = "model.encoder.layers.{i}"
_THEIRS = "vilt.encoder.layer.{i}"  # Hugging Face's


def _text(theirs: str) -> list[Rule]:
    """Rules for the embeddings of words, whose prefix in their layout is given."""
    return [
        Rule(f"{_EMBEDDER}.word_table.weight", (f"{theirs}.word_embeddings.weight",)),
        Rule(f"{_EMBEDDER}.position_table.weight", (f"{theirs}.position_embeddings.weight",)),
        Rule(f"{_EMBEDDER}.text_type_table.weight", (f"{theirs}.token_type_embeddings.weight",)),
        *both(f"{_EMBEDDER}.text_norm", f"{theirs}.LayerNorm"),
    ]


_LANGUAGE_HEAD = [
    *both("objectives.masked_language.transform.linear", "mlm_score.transform.dense"),
    *both("objectives.masked_language.transform.norm", "mlm_score.transform.LayerNorm"),
]

KEY_MAP = KeyMap(
    rules=[
        *_text("text_embeddings"),
        *both(f"{_EMBEDDER}.patch_projection", "transformer.patch_embed.proj"),
        Rule(f"{_EMBEDDER}.class_vector", ("transformer.cls_token",)),
        Rule(f"{_EMBEDDER}.image_positions", ("transformer.pos_embed",)),
        Rule(f"{_EMBEDDER}.type_table.weight", ("token_type_embeddings.weight",)),
        *both(f"{_LAYERS}.attention.qkv", "transformer.blocks.{i}.attn.qkv"),
        *both(f"{_LAYERS}.attention.out", "transformer.blocks.{i}.attn.proj"),
        *both(f"{_LAYERS}.attention_norm", "transformer.blocks.{i}.norm1"),
        *both(f"{_LAYERS}.mlp_in", "transformer.blocks.{i}.mlp.fc1"),
        *both(f"{_LAYERS}.mlp_out", "transformer.blocks.{i}.mlp.fc2"),
        *both(f"{_LAYERS}.mlp_norm", "transformer.blocks.{i}.norm2"),
        *both("model.encoder.norm", "transformer.norm"),
        *both("model.pooler", "pooler.dense"),
        *_LANGUAGE_HEAD,
        Rule("objectives.masked_language.bias", ("mlm_score.bias",)),
        Rule("objectives.masked_language.decoder.weight", ("mlm_score.decoder.weight",)),
        *both("objectives.matching.classify", "itm_score.fc"),
    ],
    unused={
        r"vqa_classifier\..*": "the head of question answering, a task",
        r"text_embeddings\.position_ids": "the numbers from 0 on, which older files keep",
    },
)

TRANSFORMERS = KeyMap(
    rules=[
        *_text("vilt.embeddings.text_embeddings"),
        *both(f"{_EMBEDDER}.patch_projection", "vilt.embeddings.patch_embeddings.projection"),
        Rule(f"{_EMBEDDER}.class_vector", ("vilt.embeddings.cls_token",)),
        Rule(f"{_EMBEDDER}.image_positions", ("vilt.embeddings.position_embeddings",)),
        Rule(f"{_EMBEDDER}.type_table.weight", ("vilt.embeddings.token_type_embeddings.weight",)),
        *(
            Rule(
                f"{_LAYERS}.attention.qkv.{kind}",
                tuple(f"{_THEIRS}.attention.attention.{part}.{kind}" for part in ("query", "key", "value")),
            )
            for kind in ("weight", "bias")
        ),
        *both(f"{_LAYERS}.attention.out", f"{_THEIRS}.attention.output.dense"),
        *both(f"{_LAYERS}.attention_norm", f"{_THEIRS}.layernorm_before"),
        *both(f"{_LAYERS}.mlp_in", f"{_THEIRS}.intermediate.dense"),
        *both(f"{_LAYERS}.mlp_out", f"{_THEIRS}.output.dense"),
        *both(f"{_LAYERS}.mlp_norm", f"{_THEIRS}.layernorm_after"),
        *both("model.encoder.norm", "vilt.layernorm"),
        *both("model.pooler", "vilt.pooler.dense"),
        *_LANGUAGE_HEAD,
        Rule("objectives.masked_language.bias", ("mlm_score.decoder.bias",)),
    ],
    ties={"mlm_score.decoder.weight": "vilt.embeddings.text_embeddings.word_embeddings.weight"},
    unused={
        r"vilt\.embeddings\.text_embeddings\.position_ids": "the numbers from 0 on, which older files keep",
        r"mlm_score\.bias": "the decoder's bias once more, in older files",
    },
)

LAYOUTS: dict[str, KeyMap] = {
    "vilt": KEY_MAP,
    "vilt_transformers": TRANSFORMERS,
}
