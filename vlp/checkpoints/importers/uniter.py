"""The official UNITER layout (ChenRocks/UNITER, UniterForPretraining) as a key map."""

from __future__ import annotations

from vlp.checkpoints.key_map import KeyMap, Rule


def both(ours: str, theirs: str) -> list[Rule]:
    """Rules for the weight and the bias of one part."""
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def bert_layers(ours: str, theirs: str) -> list[Rule]:
    """Rules for a stack of BERT layers named `theirs.{i}` with query, key and value apart."""
    rules = [
        Rule(
            f"{ours}.{{i}}.attention.qkv.{kind}",
            tuple(f"{theirs}.{{i}}.attention.self.{part}.{kind}" for part in ("query", "key", "value")),
        )
        for kind in ("weight", "bias")
    ]
    for our_name, their_name in (
        ("attention.out", "attention.output.dense"),
        ("attention_norm", "attention.output.LayerNorm"),
        ("mlp_in", "intermediate.dense"),
        ("mlp_out", "output.dense"),
        ("mlp_norm", "output.LayerNorm"),
    ):
        rules += both(f"{ours}.{{i}}.{our_name}", f"{theirs}.{{i}}.{their_name}")
    return rules


_MODEL = [
    Rule("model.embedder.word_table.weight", ("uniter.embeddings.word_embeddings.weight",)),
    Rule("model.embedder.position_table.weight", ("uniter.embeddings.position_embeddings.weight",)),
    Rule("model.embedder.type_table.weight", ("uniter.embeddings.token_type_embeddings.weight",)),
    *both("model.embedder.text_norm", "uniter.embeddings.LayerNorm"),
    *both("model.embedder.feature_projection", "uniter.img_embeddings.img_linear"),
    *both("model.embedder.feature_norm", "uniter.img_embeddings.img_layer_norm"),
    *both("model.embedder.box_projection", "uniter.img_embeddings.pos_linear"),
    *both("model.embedder.box_norm", "uniter.img_embeddings.pos_layer_norm"),
    # row 0 is set to zero at every forward of the original, so only row 1 carries meaning
    Rule("model.embedder.mask_vector.weight", ("uniter.img_embeddings.mask_embedding.weight",), row=1, rows=2),
    *both("model.embedder.region_norm", "uniter.img_embeddings.LayerNorm"),
    *bert_layers("model.encoder.layers", "uniter.encoder.layer"),
    *both("model.pooler", "uniter.pooler.dense"),
]

_OBJECTIVES = [
    *both("objectives.masked_language.transform.linear", "cls.predictions.transform.dense"),
    *both("objectives.masked_language.transform.norm", "cls.predictions.transform.LayerNorm"),
    Rule("objectives.masked_language.bias", ("cls.predictions.bias",)),
    *both("objectives.masked_region_regression.transform.linear", "feat_regress.net.0"),
    *both("objectives.masked_region_regression.transform.norm", "feat_regress.net.2"),
    Rule("objectives.masked_region_regression.bias", ("feat_regress.bias",)),
    *both("objectives.masked_region_distribution.classifier.transform.linear", "region_classifier.net.0"),
    *both("objectives.masked_region_distribution.classifier.transform.norm", "region_classifier.net.2"),
    *both("objectives.masked_region_distribution.classifier.classify", "region_classifier.net.3"),
    *both("objectives.matching.classify", "itm_output"),
]

KEY_MAP = KeyMap(
    rules=_MODEL + _OBJECTIVES,
    ties={
        "cls.predictions.decoder.weight": "uniter.embeddings.word_embeddings.weight",
        "feat_regress.weight": "uniter.img_embeddings.img_linear.weight",
    },
)
