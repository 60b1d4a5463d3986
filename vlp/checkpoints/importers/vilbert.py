"""The official ViLBERT layout (facebookresearch/vilbert-multi-task, BertForMultiModalPreTraining) as key maps.

The three maps differ in the objective that the region head is trained with. A fourth is that of 12-in-1
(VILBertForVLTasks): the same with the heads of its tasks.
"""

from __future__ import annotations

from dataclasses import replace

from vlp.checkpoints.importers.bert_parts import (
    both,
    feed_forward,
    joined,
    layers,
    masked_language,
    text_embedding,
    transform,
)
from vlp.checkpoints.key_map import KeyMap, Rule

# in their names 1 is the image and 2 the text; the output of a direction has the number of its queries
_OURS, _THEIRS = "model.cross_layers.{i}", "bert.encoder.c_layer.{i}"
_CROSS = [
    rule
    for stream, number, other in (("text", 2, 1), ("visual", 1, 2))
    for rule in (
        *both(f"{_OURS}.into_{stream}.attention.query", f"{_THEIRS}.biattention.query{number}"),
        *joined(
            f"{_OURS}.into_{stream}.attention.key_value",
            f"{_THEIRS}.biattention.key{other}",
            f"{_THEIRS}.biattention.value{other}",
        ),
        *both(f"{_OURS}.into_{stream}.attention.out", f"{_THEIRS}.biOutput.dense{number}"),
        *both(f"{_OURS}.into_{stream}.norm", f"{_THEIRS}.biOutput.LayerNorm{number}"),
        *feed_forward(f"{_OURS}.{stream}", f"{_THEIRS}.{stream[0]}_intermediate", f"{_THEIRS}.{stream[0]}_output"),
    )
]

_RULES = [
    *text_embedding("bert.embeddings"),
    *both("model.embedder.feature_projection", "bert.v_embeddings.image_embeddings"),
    *both("model.embedder.box_projection", "bert.v_embeddings.image_location_embeddings"),
    *both("model.embedder.region_norm", "bert.v_embeddings.LayerNorm"),
    *layers("model.text_layers", "bert.encoder.layer"),
    *layers("model.visual_layers", "bert.encoder.v_layer"),
    *_CROSS,
    *both("model.text_pooler", "bert.t_pooler.dense"),
    *both("model.visual_pooler", "bert.v_pooler.dense"),
    *masked_language(),
    # their class 0 is "matched"
    Rule("objectives.matching.classify.weight", ("cls.bi_seq_relationship.weight",), order=(1, 0)),
    Rule("objectives.matching.classify.bias", ("cls.bi_seq_relationship.bias",), order=(1, 0)),
]


def _key_map(region_transform: str, decoder_weight: str, decoder_bias: str) -> KeyMap:
    return KeyMap(
        rules=[
            *_RULES,
            *transform(f"objectives.{region_transform}", "cls.imagePredictions.transform"),
            Rule(f"objectives.{decoder_weight}", ("cls.imagePredictions.decoder.weight",)),
            Rule(f"objectives.{decoder_bias}", ("cls.imagePredictions.decoder.bias",)),
        ],
        ties={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
        unused={
            r"bert\.encoder\.c_layer\.\d+\.biOutput\.q_dense[12]\.(weight|bias)": "the original never uses them",
        },
    )


_DISTRIBUTION = "masked_region_distribution.classifier"
KEY_MAP = _key_map(
    f"{_DISTRIBUTION}.transform", f"{_DISTRIBUTION}.classify.weight", f"{_DISTRIBUTION}.classify.bias"
)  # visual_target 0
REGRESSION = _key_map(
    "masked_region_regression.transform", "masked_region_regression.decode.weight", "masked_region_regression.bias"
)  # visual_target 1
CONTRAST = _key_map(
    "masked_region_contrast.transform", "masked_region_contrast.decode.weight", "masked_region_contrast.decode.bias"
)  # visual_target 2

_TASKS = r"(vil_prediction|vil_prediction_gqa|vil_binary_prediction|vil_logit|vil_tri_prediction|vision_logit)"
TWELVE_IN_ONE = replace(
    KEY_MAP,
    unused=KEY_MAP.unused
    | {
        rf"{_TASKS}\..*": "the head of a fine-tuning task; there are no such tasks here yet",
        r"linguisic_logit\..*": "the original trains no task with it",
        r"bert\.embeddings\.task_embeddings\.weight": "texts begin as ViLBERT's here, without the token of a task",
    },
)
