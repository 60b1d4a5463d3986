"""BERT as key maps: how each system starts from it. For reading only; sizes (base, large) come from the configuration.

Read are the layout of the first PyTorch files (norms with `gamma` and `beta`), Hugging Face's (BertForPreTraining,
BertForMaskedLM), and that of the encoder alone (BertModel, without the prefix `bert.`). Heads and pooler may be absent.
Source: what the official implementations do, each in its own loader.
"""

from __future__ import annotations

from vlp.checkpoints.importers.bert_parts import both, layers, masked_language, text_embedding, text_trunk
from vlp.checkpoints.key_map import KeyMap, Rule

_POOLER = r"bert\.pooler\.dense\..*"
_NEXT_SENTENCE = r"cls\.seq_relationship\..*"
_RANDOM = "the system begins with its own, at random"


def _key_map(
    rules: list[Rule], pooler: str | None = None, relationship: str | None = None, words: bool = True
) -> KeyMap:
    """The map with these rules of the trunk and the head of masked words.

    pooler: our name of the pooler, if it begins as BERT's. relationship: the objective whose classifier begins as
    that of the next sentence. words: whether the head of masked words is used.
    """
    unused = {r"bert\.embeddings\.position_ids": "the numbers from 0 on, which older files keep"}
    heads = masked_language(optional=True) if words else []
    if not words:
        unused[r"cls\.predictions\..*"] = "the system predicts no words"
    if pooler is None:
        unused[_POOLER] = _RANDOM
    else:
        heads += both(f"model.{pooler}", "bert.pooler.dense", optional=True)
    if relationship is None:
        unused[_NEXT_SENTENCE] = _RANDOM
    else:
        heads += both(f"objectives.{relationship}.classify", "cls.seq_relationship", optional=True)
    return KeyMap(
        rules=[*rules, *heads],
        ties={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        unused=unused,
        spellings={
            r"^(?=(embeddings|encoder|pooler)\.)": "bert.",
            r"\.LayerNorm\.gamma$": ".LayerNorm.weight",
            r"\.LayerNorm\.beta$": ".LayerNorm.bias",
        },
    )


_EMBEDDINGS = "bert.embeddings"
_SINGLE = layers("model.encoder.layers", "bert.encoder.layer")
_TEXT_STREAM = [*text_embedding(_EMBEDDINGS), *layers("model.text_layers", "bert.encoder.layer")]
_ONE_NORM = [*text_embedding(_EMBEDDINGS, "norm"), *_SINGLE]  # words and regions share a norm

# UNITER, Unicoder-VL, ImageBERT
KEY_MAP = _key_map([*text_embedding(_EMBEDDINGS), *_SINGLE], "pooler")
OSCAR = _key_map([*text_embedding(_EMBEDDINGS), *_SINGLE], "pooler", "segment_matching")
# VL-BERT and B2T2. VL-BERT's third type keeps its random start: its table `may_differ_in_rows`
ONE_NORM = _key_map(_ONE_NORM, "pooler")
# the tables of regions begin as copies of those of words
VISUALBERT = _key_map(
    [
        *_ONE_NORM,
        Rule("model.embedder.visual_position_table.weight", (f"{_EMBEDDINGS}.position_embeddings.weight",)),
        Rule("model.embedder.visual_type_table.weight", (f"{_EMBEDDINGS}.token_type_embeddings.weight",)),
    ],
    "pooler",
    "segment_matching",
)
VILBERT = _key_map(_TEXT_STREAM)
# dual encoders whose text tower holds BERT
TEXT_TOWER = _key_map(text_trunk("model.text.backbone", "bert"), words=False)
# as its option to start from BERT does: whatever has the same name
LXMERT = _key_map(_TEXT_STREAM, "text_pooler", "matching")

LAYOUTS: dict[str, KeyMap] = {
    "bert": KEY_MAP,
    "bert_for_b2t2": ONE_NORM,
    "bert_for_dual_encoder": TEXT_TOWER,
    "bert_for_lxmert": LXMERT,
    "bert_for_oscar": OSCAR,
    "bert_for_vilbert": VILBERT,
    "bert_for_visualbert": VISUALBERT,
    "bert_for_vlbert": ONE_NORM,
}
