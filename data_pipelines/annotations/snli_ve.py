"""SNLI-VE: does a picture of Flickr30k entail a sentence, contradict it, or neither?

Files (github.com/necla-ml/SNLI-VE): `snli_ve_train.jsonl`, `snli_ve_dev.jsonl`, `snli_ve_test.jsonl`, one JSON object a
line, with `Flickr30K_ID` (the picture; `Flikr30kID`, with .jpg, in files that its generator has made), `pairID`,
`sentence2` (the hypothesis) and `gold_label`. `sentence1`, the caption that the picture stands for, is not used.

The hypotheses are questions of their picture's sample, with `pairID` as id and the label as answer.
"""

from __future__ import annotations

from pathlib import Path

from data_pipelines.annotations.files import AnnotationError, LeftOut, read_json_lines, without_repeats
from data_pipelines.annotations.karpathy import flickr30k_picture
from data_pipelines.annotations.pictures import Annotations, Picture
from data_pipelines.shards.facts import is_unicode
from data_pipelines.shards.format import Manifest

ANSWERS = ["contradiction", "entailment", "neutral"]  # in the order of UNITER's classes
NO_AGREEMENT = "-"


def read_snli_ve(hypotheses: Path) -> Annotations:
    """The pictures of a file, in the order of their first hypotheses.

    Raises:
        FileNotFoundError: it is missing.
        AnnotationError: it is not of this layout.
    """
    left_out: list[LeftOut] = []
    lines = list(read_json_lines(hypotheses, {"pairID": str, "sentence2": str, "gold_label": str}))
    rows = without_repeats(
        ((line["pairID"], line) for line in lines), lambda key: f"question {key}", "question", left_out
    )
    pictures: dict[str, Picture] = {}
    for identifier, line in rows.items():
        image = line.get("Flickr30K_ID", line.get("Flikr30kID"))
        if not (is_unicode(image) or type(image) is int) or image == "":
            raise AnnotationError(f"{hypotheses}: the line of pairID {identifier!r} has no 'Flickr30K_ID'")
        stem = str(image).removesuffix(".jpg")
        reason = ""
        if line["gold_label"] == NO_AGREEMENT:
            reason = "question whose annotators did not agree"
        elif line["gold_label"] not in ANSWERS:
            reason = "question with an unknown label"
        elif not line["sentence2"].strip():
            reason = "question is empty"
        if reason:
            left_out.append(LeftOut(f"question {identifier}", reason))
            continue
        if stem not in pictures:
            pictures[stem] = flickr30k_picture(f"{stem}.jpg", {})
        pictures[stem].ask(identifier, line["sentence2"].strip(), answers=line["gold_label"])
    licence = "hypotheses CC BY-SA 4.0 (SNLI); pictures: Flickr's terms of use"
    manifest = Manifest("snli_ve", 0, [], "", licence, answer_names=ANSWERS)
    return Annotations(manifest, pictures.values(), left_out)
