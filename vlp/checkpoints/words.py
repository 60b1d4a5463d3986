"""What became of weights that were loaded, and what does not fit, in words: heads, layers, tables, feature sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from vlp.checkpoints.key_map import listed
from vlp.checkpoints.load import Loaded, Shapes, WeightsMismatchError

TABLES = {  # what rows of a table stand for, and the key that sets their number
    "word_table": ("vocabulary", "vocab_size"),
    "position_table": ("positions", "positions"),
    "type_table": ("types of tokens", "types"),
}
TOKENS, CODER = "model.tokens.weight", "model.pictures."  # of a token decoder
FEATURES = r"^model\.embedder\.(feature|region)_projection\.weight$"


def topology(names: Iterable[str], kinds: Mapping[str, str]) -> str | None:
    """What kind of model parameters of these names are of; None if that can't be told.

    kinds: what the names of its parameters begin with, a regular expression, by a kind of model.
    """
    names = list(names)
    # a model that has a coder of pictures is not one
    for own in ([name for name in names if not name.startswith(CODER)], names):
        for kind, begin in kinds.items():
            if any(re.match(begin, name) for name in own):
                return kind
    return None


def parts_of(names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """The parts of a run that tensors belong to: for each, in words, the pattern that means it and their number."""
    parts: dict[str, list[str]] = {}
    layers: dict[str, list[int]] = {}
    for name in names:
        if found := re.match(r"^(model\..*?layers)\.(\d+)\.", name):
            numbers = layers.setdefault(found[1], [])
            numbers += [] if int(found[2]) in numbers else [int(found[2])]
            parts.setdefault(found[1], []).append(name)
        elif found := re.match(r"^objectives\.([^.]+)", name):
            parts.setdefault(found[0], []).append(name)
        else:
            parts.setdefault(name.rpartition(".")[0] or name, []).append(name)
    told = {}
    for part, own in parts.items():
        pattern = "^" + part.replace(".", r"\.")
        if part in layers:
            numbers = sorted(layers[part])
            which = f"{part} {', '.join(map(str, numbers))}"
            told[which] = pattern + rf"\.({'|'.join(map(str, numbers))})\.", len(own)
        else:
            head = part.startswith("objectives.")
            which = f"the head {part.removeprefix('objectives.')}" if head else part
            told[which] = f"{pattern}($|\\.)" if head else pattern, len(own)
    return told


def changes(loaded: Loaded) -> list[str]:
    """What is not as in the file, a line each."""
    both = set(loaded.missing) & set(loaded.unused)
    lines = []
    for names, what in (
        ([name for name in loaded.missing if name not in both], "not in the file, begins at random"),
        (sorted(both), "of another shape in the file, begins at random"),
        ([name for name in loaded.unused if name not in both], "in the file alone, not used"),
    ):
        lines += [f"{part}: {what} ({_tensors(count)})" for part, (_, count) in parts_of(names).items()]
    for name, (theirs, ours) in loaded.first_rows.items():
        what, _ = _table(name)
        rest = (
            f"{ours[0] - theirs[0]:,} new rows begin at random"
            if ours[0] > theirs[0]
            else f"the other {theirs[0] - ours[0]:,} are not used"
        )
        first = min(theirs[0], ours[0])
        lines.append(f"{what}: {theirs[0]:,} rows in the file, {ours[0]:,} here: the first {first:,} loaded, {rest}")
    return lines


def faults(
    error: WeightsMismatchError, theirs: Iterable[str], ours: Iterable[str], kinds: Mapping[str, str]
) -> list[str]:
    """What does not fit and the key that mends it, a line each.

    theirs, ours: names of all tensors in the file and in the model.
    """
    theirs, ours = list(theirs), list(ours)
    of_theirs, of_ours = topology(theirs, kinds), topology(ours, kinds)
    if None not in (of_theirs, of_ours) and of_theirs != of_ours:
        return [
            f"they are those of a model of type {of_theirs}, and the configuration's is of type {of_ours}: the layers"
            " of one mean nothing in the other; take weights of the same kind of model, or that kind of model"
        ]
    lines = _shapes(error.other_shape)
    missing, coder = error.missing, [name for name in ours if name.startswith(CODER)]
    if set(coder) <= set(missing) and len(coder) < len(ours):  # of a model that is more than its coder
        missing = [name for name in missing if name not in coder]
        lines += [
            f"model.pictures, the coder of pictures, is not in the file ({_tensors(len(coder))}): name the run of one,"
            " model.pictures.weights=RUN, and say that the file lacks it, init.may_be_missing=['^model.pictures']"
        ] * bool(coder)
    for part, (pattern, count) in parts_of(missing).items():
        lines.append(
            f"{part} is not in the file ({_tensors(count)}); to begin at random: init.may_be_missing: ['{pattern}']"
        )
    for part, (pattern, count) in parts_of(error.unexpected).items():
        lines.append(
            f"{part} is in the file alone ({_tensors(count)}); to leave it out: init.may_be_unused: ['{pattern}']"
        )
    return lines


def _shapes(other: dict[str, Shapes]) -> list[str]:
    widths = [shapes for name, shapes in other.items() if "word_table" in name or "token_embedding" in name]
    if widths and widths[0][0][1:] != widths[0][1][1:]:
        theirs, ours = widths[0]
        return [
            f"hidden size: {theirs[1]:,} in the file, {ours[1]:,} in the model (model.hidden_size), so that"
            f" {len(other)} tensors have another shape: no part of such weights can be loaded"
        ]
    lines, left, heads = [], [], dict[str, Shapes]()
    for name, (theirs, ours) in other.items():
        head = re.match(r"^objectives\.([^.]+)", name)
        if head:
            heads.setdefault(head[1], (theirs, ours))
        elif re.match(FEATURES, name) and theirs[:1] == ours[:1]:
            pattern = "^" + name.rpartition(".")[0].replace(".", r"\.")
            lines.append(
                f"region features: {theirs[1]:,} numbers in the file, {ours[1]:,} in the model (the data's manifest"
                " says how many): features of another size can't be read by these weights, which know each number by"
                " its place; take data with the features of the weights, or begin what reads them at random, with"
                f" '{pattern}' under init.may_be_missing and under init.may_be_unused"
            )
        elif name == TOKENS and theirs[1:] == ours[1:]:
            lines.append(
                f"words and codes: {theirs[0]:,} rows in the file, {ours[0]:,} here: those of model.vocab_size, of"
                " commands and padding (model.template, model.commands, model.max_tokens) and of model.pictures.codes"
            )
        elif theirs[1:] == ours[1:] and any(table in name for table in TABLES):
            what, key = _table(name)
            lines.append(
                f"{what}: {theirs[0]:,} rows in the file, {ours[0]:,} here; set model.embedder.{key}={theirs[0]}"
                f", or load the first rows that both have: init.may_differ_in_rows: ['{name.split('.')[-2]}']"
            )
        else:
            left.append(f"{name}: {theirs} in the file, {ours} in the model")
    for own, (theirs, ours) in heads.items():
        sizes = f"{theirs[0]:,} rows in the file, {ours[0]:,} in the model"
        if theirs[1:] != ours[1:]:
            sizes = f"{theirs} in the file, {ours} in the model"
        lines.append(
            f"the head {own} chooses among others or has another size ({sizes}): to begin it at random, put"
            rf" '^objectives\.{own}\.' under init.may_be_missing and under init.may_be_unused"
        )
    return [*lines, *([f"other shape: {listed(left)}"] if left else [])]


def _table(name: str) -> tuple[str, str]:
    return next((told for table, told in TABLES.items() if table in name), (name, ""))


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' if count > 1 else ''}"
