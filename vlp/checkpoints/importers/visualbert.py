"""The official VisualBERT layout (uclanlp/visualbert, TrainVisualBERTObjective for pretraining) as a key map."""

from __future__ import annotations

from vlp.checkpoints.importers.uniter import bert_layers, both
from vlp.checkpoints.key_map import KeyMap, Rule

KEY_MAP = KeyMap(
    rules=[
        Rule("model.embedder.word_table.weight", ("bert.embeddings.word_embeddings.weight",)),
        Rule("model.embedder.position_table.weight", ("bert.embeddings.position_embeddings.weight",)),
        Rule("model.embedder.type_table.weight", ("bert.embeddings.token_type_embeddings.weight",)),
        Rule("model.embedder.visual_position_table.weight", ("bert.embeddings.position_embeddings_visual.weight",)),
        Rule("model.embedder.visual_type_table.weight", ("bert.embeddings.token_type_embeddings_visual.weight",)),
        *both("model.embedder.feature_projection", "bert.embeddings.projection"),
        *both("model.embedder.norm", "bert.embeddings.LayerNorm"),
        *bert_layers("model.encoder.layers", "bert.encoder.layer"),
        *both("model.pooler", "bert.pooler.dense"),
        *both("objectives.masked_language.transform.linear", "cls.predictions.transform.dense"),
        *both("objectives.masked_language.transform.norm", "cls.predictions.transform.LayerNorm"),
        Rule("objectives.masked_language.bias", ("cls.predictions.bias",)),
        *both("objectives.segment_matching.classify", "cls.seq_relationship"),
    ],
    ties={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
)
