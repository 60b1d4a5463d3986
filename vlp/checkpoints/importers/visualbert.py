"""VisualBERT as key maps: the official layouts (uclanlp/visualbert) and Hugging Face's (VisualBertForPreTraining).

The released files are those of the official training program, which puts one more `bert.` before every key of its
model. Hugging Face's layout differs in names only, but gives regions the type 1 where the original gives 0: a model
that is to compute what theirs does has 1 for `regions` in its `layout_types`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vlp.checkpoints.importers.bert_parts import both, layers, linear_head, masked_language, text_embedding
from vlp.checkpoints.key_map import KeyMap, Rule


def _rules(bert: str, visual_positions: str, visual_types: str, projection: str) -> list[Rule]:
    """The rules, given what differs: the prefix of the encoder and the names of the visual parts."""
    embedder, embeddings = "model.embedder", f"{bert}.embeddings"
    return [
        *text_embedding(embeddings, "norm"),
        Rule(f"{embedder}.visual_position_table.weight", (f"{embeddings}.{visual_positions}.weight",)),
        Rule(f"{embedder}.visual_type_table.weight", (f"{embeddings}.{visual_types}.weight",)),
        *both(f"{embedder}.feature_projection", f"{embeddings}.{projection}"),
        *layers("model.encoder.layers", f"{bert}.encoder.layer"),
        *both("model.pooler", f"{bert}.pooler.dense"),
    ]


_OBJECTIVES = [*masked_language(), *both("objectives.segment_matching.classify", "cls.seq_relationship")]
_MODEL = _rules("bert", "position_embeddings_visual", "token_type_embeddings_visual", "projection")
KEY_MAP = KeyMap(
    rules=_MODEL + _OBJECTIVES,
    ties={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
)
# answers to questions, and statements about two images in one sequence
ANSWERS = KeyMap([*_MODEL, *linear_head("answer_classification", "classifier")])
CHOICES = KeyMap([*_MODEL, *linear_head("multiple_choice", "classifier")])
_GROUNDING = "objectives.phrase_grounding"
GROUNDING = KeyMap(  # which keeps the heads of pretraining too
    [
        *KEY_MAP.rules,
        *(r for part in ("query", "key") for r in both(f"{_GROUNDING}.{part}", f"flickr_attention.{part}")),
    ],
    ties=KEY_MAP.ties,
    unused={
        r"(bert\.)?flickr_attention\.value\..*": "attention's values, which the original computes and never looks at"
    },
)


def released(key_map: KeyMap) -> KeyMap:
    """The map of the files of the official training program."""
    return KeyMap(
        rules=[replace(rule, theirs=tuple(f"bert.{key}" for key in rule.theirs)) for rule in key_map.rules],
        ties={f"bert.{tied}": f"bert.{original}" for tied, original in key_map.ties.items()},
        unused=key_map.unused,
    )


KEY_MAP_RELEASED, ANSWERS_RELEASED = released(KEY_MAP), released(ANSWERS)
KEY_MAP_HF = KeyMap(
    rules=[
        *_rules("visual_bert", "visual_position_embeddings", "visual_token_type_embeddings", "visual_projection"),
        *_OBJECTIVES,
    ],
    ties={
        "cls.predictions.decoder.weight": "visual_bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    unused={r"visual_bert\.embeddings\.position_ids": "the numbers from 0 on, which older files keep"},
)


def hf_config(model: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], str]:
    """Hugging Face's config.json for a `model` block and its exported weights; and a note for the user."""
    embeddings = "visual_bert.embeddings"
    vocabulary, hidden = weights[f"{embeddings}.word_embeddings.weight"].shape
    types = [kind for item, kind in zip(model["layout"], model["layout_types"], strict=True) if item == "regions"]
    config = {
        "architectures": ["VisualBertForPreTraining"],
        "model_type": "visual_bert",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "visual_embedding_dim": weights[f"{embeddings}.visual_projection.weight"].shape[1],
        "num_hidden_layers": model["layers"],
        "num_attention_heads": model["heads"],
        "intermediate_size": model["mlp_size"],
        "hidden_act": "gelu",
        "hidden_dropout_prob": float(model["dropout"]),
        "attention_probs_dropout_prob": float(model["attention_dropout"]),
        "max_position_embeddings": len(weights[f"{embeddings}.position_embeddings.weight"]),
        "type_vocab_size": len(weights[f"{embeddings}.token_type_embeddings.weight"]),
        "initializer_range": float(model["initial_std"]),
        "layer_norm_eps": float(model["norm_eps"]),
        "pad_token_id": 0,
    }
    wanted = types[0] if types else 1
    note = (
        ""
        if wanted == 1
        else f"give visual_token_type_ids of {wanted}, the type of this model's regions, not theirs of 1"
    )
    return config, note


LAYOUTS: dict[str, KeyMap] = {
    "visualbert": KEY_MAP,
    "visualbert_grounding": GROUNDING,
    "visualbert_grounding_released": released(GROUNDING),
    "visualbert_hf": KEY_MAP_HF,
    "visualbert_released": KEY_MAP_RELEASED,
    "visualbert_vcr": CHOICES,
    "visualbert_vcr_released": released(CHOICES),
    "visualbert_vqa": ANSWERS,
    "visualbert_vqa_released": ANSWERS_RELEASED,
}
