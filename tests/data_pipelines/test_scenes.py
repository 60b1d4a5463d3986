"""Embedded scenes: what is drawn, what is said of it, and that both are the same everywhere."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.scenes import language
from data_pipelines.scenes.build import CLASS_NAMES, build_scenes, class_scores, make_samples, region_features
from data_pipelines.scenes.language import Entity, Meaning, bag_of_words_scores, ceiling, describe, holds, label_words
from data_pipelines.scenes.objects import HELD_OUT, Scene, SceneObject, related
from data_pipelines.scenes.placing import SIDE, make_scene, scene_rng
from data_pipelines.scenes.reading import read_caption, scene_of
from data_pipelines.scenes.rendering import render, shape_mask
from data_pipelines.shards.reader import ShardReader
from vlp.text.wordpiece import WordPiece

ROOT = Path(__file__).parent.parent.parent
A, B = SceneObject("red", "circle", "large", "plain", 20, 20), SceneObject("blue", "bar", "small", "striped", 70, 30)


def scenes(split: str, count: int) -> list[Scene]:
    return [make_scene(0, split, number) for number in range(count)]


def captions_of(scene: Scene, number: int) -> list[language.Caption]:
    return describe(scene, scene_rng(0, "val", number, "captions"))


def digest_of_scenes() -> str:
    """Of pixels, boxes and texts; not of features, since convolutions round differently from machine to machine."""
    digest = hashlib.sha256()
    for split, number in itertools.product(("train", "val", "unseen"), range(6)):
        scene = make_scene(7, split, number)
        pixels, boxes = render(scene, 7, split, number)
        digest.update(pixels.tobytes() + boxes.tobytes())
        for caption in describe(scene, scene_rng(7, split, number, "captions")):
            digest.update(f"{caption.text}|{caption.foil}".encode())
    return digest.hexdigest()


def test_the_same_on_every_machine() -> None:
    """A pinned digest: it proves nothing but that another machine, day or library version draws the same scenes."""
    code = "import test_scenes; print(test_scenes.digest_of_scenes())"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "5"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert digest_of_scenes() == other.stdout.strip() == PINNED


PINNED = "9394160b470d7643a5338c4c836a5f6eabedc162d363e38cd3c9965af4b7d295"


def test_boxes_are_tight() -> None:
    """A circle of radius 15 around (20, 20), and a bar of radius 8 that is 5 pixels high around (70, 30)."""
    scene = Scene((A, B))
    pixels, boxes = render(scene, 0, "val", 0)
    np.testing.assert_allclose(boxes * SIDE, [[5, 5, 36, 36], [62, 28, 79, 33]], atol=1e-4)
    reds = (pixels[..., 0] > 190) & (pixels[..., 1] < 60)
    y, x = np.nonzero(reds)
    assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == [5, 5, 36, 36]


def test_objects_keep_apart_and_inside() -> None:
    for number, scene in enumerate(scenes("train", 200)):
        _, boxes = render(scene, 0, "train", number)
        assert 3 <= len(scene.objects) <= 5
        assert boxes.min() >= 0
        assert boxes.max() <= 1
        for a, b in itertools.combinations(boxes, 2):
            overlap = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            assert (overlap <= 0).any()


def test_held_out_combinations_occur_in_their_split_alone() -> None:
    def combinations(scene: Scene) -> set[tuple[str, str]]:
        return {(o.colour, o.shape) for o in scene.objects}

    held_out = set(HELD_OUT)
    assert not any(combinations(scene) & held_out for split in ("train", "val") for scene in scenes(split, 400))
    assert all(combinations(scene) & held_out for scene in scenes("unseen", 400))
    assert {pair for scene in scenes("unseen", 400) for pair in combinations(scene)} >= held_out


@pytest.mark.parametrize("objects", [(1, 2), (1, 1), (2, 4)])
def test_scenes_of_few_objects(objects: tuple[int, int]) -> None:
    """As many objects as asked; captions are true, foils false, and what is held out stays out."""
    counts = set()
    for split in ("train", "unseen"):
        for sample in make_samples(0, split, range(40), objects=objects):
            scene = scene_of(sample.facts)
            counts.add(len(scene.objects))
            assert sample.regions is not None
            assert len(sample.regions.boxes) == len(scene.objects)
            assert len(set(sample.captions)) == 5
            assert all(holds(read_caption(text), scene) for text in sample.captions)
            assert not any(holds(read_caption(text), scene) for text in sample.facts["foils"])
            held_out = [(o.colour, o.shape) in HELD_OUT for o in scene.objects]
            assert any(held_out) == (split == "unseen")
    assert counts == set(range(objects[0], objects[1] + 1))


@pytest.mark.parametrize(
    ("objects", "asks", "message"),
    [
        ((0, 2), "questions", r"objects are \[0, 2\], but must be the fewest and the most of a scene, from 1 to 5"),
        ((3, 2), "questions", r"objects are \[3, 2\]"),
        ((3, 6), "questions", r"objects are \[3, 6\]"),
        ((1, 2), "statements", "scenes of fewer than 3 objects have questions, but no statements"),
    ],
)
def test_scenes_that_can_not_be(objects: tuple[int, int], asks: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build_scenes(tmp_path / "scenes", 4, 4, 0, lambda text: None, 1, asks, objects)
    assert not (tmp_path / "scenes").exists()


def test_splits_differ() -> None:
    assert len({str(scene) for split in ("train", "val", "unseen") for scene in scenes(split, 100)}) == 300


def slowly_true(meaning: Meaning, scene: Scene) -> bool:
    """All ways to give the entities to different objects, tried one after another."""
    many = [e for e in meaning.entities if e.count > 1]
    if any([e.fits(o) for o in scene.objects].count(True) != e.count for e in many):
        return False
    counted = {k for e in many for k, o in enumerate(scene.objects) if e.fits(o)}
    single = [n for n, e in enumerate(meaning.entities) if e.count == 1]
    free = [k for k in range(len(scene.objects)) if k not in counted]
    for chosen in itertools.permutations(free, len(single)):
        given = dict(zip(single, chosen, strict=True))
        if all(meaning.entities[n].fits(scene.objects[k]) for n, k in given.items()) and all(
            related(scene.objects[given[a]], relation, scene.objects[given[b]]) for a, relation, b in meaning.relations
        ):
            return True
    return False


def test_captions_are_true_and_foils_false() -> None:
    seen = Counter()
    everything = scenes("val", 120)
    for number, scene in enumerate(everything):
        captions = captions_of(scene, number)
        assert len({caption.text for caption in captions}) == 5
        for caption in captions:
            assert slowly_true(caption.meaning, scene)
            assert not slowly_true(caption.foil_meaning, scene)
            for other in (scene, everything[number - 1], everything[number - 7]):
                assert holds(caption.meaning, other) == slowly_true(caption.meaning, other)
            seen["relation"] += bool(caption.meaning.relations)
            seen["count"] += any(e.count > 1 for e in caption.meaning.entities)
            seen["omission"] += sum(e.count for e in caption.meaning.entities) < len(scene.objects)
            seen["texture"] += any(e.texture for e in caption.meaning.entities)
    assert min(seen.values()) > 60, seen


def words_of(name: str) -> tuple[str, ...]:
    return language.SYNONYMS.get(name, (name,))


def test_a_text_says_what_it_means() -> None:
    """Each attribute, count and relation of the meaning is in the text in one of its words, and nothing else is."""
    for number, scene in enumerate(scenes("val", 60)):
        for caption in captions_of(scene, number):
            wanted: Counter[str] = Counter()
            for e in caption.meaning.entities:
                for name in (e.colour, e.shape, e.size, e.texture):
                    if name is not None:
                        wanted[name] += e.count
            assert label_words(caption.text) == wanted, caption
            said = [w for w in ("left", "right", "above", "over", "below", "under", "beneath") if w in caption.text]
            relations = {relation for _, relation, _ in caption.meaning.relations}
            assert set(said) <= {w for r in relations for phrase in words_of(r) for w in phrase.split()}
            assert bool(said) == bool(relations)


def test_a_foil_differs_in_one_word_or_relation_or_deals_the_shapes_anew() -> None:
    """The words are drawn alike, so a foil's text differs only in what its meaning changes."""
    seen: Counter[str] = Counter()
    for number, scene in enumerate(scenes("val", 60)):
        for caption in captions_of(scene, number):
            true, false = caption.meaning, caption.foil_meaning
            assert len(true.entities) == len(false.entities)
            changes = [
                (name, getattr(a, name), getattr(b, name))
                for a, b in zip(true.entities, false.entities, strict=True)
                for name in ("colour", "shape", "size", "texture", "count")
                if getattr(a, name) != getattr(b, name)
            ]
            turned = [(a, b) for a, b in zip(true.relations, false.relations, strict=True) if a != b]
            if len(changes) + len(turned) == 1:
                seen["one"] += 1
                assert all(a[::2] == b[::2] and language.OPPOSITE[a[1]] == b[1] for a, b in turned)
            else:
                seen["dealt"] += 1
                assert not turned
                assert {name for name, _, _ in changes} == {"shape"}
                assert sorted(old for _, old, _ in changes) == sorted(new for _, _, new in changes)
            if all(e.count == 1 for e in true.entities):
                bags = [label_words(text) for text in (caption.text, caption.foil)]
                assert (bags[0] - bags[1]).total() == (bags[1] - bags[0]).total() <= (len(changes) == 1), caption
    assert min(seen["one"], seen["dealt"]) > 75, seen  # of 300


