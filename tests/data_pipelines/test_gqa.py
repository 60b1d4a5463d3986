"""GQA's files as samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_benchmarks import built, left_out, samples_of, texts, write_json, write_pictures, write_text

from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.gqa import read_gqa
from data_pipelines.shards.format import read_manifest
from vlp.commands import data as make_shards


def question(image: Any = "2375429", text: str = "Is it overcast?", answer: str | None = "no", **more: Any) -> Any:
    if answer is None:  # of test, challenge and submission
        return {"question": text, "imageId": image, "isBalanced": True, **more}
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "scene"}],
        "entailed": ["02930159"],
        "equivalent": ["02930152"],
        "question": text,
        "imageId": image,
        "isBalanced": True,
        "groups": {"global": None, "local": "06-weather_overcast"},
        "answer": answer,
        "semanticStr": "select: scene->verify weather: overcast [0]",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
        "fullAnswer": "No, it is clear.",
        **more,
    }


def test_by_hand(tmp_path: Path) -> None:
    values = {
        "02930152": question(),
        "07333408": question("n161313", "Où?", "t-shirt "),
        "2": question(2375429, " Who? ", "girl", types={"structural": "query"}),
    }
    images = write_pictures(tmp_path, "images/2375429.jpg", "n161313.jpg")
    path = write_json(tmp_path / "train_balanced_questions.json", values, as_on_windows=True)
    annotations = read_gqa([path], [path])
    samples = built(annotations, images, tmp_path / "out")
    assert list(samples) == ["gqa-2375429", "gqa-n161313"]
    assert texts(samples["gqa-2375429"]) == {
        "image_id": "2375429",
        "questions": ["Is it overcast?", "Who?"],
        "question_ids": ["02930152", "2"],
        "answers": ["no", "girl"],
        "question_types": ["verify", "query"],
    }
    assert samples["gqa-n161313"].facts["answers"] == ["t-shirt"]
    assert left_out(annotations) == []
    assert read_manifest(tmp_path / "out").answer_names == ["girl", "no", "t-shirt"]


def test_oddities(tmp_path: Path) -> None:
    """Several files are one split; what stands in two of them is there once, if it is the same."""
    one = write_json(
        tmp_path / "1.json",
        {"1": question(), "2": question(text=" "), "3": question(answer=""), "4": question("9"), "5": question()},
    )
    two = write_json(tmp_path / "2.json", {"1": question(), "5": question(text="Another?"), "6": question(answer=None)})
    images = write_pictures(tmp_path, "VG_100K_2/2375429.jpg")
    annotations = read_gqa([one, two], [])
    assert samples_of(annotations, images)["gqa-2375429"].facts["question_ids"] == ["1"]
    assert annotations.manifest.answer_names == []
    assert left_out(annotations) == [
        ("question 1", "question is listed twice"),
        *[("question 5", "question id stands for different records")] * 2,
        ("question 2", "question is empty"),
        ("question 3", "question without an answer"),
        ("question 6", "question without an answer"),
        ("9.jpg", "file is missing"),
        ("question 4", "question of a picture that is not used"),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"7": question(image=None)}, "question '7' has no 'imageId' of type str or int"),
        ({"7": question(image="../a")}, r"question '7': imageId '\.\./a' is not of letters and digits"),
        ({"7": "text"}, "question '7' has no 'imageId'"),
        ({"7": {**question(), "answer": 3}}, "question '7' has no 'answer' of type str"),
        ([question()], "holds a list, not a dict"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, values: Any, message: str) -> None:
    path = write_json(tmp_path / "val_balanced_questions.json", values)
    with pytest.raises(AnnotationError, match=message) as error:
        read_gqa([path], [])
    assert "val_balanced_questions.json" in str(error.value)


def test_an_id_that_stands_twice_in_one_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "q.json", '{"7": {"a": 1}, "8": {}, "7": {"a": 2}}')
    with pytest.raises(AnnotationError, match="the key '7' stands twice in one object"):
        read_gqa([path], [])


def test_the_splits_share_the_answers_of_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_pictures(tmp_path / "images", "2375429.jpg")
    files = {"train": {"1": question(), "2": question(answer="yes")}, "testdev": {"3": question(answer="maybe")}}
    for split, values in {**files, "test": {"4": question(answer=None)}}.items():
        path = write_json(tmp_path / f"{split}_balanced_questions.json", values)
        options = ["--images", images, "--questions", path, "--out", tmp_path / "out", "--split", split]
        assert make_shards.main(["gqa", *map(str, options)]) == 0
    printed = capsys.readouterr().out
    assert "split train: 1 samples with 2 questions\n2 answers to choose from, all those of train_bal" in printed
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.answer_names, manifest.samples) == (["no", "yes"], {"train": 1, "testdev": 1, "test": 1})
    options[-3:] = [tmp_path / "other", "--split", "testdev"]
    assert make_shards.main(["gqa", *map(str, options)]) == 1
    assert "make the split train first" in capsys.readouterr().err
