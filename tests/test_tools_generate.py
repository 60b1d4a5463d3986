"""Training a token decoder on a few scenes, and drawing with it, as their user does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_tools_train import run

import vlp
from data_pipelines.scenes.build import build_scenes
from data_pipelines.scenes.placing import make_scene
from vlp.commands import data, evaluate, generate
from vlp.commands.evaluate_pictures import nearest_captions, sibling

ROOT = Path(__file__).parent.parent
SIZES = [
    "model.hidden_size=32",
    "model.layers=2",
    "model.patterns=[row, column]",
    "model.heads=2",
    "model.head_size=16",
    "model.mlp_size=32",
    "model.pictures.codes=32",
    "model.pictures.patch=16",
    "model.pictures.calibration_pictures=20",
    "objectives.0.objectives.0.empty_share=0.2",
    "data.micro_batch=8",
    "data.workers=0",
    "trainer.max_steps=3",
    "validation.every=3",
    "validation.micro_batches=1",
    "checkpoint.every=3",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scenes_of_two", 40, 12, 0, lambda text: None, processes=1, objects=(1, 2))
    return folder


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dalle"
    own = [f"data.root={root}", f"run_dir={folder}"]
    result = run("train.py", str(ROOT / "configs/dalle_small.yaml"), *SIZES, *own)
    assert result.returncode == 0, result.stderr
    assert "next_token" in result.stdout
    return folder


def drawn(finished: Path, folder: Path, *options: str) -> list[np.ndarray]:
    assert generate.main([str(finished), "--out", str(folder / "page.png"), *options]) == 0
    listed = json.loads((folder / "page" / "pictures.json").read_text())["pictures"]
    return [np.asarray(Image.open(folder / "page" / one["file"])) for one in listed]


def test_a_page_and_its_pictures(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command gives the same pictures, and a text those that it gets alone."""
    (tmp_path / "texts.txt").write_text("a red circle\na blue bar above a ring\n")
    found = []
    for number, options in enumerate(
        (
            ["--texts", str(tmp_path / "texts.txt")],
            ["--texts", str(tmp_path / "texts.txt")],
            ["--text", "a blue bar above a ring"],
            ["--text", "a blue bar above a ring", "--seed", "1"],
            ["--text", "a blue bar above a ring", "--guidance", "3", "--top-k", "5", "--temperature", "0.5"],
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(drawn(finished, folder, "--count", "3", *options))
        assert Image.open(folder / "page.png").size[0] > 300
    assert [len(own) for own in found] == [6, 6, 3, 3, 3]
    assert all(picture.shape == (96, 96, 3) for own in found for picture in own)
    assert all(np.array_equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(found[0][3:], found[2], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(found[2], found[3], strict=True))
    assert "may do harm" not in capsys.readouterr().out  # it was trained with empty captions


def test_in_python(finished: Path) -> None:
    model = vlp.load(finished)
    pictures = model.generate(["a red circle", "a ring"], count=2, seed=3)
    assert (pictures.shape, pictures.dtype) == ((2, 2, 96, 96, 3), torch.uint8)
    assert torch.equal(model.generate(["a ring"], count=2, seed=3)[0], pictures[1])
    likeliest, again = (model.draw(["a ring"], search="beams", seed=0)[0][0] for _ in range(2))
    assert torch.equal(likeliest.codes, again.codes)
    assert likeliest.score >= model.draw(["a ring"], count=4)[0][0].score - 1e-4


def test_the_upper_rows_are_given(finished: Path, tmp_path: Path) -> None:
    """They come back as the coder makes them, and the rest is drawn."""
    model = vlp.load(finished)
    photo = model.generate(["a red circle"])[0, 0].numpy()
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (found,) = drawn(
        finished, tmp_path, "--text", "a ring", "--count", "1", "--begin", str(tmp_path / "photo.png"), "--rows", "2"
    )
    assert np.array_equal(found[:32], photo[:32])
    assert not np.array_equal(found[32:], photo[32:])


def test_reranking(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in that likes bright pictures."""

    class Bright:
        dual = True

        def score(self, texts: list[str], pictures: list[np.ndarray]) -> torch.Tensor:
            return torch.tensor([[float(picture.mean()) for picture in pictures]])

    load = vlp.load
    monkeypatch.setattr(vlp, "load", lambda path, *given: Bright() if str(path) == "bright" else load(path, *given))
    found = drawn(finished, tmp_path, "--text", "a ring", "--count", "5", "--rerank-by", "bright", "--keep", "2")
    assert len(found) == 2
    brightness = sorted(
        (float(p.float().mean()) for p in load(finished).generate(["a ring"], count=5)[0]), reverse=True
    )
    assert [float(picture.mean()) for picture in found] == pytest.approx(brightness[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give what is to be seen"),
        (["--text", " "], "text 1 is empty"),
        (["--text", "a", "--top-k", "0"], "top_k is 0, but must be at least 1"),
        (["--text", "a", "--top-p", "0"], "top_p is 0.0, but must be above 0 and at most 1"),
        (["--text", "a", "--temperature", "0"], "temperature is 0.0, but must be above 0"),
        (["--text", "a", "--greedy", "--top-k", "3"], "--greedy takes the likeliest code: leave --top-k out"),
        (["--text", "a", "--keep", "5"], "--keep 5 is more than --count 4"),
        (["--text", "a", "--begin", "PHOTO", "--rows", "6"], "--rows 6: a picture has 6 rows of codes; give fewer"),
        (["--text", "a", "--out", "page.jpg"], "the page is a picture; name a file *.png"),
        (["--text", "a", "--out", "THERE"], "exists already; choose another --out"),
        (["--text", "a", "--rerank-by", "RUN"], "this is no dual encoder; take a run as clip_small"),
        (["--texts", "none.txt"], "none.txt"),
    ],
)
def test_what_can_not_be_drawn(
    options: list[str], message: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (96, 96)).save(tmp_path / "there.png")
    known = {"PHOTO": str(tmp_path / "there.png"), "THERE": str(tmp_path / "there.png"), "RUN": str(finished)}
    options = [known.get(option, option) for option in options]
    out = [] if "--out" in options else ["--out", str(tmp_path / "new.png")]
    assert generate.main([str(finished), *out, *options]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "new").exists()


def test_texts_that_are_cut_or_unknown_are_told(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(finished, tmp_path, "--text", "a red circle " * 11, "--text", "a \u00e9\u00fc\u4e2d circle", "--count", "1")
    told = " ".join(capsys.readouterr().out.split())
    assert "33 tokens, of which the run reads the first 30" in told
    assert "tokens are unknown to the run" in told


def test_evaluate(finished: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """True pictures are read without an error; what is drawn depends on the settings alone."""
    found = []
    for settings in ([], [], ["--seed", "1", "--count", "2", "--top_k", "3"]):
        assert evaluate.main([str(finished), "--most", "9", *settings]) == 0, capsys.readouterr().err
        found.append(json.loads((finished / "generation-val.json").read_text()))
    told = capsys.readouterr().out
    assert found[0] == found[1]
    assert (found[2]["seed"], found[2]["count"], found[2]["top_k"]) == (1, 2, 3)
    true = found[0]["true pictures"]
    assert [true[name] for name in ("captions", "entities")] == [1.0, 1.0]
    assert found[0]["other scenes"]["entities"] < 0.5
    assert set(found[0]) >= {"nearest of training", "reproduced by the coder", "drawn", "same words, dealt otherwise"}
    assert "objects found" in " ".join(told.split())
    assert "9 captions, split val" in told
    assert Image.open(finished / "generation-val.png").size[0] > 1000
    assert evaluate.main([str(finished), "--beams", "3"]) == 1
    assert "unknown key 'beams'; known keys: count, guidance, seed" in capsys.readouterr().err


def test_a_sibling_is_another_scene_with_the_same_words() -> None:
    """Also of the last scene that is measured."""
    for number in range(12):
        assert sibling(number) != number
        own, other = (make_scene(0, "val", n, (1, 2)).objects for n in (number, sibling(number)))
        assert sorted(o.shape for o in own) == sorted(o.shape for o in other)


def test_the_nearest_caption_shares_most_words() -> None:
    known = ["a red circle", "a red circle and a blue ring", "two bars", "a blue ring, and a red circle"]
    assert nearest_captions(["a blue ring and a red circle", "bars", "a circle"], known) == [1, 2, 0]
    assert nearest_captions(["\u4e00\u4e2a\u5706"], ["\u65b9\u5757", "\u4e24\u4e2a\u5706"]) == [1]


def test_photographs_are_not_read(
    finished: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "photos"
    pictures.mkdir()
    for number in range(5):
        Image.new("RGB", (96, 96), (40 * number, 90, 90)).save(pictures / f"{number:012d}.jpg")
    captions = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg", "width": 96, "height": 96} for n in range(5)],
        "annotations": [{"id": n, "image_id": n, "caption": "a photo"} for n in range(5)],
    }
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    made = ["coco", "--images", str(pictures), "--captions", str(tmp_path / "captions.json"), "--split", "val"]
    assert data.main([*made, "--out", str(tmp_path / "photos_data")]) == 0, capsys.readouterr().err
    data.main([*made[:-1], "train", "--out", str(tmp_path / "photos_data")])
    assert evaluate.main([str(finished), "--data", str(tmp_path / "photos_data")]) == 1
    assert "of which it is not known what is in them; drawings are measured on scenes" in capsys.readouterr().err
