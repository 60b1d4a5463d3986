"""The layouts of CogView (THUDM/CogView) as key maps: its transformer, and its coder of pictures in a file of its own.

Sources: CogView, model/gpt2_modeling.py, mpu/sparse_transformer.py, vqvae/vqvae_zc.py.

The table of tokens has codes first, then pieces of text, commands, and rows that fill it up to a multiple of 128, of
which nothing is used.
"""

from __future__ import annotations

from vlp.checkpoints.importers.bert_parts import both
from vlp.checkpoints.key_map import KeyMap, Rule

LAYER, THEIRS = "model.layers.{i}", "transformer.layers.{i}"
PICTURES = "model.pictures"

LAYOUTS: dict[str, KeyMap] = {
    "cogview": KeyMap(
        [
            Rule("model.tokens.weight", ("word_embeddings.weight",)),
            Rule("model.positions", ("transformer.position_embeddings.weight",)),
            *both("model.norm", "transformer.final_layernorm"),
            *(
                rule
                for ours, theirs in (
                    ("attention_norm", "input_layernorm"),
                    ("qkv", "attention.query_key_value"),
                    ("out", "attention.dense"),
                    ("attention_end", "third_layernorm"),
                    ("mlp_norm", "post_attention_layernorm"),
                    ("mlp_in", "mlp.dense_h_to_4h"),
                    ("mlp_out", "mlp.dense_4h_to_h"),
                    ("mlp_end", "fourth_layernorm"),
                )
                for rule in both(f"{LAYER}.{ours}", f"{THEIRS}.{theirs}")
            ),
        ],
        ours_alone={r"model\.pictures\..*": "the coder's, which has a file of its own"},
    ),
    "cogview_vqvae": KeyMap(
        [
            Rule(f"{PICTURES}.codebook.vectors", ("quantize_t.embed",), transposed=True),
            Rule(f"{PICTURES}.codebook.sums", ("quantize_t.embed_avg",), transposed=True),
            Rule(f"{PICTURES}.codebook.counts", ("quantize_t.cluster_size",)),
            # convolutions, and those of residual blocks
            *(
                rule
                for ours, theirs in (("encoder", "enc_b"), ("decoder", "dec"))
                for own, other in (("", ""), (".net.1", ".conv.1"), (".net.3", ".conv.3"))
                for rule in both(f"{PICTURES}.{ours}.{{i}}{own}", f"{theirs}.blocks.{{i}}{other}", optional=True)
            ),
        ]
    ),
}
