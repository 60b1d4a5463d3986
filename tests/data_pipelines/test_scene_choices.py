"""Questions with choices about scenes: a slow reader finds one choice right, and the words alone tell nothing."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from made_up_shards import loads
from test_scene_expressions import KINDS, meant

from data_pipelines.scenes.build import build_scenes
from data_pipelines.scenes.choices import QUESTIONS, choose
from data_pipelines.scenes.language import CANONICAL, vocabulary
from data_pipelines.scenes.objects import RELATIONS, Scene
from data_pipelines.scenes.placing import make_scene, scene_rng
from data_pipelines.scenes.questions import WORDS
from data_pipelines.scenes.statements import WORDS as STATEMENT_WORDS
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.source import Source
from vlp.text.wordpiece import WordPiece

COUNT = 600


@cache
def asked() -> list[tuple[Scene, dict[str, Any]]]:
    scenes = [make_scene(0, "train", number) for number in range(COUNT)]
    return [
        (scene, question)
        for number, scene in enumerate(scenes)
        for question in choose(scene, f"s-{number}", scene_rng(0, "train", number, "choices"))
    ]


def plain(text: str) -> str:
    """The text with each word's canonical name."""
    for words, name in sorted(CANONICAL.items(), key=lambda item: -len(item[0])):
        text = f" {text} ".replace(f" {words} ", f" {name} ").strip()
    return text


def on_side(text: str, scene: Scene) -> bool:
    """Whether the one thing is on that side of the other, and further off along that axis than along the other."""
    relation = next(r for r in RELATIONS if f" {r} " in plain(text))
    (one,), (other,) = (meant(part, scene) for part in plain(text).split(f" {relation} "))
    dx, dy = other.x - one.x, other.y - one.y
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    return abs(along) >= 2 * abs(across) and (along > 0) == (relation in ("left of", "above"))


def test_one_choice_is_right() -> None:
    known = set(vocabulary([*WORDS, *STATEMENT_WORDS]))
    for scene, question in asked():
        (spoken_of,) = {n for n in question["question"]["regions"] if n >= 0}
        answers, rationales = ([choice["text"] for choice in question[part]] for part in ("answers", "rationales"))
        right = [any(o is scene.objects[spoken_of] for o in meant(text, scene)) for text in answers]
        assert right == [n == question["labels"][0] for n in range(4)]
        assert [on_side(text, scene) for text in rationales] == [n == question["labels"][1] for n in range(4)]
        for said in (question["question"], *question["answers"], *question["rationales"]):
            assert {n for n in said["regions"] if n >= 0} <= set(range(len(scene.objects)))
            assert len(said["regions"]) == len(said["text"].split())
            assert set(said["text"].removesuffix("?").split()) <= known
    assert len(asked()) > 0.7 * COUNT
    assert max(Counter(q["annot_id"].rsplit("-", 1)[0] for _, q in asked()).values()) == QUESTIONS


def test_words_alone_tell_nothing() -> None:
    """Neither place nor a word makes a choice right more often than one in four, as far as chance goes."""
    for part, number in (("answers", 0), ("rationales", 1)):
        places: Counter[int] = Counter()
        said: Counter[str] = Counter()
        true: Counter[str] = Counter()
        for _, question in asked():
            right = question["labels"][number]
            places[right] += 1
            for n, choice in enumerate(question[part]):
                names = set(plain(choice["text"]).split()) & {
                    w for names in (*KINDS.values(), RELATIONS) for w in names
                }
                names |= {relation for relation in RELATIONS if f" {relation} " in plain(choice["text"])}
                said.update(names)
                true.update(names if n == right else ())
        assert min(places.values()) > 0.2 * len(asked())
        for name, count in said.items():
            assert abs(true[name] - count / 4) < 4 * (count * 3 / 16) ** 0.5, name


def test_a_data_set_of_choices(tmp_path: Path) -> None:
    build_scenes(tmp_path / "choices", 12, 4, 0, lambda text: None, processes=1, asks="choices")
    tokenizer = WordPiece(tmp_path / "choices" / "vocabulary.txt", True)
    caps = {"question": 20, "answer": 20, "rationale": 20}
    source = Source("choices", tmp_path / "choices", "train", tokenizer, loads(caps, 100, token_region=True))
    reader = ShardReader(tmp_path / "choices", "train")
    told = [(n, q) for n in range(12) for q in reader.facts(n)["vcr"]]
    assert len(source) == 2 * len(told) > 0
    for place, (number, question) in enumerate(told):
        assert question["annot_id"].startswith(f"{reader.key(number)}-")
        for part, name in enumerate(("answer", "rationale")):
            loaded = source.load(2 * place + part)
            right = question["labels"][part]
            assert (loaded.sample, loaded.answer) == (number, right)
            tokens = [loaded.segments, *loaded.more][right][name]
            assert [tokenizer.tokens[i] for i in tokens.ids] == question[f"{name}s"][right]["text"].split()
            assert tokens.regions == question[f"{name}s"][right]["regions"]