def test_relations_by_hand() -> None:
    assert related(A, "left of", B)  # 50 to the right, 10 below
    assert not related(A, "above", B)  # the axis on which they differ less
    assert related(B, "right of", A)
    near = SceneObject("red", "circle", "small", "plain", 65, 60)  # 45 and 40: as much down as right
    assert not any(related(A, relation, near) for relation in language.RELATIONS)


def test_the_vocabulary_has_every_word(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join(language.vocabulary()) + "\n")
    tokenizer = WordPiece(path, lowercase=True)
    for number, scene in enumerate(scenes("unseen", 60)):
        for tokens in tokenizer.encode([t for c in captions_of(scene, number) for t in (c.text, c.foil)]):
            assert all(tokens.word_starts)
            assert tokenizer.special["UNK"] not in tokens.ids
    assert tokenizer.special["UNK"] not in tokenizer.encode(["xylophone (42)!"])[0].ids


def test_class_scores_are_shares_of_overlap() -> None:
    scores = class_scores()
    for (shape, _), row in scores.items():
        assert row.astype(float).sum() == pytest.approx(1, abs=2e-3)
        assert CLASS_NAMES[int(row.argmax())] == shape
        assert row[0] == pytest.approx(0.02, abs=1e-4)
    square, circle, bar = (shape_mask(name, "large") for name in ("square", "circle", "bar"))

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        return (a & b).sum() / (a | b).sum()

    row = scores["square", "large"]
    ratio = float(row[CLASS_NAMES.index("circle")]) / float(row[CLASS_NAMES.index("bar")])
    assert ratio == pytest.approx(np.exp(8 * (overlap(square, circle) - overlap(square, bar))), rel=0.02)


