"""Training a token decoder on a few scenes, and drawing with it, as their user does."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_tools_train import run

import vlp
from data_pipelines.scenes.build import build_scenes
from data_pipelines.scenes.placing import make_scene
from data_pipelines.shards.reader import ShardReader
from vlp.commands import data, evaluate, generate
from vlp.commands.evaluate_pictures import nearest_captions, sibling
from vlp.interfaces import SquareSize
from vlp.use.fitting import fits
from vlp.use.pictures import codes_of

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


@pytest.fixture(scope="module")
def captioner(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CogView's decoder, codes before captions, trained a little."""
    return train_captioner(root, tmp_path_factory.mktemp("runs") / "captions")


def train_captioner(root: Path, folder: Path, *more: str) -> Path:
    sizes = [size for size in SIZES if "patterns" not in size and "empty_share" not in size and "max_steps" not in size]
    words = [f"data.tokenizer.vocabulary={root}/scenes_of_two/vocabulary.txt", "data.sources.0.path=scenes_of_two"]
    own = [f"data.root={root}", f"run_dir={folder}", "init=null", "trainer.max_steps=6", *words, *more]
    result = run("train.py", str(ROOT / "configs/captioning/cogview_small.yaml"), *sizes, *own)
    assert result.returncode == 0, result.stderr
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


def test_reranking(finished: Path, captioner: Path, tmp_path: Path) -> None:
    """By the caption loss of a decoder that reads pictures first: the two least losses, by hand."""
    found = drawn(finished, tmp_path, "--text", "a ring", "--count", "5", "--rerank-by", str(captioner), "--keep", "2")
    judge, pictures = vlp.load(captioner), vlp.load(finished).generate(["a ring"], count=5)[0].numpy()
    scores = [caption_score(judge, "a ring", picture) for picture in pictures]
    best = sorted(range(5), key=lambda k: -scores[k])[:2]
    assert all(np.array_equal(a, pictures[k]) for a, k in zip(found, best, strict=True))
    listed = json.loads((tmp_path / "page" / "pictures.json").read_text())["pictures"]
    assert [one["score"] for one in listed] == pytest.approx([scores[k] for k in best], abs=1e-5)


@torch.no_grad()
def caption_score(judge: Any, text: str, picture: np.ndarray) -> float:
    """Mean log-probability of the words, from the logits of one sequence after another."""
    model = judge.model
    template = model.template
    codes = codes_of(judge, judge.make_images([picture])[0]).tolist()
    (tokens,) = judge.tokenizer.encode([text])

    def command(name: str) -> int:
        return int(template.text_offset + template.command(name))

    ids = [command("BASE"), command("BOI1"), *codes, command("EOI1"), command("ROI1")]
    told = 0.0
    for word in tokens.ids:
        logits = model.logits(model.read(torch.tensor([ids])), "text")[0, -1]
        ids.append(template.text_offset + word)
        told += float(logits.log_softmax(0)[ids[-1]])
    return told / len(tokens.ids)


def test_fits_of_pairs_are_those_of_each_alone(finished: Path, captioner: Path) -> None:
    texts = ["a ring", "a red circle above a blue bar", "two"]
    pictures = vlp.load(finished).generate(texts)[:, 0].numpy()
    judge = vlp.load(captioner)
    told = fits(judge, texts, judge.make_images(pictures))
    alone = [caption_score(judge, text, picture) for text, picture in zip(texts, pictures, strict=True)]
    assert told.tolist() == pytest.approx(alone, abs=1e-5)


def test_padding_that_is_predicted_is_no_part_of_the_fit(finished: Path, root: Path, tmp_path: Path) -> None:
    test_fits_of_pairs_are_those_of_each_alone(finished, train_captioner(root, tmp_path / "run", "model.padding=each"))


