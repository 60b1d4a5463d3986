"""VCR's files as samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_json, write_json_lines, write_pictures

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.vcr import CLASS_NAMES, read_vcr
from data_pipelines.shards.format import read_manifest
from vlp.commands import data as make_shards

FILM = "lsmdc_3015_CHARLIE/3015_CHARLIE_00.23.57.935-00.24.00.783@0"
OBJECTS = ["person", "cellphone", "person"]


def row(number: int, image: int = 0, objects: list[str] = OBJECTS, **more: Any) -> dict[str, Any]:
    return {
        "movie": "3015_CHARLIE",
        "objects": objects,
        "interesting_scores": [0],
        "answer_likelihood": "possible",
        "img_fn": f"{FILM[:-1]}{image}.jpg",
        "metadata_fn": f"{FILM[:-1]}{image}.json",
        "answer_orig": "No she does not",
        "question_orig": "Does 3 feel comfortable?",
        "rationale_orig": "She is standing with her arms crossed.",
        "question": ["Does", [2], "feel", "comfortable", "?"],
        "answer_match_iter": [3, 0, 2, 1],
        "answer_sources": [3287, 0, 10184, 2260],
        "answer_choices": [["Yes", "."], [[0, 2], "do", "."], [[1], "is", "hers", "."], ["No", ",", "it", "is", "n't"]],
        "answer_label": 1,
        "rationale_choices": [["a"], ["b", [0]], ["c"], ["d"]],
        "rationale_sources": [1, 0, 4846, 13841],
        "rationale_match_iter": [1, 0, 2, 3],
        "rationale_label": 3,
        "img_id": f"train-{image}",
        "question_number": number,
        "annot_id": f"train-{number}",
        "match_fold": "train-0",
        "match_index": 0,
        **more,
    }


def metadata(names: list[str] = OBJECTS, **more: Any) -> dict[str, Any]:
    boxes = [[4.0, 5.0, 24.0, 15.0, 0.99], [0, 0, 40, 10, 0.9], [20.0, 10.0, 41.5, 20.0, 0.8]]
    segms = [[[[1.0, 2.0], [3.0, 4.0]]]] * len(names)
    return {"boxes": boxes[: len(names)], "segms": segms, "names": names, "width": 40, "height": 20, **more}


def write_images(folder: Path, *numbers: int) -> Path:
    for number in numbers:
        write_json(folder / f"{FILM[:-1]}{number}.json", metadata())
    return write_pictures(folder, *(f"{FILM[:-1]}{number}.jpg" for number in numbers))


def test_by_hand(tmp_path: Path) -> None:
    images = write_images(tmp_path / "vcr1images", 0, 1)
    path = write_json_lines(tmp_path / "train.jsonl", [row(0), row(1, 1), row(2)], as_on_windows=True)
    annotations = read_vcr(path, images)
    samples = built(annotations, images, tmp_path / "out")
    assert list(samples) == ["vcr-train-0", "vcr-train-1"]
    facts = texts(samples["vcr-train-0"])
    first = facts.pop("vcr")[0]
    assert facts == {
        "boxes": [[0.1, 0.25, 0.6, 0.75], [0.0, 0.0, 1.0, 0.5], [0.5, 0.5, 1.0, 1.0]],
        "box_names": OBJECTS,
    }
    assert first == {
        "annot_id": "train-0",
        "question": {"text": "Does person feel comfortable ?", "regions": [-1, 2, -1, -1, -1]},
        "answers": [
            {"text": "Yes .", "regions": [-1, -1]},
            {"text": "person person do .", "regions": [0, 2, -1, -1]},
            {"text": "cellphone is hers .", "regions": [1, -1, -1, -1]},
            {"text": "No , it is n't", "regions": [-1] * 5},
        ],
        "rationales": [
            {"text": "a", "regions": [-1]},
            {"text": "b person", "regions": [-1, 0]},
            {"text": "c", "regions": [-1]},
            {"text": "d", "regions": [-1]},
        ],
        "labels": [1, 3],
    }
    assert [q["annot_id"] for q in samples["vcr-train-0"].facts["vcr"]] == ["train-0", "train-2"]
    assert left_out(annotations) == []
    assert read_manifest(tmp_path / "out").class_names == CLASS_NAMES
    assert (len(CLASS_NAMES), CLASS_NAMES[1], CLASS_NAMES[80]) == (81, "person", "toothbrush")
    assert len(set(CLASS_NAMES)) == 81
    assert not any(" " in name for name in CLASS_NAMES)  # as in VCR's own list
    assert {"trafficlight", "tennisracket", "hairdrier", "teddybear", "pottedplant"} <= set(CLASS_NAMES)


def test_a_box_that_is_not_used_does_not_shift_the_others(tmp_path: Path) -> None:
    images = write_images(tmp_path, 0)
    boxes = [[4, 5, 4, 15, 1.0], *metadata()["boxes"][1:]]
    write_json(images / f"{FILM}.json", metadata(boxes=boxes))
    about_others = {"answer_choices": [[[1]], ["a"], ["b"], ["c"]], "rationale_choices": [[[2]], ["a"], ["b"], ["c"]]}
    annotations = read_vcr(write_json_lines(tmp_path / "a.jsonl", [row(0), row(1, **about_others)]), images)
    (sample,) = samples_of(annotations, images).values()
    assert sample.facts["box_names"] == ["cellphone", "person"]
    about_it, question = sample.facts["vcr"]
    assert question["question"]["regions"] == [-1, 1, -1, -1, -1]
    assert question["answers"][0] == {"text": "cellphone", "regions": [0]}
    # the first is about person 0 and person 2, and stays, with the words of the former bound to no region
    assert about_it["answers"][1] == {"text": "person person do .", "regions": [-1, 1, -1, -1]}
    assert left_out(annotations) == [(f"box 0 of {FILM}.jpg", "box without area")]


def test_oddities(tmp_path: Path) -> None:
    images = write_images(tmp_path, *range(8))
    film = FILM[:-1]
    (images / f"{film}1.json").unlink()
    (images / f"{film}2.json").write_text('{"boxes": [')
    write_json(images / f"{film}3.json", metadata(names=["person"], boxes=[]))
    (images / f"{film}4.jpg").unlink()
    write_pictures(images, f"{film}5.jpg", width=20, height=40)
    write_json(images / f"{film}7.json", metadata(names=["person", "unicorn", "person"]))
    rows = [
        *(row(0), row(0), row(1), row(1, answer_label=2), row(2, question=[]), row(3, question=[[3], "?"])),
        *(row(4, question=[[-1]]), row(5, answer_choices=[["a"]]), row(6, answer_label=4), row(7, objects=["person"])),
        *(row(8, img_fn="other.jpg"), row(9), row(10, answer_choices=[["a"], ["b"], None, ["c"]])),
        *(row(20 + n, n) for n in (1, 2, 3, 4, 5)),
        *(row(26, 6, metadata_fn="../a.json"), row(27, 7, objects=["person", "unicorn", "person"])),
    ]
    del rows[11]["rationale_label"]
    annotations = read_vcr(write_json_lines(tmp_path / "a.jsonl", rows), images)
    samples = samples_of(annotations, images)
    assert {k: [q["annot_id"] for q in s.facts["vcr"]] for k, s in samples.items()} == {
        "vcr-train-0": ["train-0"],
        "vcr-train-7": ["train-27"],
    }
    not_there = "question with a word that is no text, or about an object that is not there"
    lost = "question of a picture that is not used"
    assert left_out(annotations) == [
        ("question train-0", "question is listed twice"),
        *[("question train-1", "question id stands for different records")] * 2,
        ("question train-2", "question with an empty text"),
        *[(f"question train-{n}", not_there) for n in (3, 4)],
        ("question train-5", "question without four answers and four rationales"),
        ("question train-6", "question without labels"),
        ("question train-7", "question whose objects are not those of the metadata"),
        ("question train-8", "question whose image id stands for two files"),
        ("question train-9", "question without labels"),
        ("question train-10", not_there),
        *[
            entry
            for n, reason in ((1, "missing"), (2, "not readable"))
            for entry in ((f"{film}{n}.jpg", f"metadata is {reason}"), (f"question train-2{n}", lost))
        ],
        (f"{film}3.jpg", "metadata without a box for each name"),
        ("question train-23", lost),
        (f"{film}4.jpg", "file is missing"),
        ("question train-24", lost),
        (f"{film}5.jpg", "image has another shape than its annotations say"),
        ("question train-25", lost),
        (f"{film}6.jpg", "metadata's file name leads out of the folder"),
        ("question train-26", lost),
        (f"box 1 of {film}7.jpg", "box of an unknown class"),
    ]


def test_what_is_not_this_layout_is_refused(tmp_path: Path) -> None:
    for change, message in (
        ({"question": "text"}, r"a\.jsonl, line 1 has no 'question' of type list"),
        ({"img_id": "../0"}, r"a\.jsonl: img_id '\.\./0' is not of letters"),
        ({"metadata_fn": None}, r"a\.jsonl, line 1 has no 'metadata_fn' of type str"),
    ):
        with pytest.raises(AnnotationError, match=message):
            read_vcr(write_json_lines(tmp_path / "a.jsonl", [row(0, **change)]), tmp_path)


def test_the_command_and_a_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "vcr1images", 0)
    rows = [row(0), row(1)]
    for line in rows:
        del line["answer_label"], line["rationale_label"]
    path = write_json_lines(tmp_path / "test.jsonl", rows)
    command = ["vcr", "--images", images, "--questions", path, "--out", tmp_path / "out", "--split", "test"]
    assert make_shards.main([str(part) for part in command]) == 0
    assert "split test: 1 samples with 2 questions with four answers" in capsys.readouterr().out
    (sample,) = samples_of(read_vcr(path, images), images).values()
    assert "labels" not in sample.facts["vcr"][0]