def test_a_linear_probe_reads_the_features() -> None:
    """Ridge regression on one-hot targets, fitted on some scenes and tried on others: pixels suffice for the names."""
    probe: dict[str, tuple[list, list]] = {"train": ([], []), "val": ([], [])}
    for split, count in (("train", 1200), ("val", 250)):
        pictures = [render(scene, 0, split, number) for number, scene in enumerate(scenes(split, count))]
        probe[split][0].extend(features.astype(np.float32) for features in region_features()(pictures))
        probe[split][1].extend(o for scene in scenes(split, count) for o in scene.objects)
    x, held_out = (torch.from_numpy(np.concatenate(probe[split][0])) for split in ("train", "val"))
    mean = x.mean(0)
    x, held_out = x - mean, held_out - mean
    gram = x.T @ x + 1000 * torch.eye(x.shape[1])
    accuracies = {}
    for attribute in ("shape", "colour", "size"):
        train, val = ([getattr(o, attribute) for o in probe[split][1]] for split in ("train", "val"))
        names = sorted(set(train))
        targets = torch.nn.functional.one_hot(torch.tensor([names.index(n) for n in train])).float()
        weights = torch.linalg.solve(gram, x.T @ (targets - targets.mean(0)))
        predicted = (held_out @ weights + targets.mean(0)).argmax(1)
        accuracies[attribute] = float((predicted == torch.tensor([names.index(n) for n in val])).float().mean())
    assert min(accuracies.values()) >= 0.9, accuracies


