"""Rules that layouts built on BERT's names have in common."""

from __future__ import annotations

from vlp.checkpoints.key_map import Rule

KINDS = ("weight", "bias")


def both(ours: str, theirs: str, optional: bool = False) -> list[Rule]:
    """Weight and bias of one layer."""
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",), optional=optional) for kind in KINDS]


def joined(ours: str, *theirs: str, optional: bool = False) -> list[Rule]:
    """Weight and bias of a layer that is several of theirs end to end."""
    return [Rule(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs), optional=optional) for kind in KINDS]


def self_attention(ours: str, theirs: str) -> list[Rule]:
    """The attention half of a block; theirs has `self` and `output` below it."""
    return [
        *joined(f"{ours}.attention.qkv", *(f"{theirs}.self.{part}" for part in ("query", "key", "value"))),
        *both(f"{ours}.attention.out", f"{theirs}.output.dense"),
        *both(f"{ours}.attention_norm", f"{theirs}.output.LayerNorm"),
    ]


def feed_forward(ours: str, intermediate: str, output: str) -> list[Rule]:
    """The feed-forward half of a block."""
    return [
        *both(f"{ours}.mlp_in", f"{intermediate}.dense"),
        *both(f"{ours}.mlp_out", f"{output}.dense"),
        *both(f"{ours}.mlp_norm", f"{output}.LayerNorm"),
    ]


def layers(ours: str, theirs: str) -> list[Rule]:
    """A stack of BERT layers."""
    ours, theirs = f"{ours}.{{i}}", f"{theirs}.{{i}}"
    return [
        *self_attention(ours, f"{theirs}.attention"),
        *feed_forward(ours, f"{theirs}.intermediate", f"{theirs}.output"),
    ]


def text_embedding(theirs: str, norm: str = "text_norm", ours: str = "model.embedder") -> list[Rule]:
    """BERT's embedding tables and their norm, which our embedder calls `norm`."""
    return [
        *(
            Rule(f"{ours}.{table}_table.weight", (f"{theirs}.{name}_embeddings.weight",))
            for table, name in (("word", "word"), ("position", "position"), ("type", "token_type"))
        ),
        *both(f"{ours}.{norm}", f"{theirs}.LayerNorm"),
    ]


def text_trunk(ours: str, theirs: str) -> list[Rule]:
    """BERT without heads and pooler, as text towers hold it."""
    return [
        *text_embedding(f"{theirs}.embeddings", "norm", ours),
        *layers(f"{ours}.encoder.layers", f"{theirs}.encoder.layer"),
    ]


def transform(ours: str, theirs: str, optional: bool = False) -> list[Rule]:
    """BERT's transform before a decoder."""
    return [
        *both(f"{ours}.linear", f"{theirs}.dense", optional),
        *both(f"{ours}.norm", f"{theirs}.LayerNorm", optional),
    ]


def masked_language(
    theirs: str = "cls.predictions", optional: bool = False, ours: str = "objectives.masked_language"
) -> list[Rule]:
    """BERT's head of masked words, the tied decoder apart."""
    return [
        *transform(f"{ours}.transform", f"{theirs}.transform", optional),
        Rule(f"{ours}.bias", (f"{theirs}.bias",), optional=optional),
    ]


def linear_head(task: str, theirs: str) -> list[Rule]:
    """A task's head that is one linear layer."""
    return both(f"objectives.{task}.classifier.classify", theirs)


def mlp_head(task: str, theirs: str, norm: bool = True) -> list[Rule]:
    """A task's head of linear, activation, norm (if any), linear, numbered in that order."""
    ours = f"objectives.{task}.classifier"
    norms = both(f"{ours}.norm", f"{theirs}.2") if norm else []
    return [
        *both(f"{ours}.linear", f"{theirs}.0"),
        *norms,
        *both(f"{ours}.classify", f"{theirs}.{3 if norm else 2}"),
    ]