def test_a_captioner_draws_nothing(captioner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It reads pictures before texts; what is measured of it is the caption's loss."""
    assert generate.main([str(captioner), "--text", "a ring", "--out", str(tmp_path / "new.png")]) == 1
    assert "this run draws no pictures of texts" in capsys.readouterr().err
    assert evaluate.main([str(captioner)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "captions: " in told
    assert "given its own picture" in told
    losses = json.loads((captioner / "generation-val.json").read_text())["losses"]
    assert losses["pairs"] == 12
    assert 0 < losses["p"] <= 1


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
    assert "33 tokens, of which the run reads the first 20" in told
    assert "tokens are unknown to the run" in told


def test_evaluate(finished: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """True pictures are read without an error; what is drawn depends on the settings alone."""
    found = []
    for settings in ([], [], ["--seed", "1", "--count", "2", "--top-k", "3"]):
        assert evaluate.main([str(finished), "--most", "6", *settings]) == 0, capsys.readouterr().err
        found.append(json.loads((finished / "generation-val.json").read_text()))
    told = capsys.readouterr().out
    assert found[0] == found[1]
    assert (found[2]["seed"], found[2]["count"], found[2]["top_k"]) == (1, 2, 3)
    true = found[0]["true pictures"]
    assert [true[name] for name in ("captions", "entities")] == [1.0, 1.0]
    assert found[0]["other pictures"]["entities"] < 0.5
    assert "codes: " in told
    check_losses(finished, root, found[0]["losses"])
    assert set(found[0]) >= {"nearest of training", "reproduced by the coder", "drawn", "same words, dealt otherwise"}
    assert "objects found" in " ".join(told.split())
    assert "6 captions, split val" in told
    assert Image.open(finished / "generation-val.png").size[0] > 1000
    assert evaluate.main([str(finished), "--beams", "3"]) == 1
    assert "unknown key 'beams'; known keys: count, guidance, rerank_by, seed" in capsys.readouterr().err


def check_losses(finished: Path, root: Path, told: dict[str, float]) -> None:
    """The same, one pair after another."""
    model, reader = vlp.load(finished), ShardReader(root / "scenes_of_two", "val")
    captions = [reader.facts(n)["captions"][0] for n in range(12)]
    pictures = [reader.pixels(n, SquareSize(96)) for n in range(12)]
    codes = torch.stack([codes_of(model, picture) for picture in model.make_images(pictures)])
    found = []
    for text, own in [*zip(captions, codes, strict=True), *zip(captions[3:] + captions[:3], codes, strict=True)]:
        (tokens,) = model.tokenizer.encode([text])
        template = model.model.template
        padding = [
            template.words + len(template.own_commands) + place for place in range(len(tokens.ids), template.most)
        ]
        ids = torch.tensor([[template.command("START"), *tokens.ids, *padding, *(own + template.code_offset).tolist()]])
        logits = model.model.logits(model.model.read(ids[:, :-1])[:, template.most :], "codes")[0]
        found.append(float(torch.nn.functional.cross_entropy(logits, own)))
    away = np.array(found[12:]) - found[:12]
    assert [told["own"], told["other"]] == pytest.approx([np.mean(found[:12]), np.mean(found[12:])], abs=1e-5)
    z = away.mean() / (away.std(ddof=1) / 12**0.5)
    assert told["p"] == pytest.approx(2 * (1 - NormalDist().cdf(abs(z))), rel=0.02)
    shares = codes.flatten().bincount() / codes.numel()
    assert told["unigram"] == pytest.approx(-float((shares * shares.clamp(min=1e-9).log()).sum()), abs=1e-5)


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
    finished: Path, captioner: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    assert evaluate.main([str(finished), "--data", str(tmp_path / "photos_data")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "it is not known what is in the pictures" in told
    report = json.loads((finished / "generation-val.json").read_text())
    assert report["drawn"] == {}
    assert report["losses"]["pairs"] == 5
    judged = [str(finished), "--data", str(tmp_path / "photos_data"), f"rerank_by={captioner}"]
    assert evaluate.main(judged) == 0, capsys.readouterr().err
    report = json.loads((finished / "generation-val.json").read_text())
    assert report["drawn, the best by the judge"]["fit"] == report["drawn"]["fit"] < 0