def test_a_family_has_the_same_words_and_different_pictures() -> None:
    """So a bag of words can do no better than guess which of three scenes is meant."""
    everything = scenes("train", 3 * 60)
    for first in range(0, len(everything), 3):
        family = everything[first : first + 3]
        for attribute in ("colour", "shape", "size", "texture"):
            assert len({str(sorted(getattr(o, attribute) for o in scene.objects)) for scene in family}) == 1
        assert len({scene.objects for scene in family}) == 3
    bindings = [frozenset((o.colour, o.shape) for o in scene.objects) for scene in everything]
    alike = sum(len(set(bindings[first : first + 3])) == 1 for first in range(0, len(bindings), 3))
    assert alike < 15, "what belongs together should differ in most families"


def test_bag_of_words_and_ceiling_by_hand() -> None:
    red_left = Scene((A, B))
    blue_left = Scene((SceneObject("blue", "circle", "large", "plain", 20, 20), B))
    both = [red_left, blue_left]
    objects = [[vars(o) for o in scene.objects] for scene in both]
    scores = bag_of_words_scores(["a red disc", "two big blue discs"], objects)
    # a scene has eight words. Two large blue circles are six: the first scene has one large, one blue and one circle
    expected = [[2 / 2 - 0.01 * 6, 1 / 2 - 0.01 * 7], [3 / 6 - 0.01 * 5, 4 / 6 - 0.01 * 4]]
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    ties = bag_of_words_scores(["a red disc"] * 400, [objects[0], objects[0]])
    assert 140 < (ties[:, 0] > ties[:, 1]).sum() < 260
    sure = Meaning((Entity("red", "circle"),))
    vague = Meaning((Entity(None, "circle"),))
    # vague fits both scenes; an image is found by its least ambiguous caption
    assert ceiling([sure, vague, vague], [0, 0, 1], both) == (pytest.approx((1 + 0.5 + 0.5) / 3), pytest.approx(0.75))


def test_built_whole_or_not_at_all(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from data_pipelines.scenes.build import build_scenes\n"
        "if __name__ == '__main__': build_scenes(Path(sys.argv[1]), 100000, 10, 0, print, processes=1)\n"
    )
    script = tmp_path / "build.py"
    script.write_text(code)
    folder = tmp_path / "scenes"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script), str(folder)], env=environment)
    for _ in range(600):
        if list(tmp_path.glob(".scenes.*.tmp")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob(".scenes.*.tmp"))
    assert not folder.exists()
    build_scenes(folder, 12, 5, 0, lambda text: None, processes=1)
    reader = ShardReader(folder, "train")
    assert len(reader) == 12
    assert reader.manifest.samples == {"train": 12, "val": 5, "unseen": 5}
    expected = make_samples(0, "val", range(5))
    val = ShardReader(folder, "val")
    assert [val.sample(n).captions for n in range(5)] == [sample.captions for sample in expected]
    with pytest.raises(FileExistsError, match="exists already"):
        build_scenes(folder, 1, 1, 0, lambda text: None)


def test_several_processes_make_what_one_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipelines.scenes.build.CHUNK", 4)
    for name, processes in (("one", 1), ("two", 2)):
        build_scenes(tmp_path / name, 23, 3, 1, lambda text: None, processes)
    one, two = (ShardReader(tmp_path / name, "train") for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert len(one) == 23
    for n in range(23):
        assert one.facts(n) == two.facts(n)
        assert one.read_member(n, "image") == two.read_member(n, "image")
