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
    linear_head,
    masked_language,
    mlp_head,
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

_MODEL = [
    *text_embedding("bert.embeddings"),
    # of models with the option task_specific_tokens, dynamic_attention
    Rule("model.embedder.task_table.weight", ("bert.embeddings.task_embeddings.weight",), optional=True),
    *joined(
        "model.visual_gates.{i}",
        *(f"bert.encoder.v_layer.{{i}}.attention.self.dyLinear_{part}" for part in "qk"),
        optional=True,
    ),
    *both("model.embedder.feature_projection", "bert.v_embeddings.image_embeddings"),
    *both("model.embedder.box_projection", "bert.v_embeddings.image_location_embeddings"),
    *both("model.embedder.region_norm", "bert.v_embeddings.LayerNorm"),
    *layers("model.text_layers", "bert.encoder.layer"),
    *layers("model.visual_layers", "bert.encoder.v_layer"),
    *_CROSS,
    *both("model.text_pooler", "bert.t_pooler.dense"),
    *both("model.visual_pooler", "bert.v_pooler.dense"),
]
_RULES = [
    *_MODEL,
    *masked_language(),
    # their class 0 is "matched"
    Rule("objectives.matching.classify.weight", ("cls.bi_seq_relationship.weight",), order=(1, 0)),
    Rule("objectives.matching.classify.bias", ("cls.bi_seq_relationship.bias",), order=(1, 0)),
]
_UNUSED = {r"bert\.encoder\.c_layer\.\d+\.biOutput\.q_dense[12]\.(weight|bias)": "the original never uses them"}


def _key_map(region_transform: str, decoder_weight: str, decoder_bias: str) -> KeyMap:
    return KeyMap(
        rules=[
            *_RULES,
            *transform(f"objectives.{region_transform}", "cls.imagePredictions.transform"),
            Rule(f"objectives.{decoder_weight}", ("cls.imagePredictions.decoder.weight",)),
            Rule(f"objectives.{decoder_bias}", ("cls.imagePredictions.decoder.bias",)),
        ],
        ties={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
        unused=_UNUSED,
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
    },
)

_NOT_TRAINED = {
    r"cls\..*": "the heads of pretraining, which the tasks don't train",
    r"linguisic_logit\..*": "the original trains no task with it",
}
# 12-in-1 with the heads of its tasks, by the names of our objectives
TWELVE_IN_ONE_TASKS = KeyMap(
    rules=[
        *_MODEL,
        *mlp_head("answer_classification", "vil_prediction.logit_fc"),
        *mlp_head("gqa", "vil_prediction_gqa.logit_fc"),
        *mlp_head("paired_images", "vil_binary_prediction.logit_fc"),
        *linear_head("entailment", "vil_tri_prediction"),
        *both("objectives.pair_ranking.classify", "vil_logit"),
        *linear_head("region_choice", "vision_logit"),
    ],
    unused=_UNUSED | _NOT_TRAINED,
)

# the first release (jiasenlu/vilbert_beta), whose head has weights that are a direction times a length
_WEIGHT = "parametrizations.weight.original"
_PARTS = {f"{_WEIGHT}0": "weight_g", f"{_WEIGHT}1": "weight_v", "bias": "bias"}
_CLASSIFIER = "objectives.answer_classification.classifier"
ANSWERS = KeyMap(
    rules=[
        *_MODEL,
        *(
            Rule(f"{_CLASSIFIER}.{layer}.{ours}", (f"vil_prediction.main.{place}.{theirs}",))
            for layer, place in (("linear", 0), ("classify", 3))
            for ours, theirs in _PARTS.items()
        ),
    ],
    unused=_UNUSED
    | _NOT_TRAINED
    | {
        r"(vil_logit|vision_logit)\..*": "the head of another task, in whose place the key map of 12-in-1 is to be used"
    },
)

LAYOUTS: dict[str, KeyMap] = {
    "twelve_in_one": TWELVE_IN_ONE,
    "twelve_in_one_tasks": TWELVE_IN_ONE_TASKS,
    "vilbert": KEY_MAP,
    "vilbert_contrast": CONTRAST,
    "vilbert_regression": REGRESSION,
    "vilbert_vqa": ANSWERS,
}
