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


DETAILS = {"semantic": "global", "detailed": "weatherVerify", "words": 3, "steps": 1, "group": None}


def test_by_hand(tmp_path: Path) -> None:
    types = {"structural": "query", "semantic": "global", "detailed": "weatherVerify"}
    values = {
        "02930152": question(),
        "07333408": question("n161313", "Où?", "t-shirt "),
        "2": question(2375429, " Who? ", "girl", types=types),
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
        "question_details": [
            {**DETAILS, "entailed": ["02930159"]},
            {**DETAILS, "words": 1, "entailed": ["02930159"]} | {"group": None},
        ],
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
        ({"7": question(isBalanced=1)}, "question '7' has no 'isBalanced' of type bool"),
        ({"7": question(groups=[])}, "question '7' has no 'groups' of type dict"),
        ({"7": question(groups={"global": 3})}, "the global one of 'groups' is neither a text nor null"),
        ({"7": question(entailed="1")}, "'entailed' is not a list of ids"),
        ({"7": question(semantic=[{"operation": "select"}])}, "'semantic' is not a list of steps"),
        ({"7": question(isBalanced=False)}, "none of 1 questions is balanced; --unbalanced takes them"),
        ([question()], "holds a list, not a dict"),
    ],
)
def test_what_is_not_this_layout_is_refused(tmp_path: Path, values: Any, message: str) -> None:
    path = write_json(tmp_path / "val_balanced_questions.json", values)
    with pytest.raises(AnnotationError, match=message) as error:
        read_gqa([path], [])
    assert "val_balanced_questions.json" in str(error.value)


def steps(*texts: str) -> list[dict[str, Any]]:
    return [dict(zip(("operation", "argument"), text.split(": "), strict=True), dependencies=[]) for text in texts]


def test_balanced_questions_alone_unless_all_are_asked_for(tmp_path: Path) -> None:
    program = steps(
        "select: dog (1)", "relate: on,s (2)", "query: name", "exist: ?", "choose name: a|b", "query: hposition"
    )
    values = {
        "1": question(semantic=program, groups={"global": "dog"}),
        "2": question(answer="maybe", isBalanced=False, entailed=["1"]),
        "3": question("9", answer="maybe", isBalanced=False),
    }
    path = write_json(tmp_path / "val_all_questions.json", values)
    annotations = read_gqa([path], [path])
    (picture,) = annotations.pictures
    assert picture.facts["question_ids"] == ["1"]
    assert picture.facts["question_details"] == [{**DETAILS, "steps": 3, "group": "dog", "entailed": ["02930159"]}]
    assert annotations.remarks[0] == "2 questions are not balanced; --unbalanced takes them too"
    assert annotations.manifest.answer_names == ["no"]
    annotations = read_gqa([path], [path], unbalanced=True)
    first, second = annotations.pictures
    assert first.facts["question_ids"] == ["1", "2"]
    assert first.facts["question_details"][1] == {"balanced": False}
    assert second.facts["question_ids"] == ["3"]
    assert annotations.manifest.answer_names == ["maybe", "no"]


def test_valid_and_plausible_answers(tmp_path: Path) -> None:
    values = {"1": question(), "2": question(), "3": question(isBalanced=False)}
    path = write_json(tmp_path / "q.json", values)
    choices = {"1": {"valid": ["no", "yes"], "plausible": ["no"]}, "3": {"valid": [], "plausible": []}}
    annotations = read_gqa([path], [], True, write_json(tmp_path / "val_choices.json", choices))
    (picture,) = annotations.pictures
    first, second, third = picture.facts["question_details"]
    assert (first["valid"], first["plausible"]) == (["no", "yes"], ["no"])
    assert "valid" not in second
    assert third == {"balanced": False}
    assert annotations.remarks == ["1 of 2 balanced questions have lists of valid and plausible answers"]
    for wrong, message in [
        ({"1": {"valid": ["no"]}}, "val_choices.json: question '1' has no 'plausible' of type list"),
        ({"1": {"valid": [3], "plausible": []}}, "question '1': 'valid' is not a list of texts"),
        ({"7": {}}, "has none of the 2 balanced questions; of another split"),
        ([], "holds a list, not a dict"),
    ]:
        with pytest.raises(AnnotationError, match=message):
            read_gqa([path], [], True, write_json(tmp_path / "val_choices.json", wrong))
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_gqa([path], [], True, tmp_path / "none.json")


def thing(x: Any, relations: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    sides = {"x": x, "y": 5, "w": 10, "h": 10}
    return {"name": "dog", **sides, "attributes": ["brown"], "relations": relations or [], **more}


def test_scene_graphs(tmp_path: Path) -> None:
    path = write_json(tmp_path / "q.json", {"1": question(), "2": question("9")})
    on, off = {"object": "12", "name": "on"}, {"object": "13", "name": "near"}
    objects = {"11": thing(0, [on, off]), "13": thing(70), "12": thing(20, name="mat", attributes=[])}
    graph = {"width": 40, "height": 20, "location": "park", "objects": objects}
    graphs = write_json(
        tmp_path / "val_sceneGraphs.json", {"2375429": graph, "5": "of a picture that is not asked about"}
    )
    images = write_pictures(tmp_path, "2375429.jpg", "9.jpg")
    annotations = read_gqa([path], [], scene_graphs=[graphs])
    samples = built(annotations, images, tmp_path / "out")
    facts = samples["gqa-2375429"].facts
    assert facts["boxes"] == [[0.0, 0.25, 0.25, 0.75], [0.5, 0.25, 0.75, 0.75]]
    assert (facts["box_names"], facts["box_attributes"]) == (["dog", "mat"], [["brown"], []])
    assert (facts["relations"], facts["location"]) == ([[0, "on", 1]], "park")
    assert samples["gqa-9"].facts["boxes"] == []
    assert annotations.remarks == ["scene graphs of 1 of 2 pictures, with 2 objects"]
    assert left_out(annotations) == [
        ("object 13 of image 2375429", "box without area"),
        ("relation 1 of object 11 of image 2375429", "relation of an object that has no box"),
    ]
    for wrong, message in [
        ({**graph, "width": 0}, "image '2375429' is 0 x 20 pixels"),
        ({**graph, "objects": []}, "image '2375429' has no 'objects' of type dict"),
        ({**graph, "objects": {"1": thing("a")}}, "object '1' has no 'x' of type int or float"),
        ({**graph, "objects": {"1": thing(0, attributes=[3])}}, "object '1': 'attributes' is not a list of texts"),
        ({**graph, "objects": {"1": thing(0, [3])}}, r"object '1': relations\[0\] has no 'name' of type str"),
    ]:
        with pytest.raises(AnnotationError, match=message):
            read_gqa([path], [], scene_graphs=[write_json(graphs, {"2375429": wrong})])
    with pytest.raises(AnnotationError, match="it has none of the 2 pictures; of another split"):
        read_gqa([path], [], scene_graphs=[write_json(graphs, {"5": graph})])
    with pytest.raises(AnnotationError, match="image '9' stands in"):
        read_gqa([path], [], scene_graphs=[write_json(graphs, {"9": graph}), graphs])


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
