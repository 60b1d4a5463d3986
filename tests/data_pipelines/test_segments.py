"""Segments of text beside the caption: what fills them, what the plan counts for them, and that they are pure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_shards import CLASSES, loads, make_data_set, make_sample, write_vocabulary

from data_pipelines.batches import MicroBatchLoader, collate
from data_pipelines.prepare import open_sources
from data_pipelines.shards.format import BadSampleError, Manifest, Sample, ShardError, write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.captions import CaptionTexts
from data_pipelines.sources.plan import Plan
from data_pipelines.sources.questions import QuestionTexts
from data_pipelines.sources.segments import TextMaterial, second_caption
from data_pipelines.sources.sides import Split
from data_pipelines.sources.source import Source
from vlp.text.wordpiece import WordPiece

MAX_TOKENS = {"caption": 20, "second_caption": 20, "tags": 3}


@pytest.fixture
def tokenizer(tmp_path: Path) -> WordPiece:
    return WordPiece(write_vocabulary(tmp_path / "vocabulary.txt"), lowercase=True)


def source(folder: Path, tokenizer: WordPiece, max_regions: int = 100) -> Source:
    return Source("made_up", folder, "train", tokenizer, loads(MAX_TOKENS, max_regions))


def loader(s: Source, seed: int = 7, pairs: int | None = 5, tokens: int | None = None) -> MicroBatchLoader:
    planned = s.planned(1, with_lengths=tokens is not None)
    return MicroBatchLoader(Plan([planned], seed, 2, pairs, tokens), [s])


def words(tokenizer: WordPiece, segment, text: int) -> str:
    return tokenizer.decode(segment.tokens[segment.offsets[text] : segment.offsets[text + 1]].tolist())


def test_a_batch_has_the_named_segments(tmp_path: Path, tokenizer: WordPiece) -> None:
    """The second caption is another one of the same image, the tags are its regions' classes, without background."""
    samples = [make_sample(n, captions=3) for n in range(12)]
    s = source(make_data_set(tmp_path / "d", samples), tokenizer, max_regions=3)
    load = loader(s)
    seen = 0
    for step in range(6):
        batch = load(step, 0)
        assert list(batch.texts.segments) == list(MAX_TOKENS)
        for text, pair in enumerate(batch.texts.ids.tolist()):
            sample, chosen = samples[s.sample_of[pair]], int(s.item_of[pair])
            assert words(tokenizer, batch.texts.segments["caption"], text) == sample.captions[chosen]
            most = MAX_TOKENS["second_caption"]
            others = [" ".join(c.split()[:most]) for n, c in enumerate(sample.captions) if n != chosen]
            assert words(tokenizer, batch.texts.segments["second_caption"], text) in others
            classes = [CLASSES[n] for n in sample.regions.scores[:3].argmax(1) if n]
            assert words(tokenizer, batch.texts.segments["tags"], text) == " ".join(classes)
            seen += 1
    assert seen == 30


def test_the_second_caption_is_a_function_of_seed_and_place(tmp_path: Path, tokenizer: WordPiece) -> None:
    folder = make_data_set(tmp_path / "d", [make_sample(n, captions=5) for n in range(10)])

    def texts(seed: int) -> list[torch.Tensor]:
        load = loader(source(folder, tokenizer), seed)
        return [load(step, m).texts.segments["second_caption"].tokens for step in (4, 0, 2) for m in (1, 0)]

    assert all(torch.equal(a, b) for a, b in zip(texts(7), texts(7), strict=True))
    s = source(folder, tokenizer)
    drawn = {tuple(s.load(0, draw).segments["second_caption"].ids) for draw in range(100)}
    others = {tuple(t.ids) for t in tokenizer.encode(make_sample(0, captions=5).captions[1:])}
    assert drawn == others, "in the long run all other captions come, and never the pair's own"


def test_without_another_caption_the_segment_is_empty(tmp_path: Path, tokenizer: WordPiece) -> None:
    samples = [replace(make_sample(0), captions=["a red circle", " "]), make_sample(1, captions=1)]
    s = source(make_data_set(tmp_path / "d", samples), tokenizer)
    assert [s.load(pair).segments["second_caption"].ids for pair in (0, 2)] == [[], []]


def test_every_other_caption_is_drawn_equally_often() -> None:
    material = TextMaterial(["a", "b", "c", "d"], 1, [], [], 0)
    drawn = [second_caption(replace(material, draw=draw)) for draw in range(3000)]
    counts = np.array([drawn.count(c) for c in "abcd"])
    assert counts[1] == 0
    bound = 4.5 * (3000 * (1 / 3) * (2 / 3)) ** 0.5
    assert (abs(counts[[0, 2, 3]] - 1000) < bound).all()


def with_questions(number: int, captions: int = 1) -> Sample:
    sample = make_sample(number, captions)
    rng = np.random.default_rng(number)
    count = number % 3
    questions = [f"a {rng.choice(['red', 'blue'])} circle" for _ in range(count)]
    answers = [str(rng.choice(["yes", "no", "perhaps"])) for _ in range(count)]
    return replace(sample, facts={"questions": questions, "answers": answers, "foils": []})


def asking(folder: Path, tokenizer: WordPiece, **more: int) -> Source:
    return Source("made_up", folder, "train", tokenizer, loads({"caption": 20, "question": 20, **more}, 100))


def make_questions(folder: Path, samples: list[Sample]) -> Path:
    count = write_split(folder, "train", samples)
    write_manifest(folder, Manifest("q", 16, CLASSES, "", "CC0", {"train": count}, answer_names=["no", "yes"]))
    return folder


def test_a_pair_has_a_caption_or_a_question_with_its_answer(tmp_path: Path, tokenizer: WordPiece) -> None:
    samples = [with_questions(n, captions=n % 4) for n in range(1, 12)]
    s = asking(make_questions(tmp_path / "d", samples), tokenizer, second_caption=20, foil=20)
    expected = []
    for sample in samples:
        expected += [(caption, "", -1) for caption in sample.captions]
        numbers = {"no": 0, "yes": 1, "perhaps": -1}
        expected += [
            ("", question, numbers[answer])
            for question, answer in zip(sample.facts["questions"], sample.facts["answers"], strict=True)
        ]
    batch = collate([s.load(pair) for pair in range(len(s))], "made_up", 0, 0, [])
    segments = batch.texts.segments
    found = [
        (words(tokenizer, segments["caption"], n), words(tokenizer, segments["question"], n), int(batch.answers[n]))
        for n in range(len(s))
    ]
    assert found == expected
    assert len({answer for _, _, answer in found}) == 3
    for n, (caption, _, _) in enumerate(found):
        if not caption:
            assert all(not words(tokenizer, segments[name], n) for name in ("second_caption", "foil"))
    lengths = s.planned(1, with_lengths=True).lengths
    for pair, planned in enumerate(lengths.tolist()):
        loaded = s.load(pair)
        cut = sum(min(len(tokens.ids), s.loads.segments[name]) for name, tokens in loaded.segments.items())
        assert planned >= cut + len(loaded.regions.boxes)


def test_without_the_segment_there_are_no_questions(tmp_path: Path, tokenizer: WordPiece) -> None:
    folder = make_questions(tmp_path / "d", [with_questions(n) for n in range(6)])
    s = Source("made_up", folder, "train", tokenizer, loads({"caption": 6}, 100))
    assert len(s) == 6
    assert collate([s.load(0)], "made_up", 0, 0, []).answers is None


def test_an_empty_question_is_a_bad_sample(tmp_path: Path, tokenizer: WordPiece) -> None:
    sample = replace(make_sample(0, 1), facts={"questions": [" ", "a"], "answers": ["yes"]})
    s = asking(make_questions(tmp_path / "d", [sample]), tokenizer)
    with pytest.raises(BadSampleError, match="question 0 is empty"):
        s.load(1)
    assert s.load(2).answer == -1, "a question whose answer is missing has none"


def test_a_source_of_questions_beside_one_of_captions(tmp_path: Path, tokenizer: WordPiece) -> None:
    one = make_questions(tmp_path / "one", [with_questions(2)])
    captions = make_data_set(tmp_path / "captions", [make_sample(3)])
    segments = {"caption": 6, "question": 6}
    (_, s), _ = open_sources(["c", "q"], [captions, one], ["train"] * 2, tokenizer, [loads(segments, 100)] * 2)
    assert [side.numbers for side in s.texts if isinstance(side, QuestionTexts)] == [{"no": 0, "yes": 1}]


def test_a_source_has_segments_of_its_own(tmp_path: Path, tokenizer: WordPiece) -> None:
    """Of the same samples one source gives the captions, the other the questions, which are cut."""
    folder = make_questions(tmp_path / "one", [with_questions(2)])
    wanted = [{"caption": 6}, {"question": 2}]
    (captions, questions), _ = open_sources(
        ["c", "q"], [folder] * 2, ["train"] * 2, tokenizer, [loads(own, 100) for own in wanted]
    )
    facts = captions.reader.facts(0)
    for s, segment, texts in ((captions, "caption", facts["captions"]), (questions, "question", facts["questions"])):
        batch = collate([s.load(pair) for pair in range(len(s))], s.name, 0, 0, [])
        assert list(batch.texts.segments) == [segment]
        assert len(s) == len(texts)
        cut = [" ".join(text.split()[: s.loads.segments[segment]]) for text in texts]
        assert [words(tokenizer, batch.texts.segments[segment], row) for row in range(len(s))] == cut
    assert max(len(text.split()) for text in facts["questions"]) > 2, "nothing was cut"


def referring(number: int) -> Sample:
    facts = {"caption_regions": [[-1, 2, 2, 2], [0]], "foil_regions": [[-1, 1, -1], [3]]}
    facts["foils"] = ["a circle, blue", "redder"]
    return replace(make_sample(number, regions=4), captions=["a red, circle of!", "of"], facts=facts)


def test_tokens_refer_to_regions_if_asked(tmp_path: Path, tokenizer: WordPiece) -> None:
    """All pieces of a word as the word does, punctuation to nothing; a second caption and a foil as their own facts."""
    folder = make_data_set(tmp_path / "d", [referring(0)])
    vocabulary = tmp_path / "with_punctuation.txt"
    vocabulary.write_text(tokenizer.path.read_text() + ",\n!\n")
    tokenizer = WordPiece(vocabulary, lowercase=True)
    segments = {"caption": 9, "second_caption": 9, "foil": 9, "tags": 9}
    s = Source("made_up", folder, "train", tokenizer, loads(segments, 100, token_region=True))
    bare = Source("made_up", folder, "train", tokenizer, loads(segments, 100))
    batch, without = (collate([one.load(0), one.load(1)], "made_up", 0, 0, []) for one in (s, bare))
    expected = {
        "caption": [-1, 2, -1, 2, 2, -1, 0],
        "second_caption": [0, -1, 2, -1, 2, 2, -1],
        "foil": [-1, 1, -1, -1, 3],
    }
    for name, segment in batch.texts.segments.items():
        assert without.texts.segments[name].token_region is None
        for part in ("tokens", "offsets", "word_starts"):
            assert torch.equal(getattr(segment, part), getattr(without.texts.segments[name], part))
        wanted = expected.get(name, [-1] * len(segment.tokens))
        assert segment.token_region.tolist() == wanted, name


def test_regions_of_words_that_do_not_fit(tmp_path: Path, tokenizer: WordPiece) -> None:
    def load(**facts: object) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        sample = referring(0)
        make_data_set(folder, [replace(sample, facts={**sample.facts, **facts})])
        Source("made_up", folder, "train", tokenizer, loads({"caption": 9}, 100, token_region=True)).load(0)

    load()
    for broken in ([1, 2], [1, 2, 3, -2], [1, 2, 3, 1.5], 3, "abcd"):
        with pytest.raises(BadSampleError, match="regions of words"):
            load(caption_regions=[broken, [0]])
    for count in (1, 3):  # of two captions
        with pytest.raises(BadSampleError, match="regions of words"):
            load(caption_regions=[[-1, 2, 2, 2], [0], [0]][:count])
    folder = make_data_set(tmp_path / "bare", [make_sample(0)])
    with pytest.raises(ShardError, match="no fact caption_regions"):
        Source("made_up", folder, "train", tokenizer, loads({"caption": 9}, 100, token_region=True))


def without_scores(number: int, names: list[str]) -> Sample:
    sample = make_sample(number, regions=len(names))
    return replace(sample, regions=replace(sample.regions, scores=None), facts={"region_names": names})


def without_classes(folder: Path, samples: list[Sample]) -> Path:
    count = write_split(folder, "train", samples)
    write_manifest(folder, Manifest("made_up", 16, [], "random numbers", "CC0", {"train": count}))
    return folder


def test_tags_of_regions_without_scores_are_their_names(tmp_path: Path, tokenizer: WordPiece) -> None:
    samples = [without_scores(0, ["whole image", "red square", "circle"]), make_sample(1, regions=1)]
    samples[1] = replace(samples[1], regions=replace(samples[1].regions, scores=None))
    s = source(without_classes(tmp_path / "d", samples), tokenizer)
    assert tokenizer.decode(s.load(0).segments["tags"].ids) == "red square circle"
    assert s.load(2).segments["tags"].ids == [], "a sample without names has no tags"


def test_segments_that_cannot_be_filled_are_refused(tmp_path: Path, tokenizer: WordPiece) -> None:
    sample = make_sample(0)
    nameless = replace(sample, regions=replace(sample.regions, scores=None))
    folder = without_classes(tmp_path / "d", [nameless])
    with pytest.raises(ShardError, match="segment tags needs names of regions"):
        source(folder, tokenizer)
    with pytest.raises(
        ShardError, match=r"can't fill the segment 'title'.*caption, foil, question, second_caption, tags, answer"
    ):
        Source("made_up", folder, "train", tokenizer, loads({"caption": 5, "title": 5}, 100))


@pytest.mark.parametrize("scores", [True, False])
def test_lengths_count_the_longest_choice(tmp_path: Path, tokenizer: WordPiece, scores: bool) -> None:
    """The longest other caption, and a word a region (all classes are one word) or the words of the regions' names."""
    names = [["red circle", "square"], ["whole image"], ["circle"] * 5]
    if scores:
        samples = [make_sample(n, captions=3) for n in range(8)]
        folder = make_data_set(tmp_path / "d", samples)
        most_tags = [min(len(sample.regions.boxes), 3) for sample in samples]
    else:
        samples = [without_scores(n, names[n % 3]) for n in range(8)]
        folder = without_classes(tmp_path / "d", samples)
        most_tags = [(3, 2, 3)[n % 3] for n in range(8)]
    expected = []
    for sample, of_tags in zip(samples, most_tags, strict=True):
        counts = [len(c.split()) for c in sample.captions]
        for n, count in enumerate(counts):
            others = max(counts[:n] + counts[n + 1 :])
            expected.append(count + others + of_tags + min(len(sample.regions.boxes), 3))
    for _ in range(2):  # the second time from the kept file
        s = source(folder, tokenizer, max_regions=3)
        assert s.planned(1, with_lengths=True).lengths.tolist() == expected
    assert len(list(folder.glob("train-tokens-*.npz"))) == 1


def test_a_token_budget_holds_for_all_segments(tmp_path: Path, tokenizer: WordPiece) -> None:
    s = source(make_data_set(tmp_path / "d", [make_sample(n, captions=3) for n in range(30)]), tokenizer)
    load = loader(s, pairs=None, tokens=64)
    for step in range(10):
        batch = load(step, 0)
        rows = batch.images.offsets.diff()[batch.pairs[:, 1]]
        for name, segment in batch.texts.segments.items():
            rows = rows + segment.offsets.diff().clamp(max=MAX_TOKENS[name])
        assert int(rows.max()) * len(rows) <= 64


def test_most_tokens_by_hand(tmp_path: Path, tokenizer: WordPiece) -> None:
    """A foil takes the caption's place; any other caption may be drawn; tags stand beside questions too."""
    facts = {
        "captions": ["a " * n for n in (4, 9, 2)],
        "foils": ["a " * n for n in (6, 9)],
        "questions": ["a " * n for n in (3, 7)],
        "region_names": ["red"] * 5,
    }
    folder = make_data_set(tmp_path / "d", [replace(without_scores(0, ["red"]), facts=facts)])
    segments = {"caption": 20, "second_caption": 20, "tags": 20, "foil": 20, "question": 20}
    split = Split("made_up", ShardReader(folder, "train"), tokenizer, loads(segments))
    captions, questions = (side(split).lengths(0, facts).tolist() for side in (CaptionTexts, QuestionTexts))
    assert captions == [[4, 9, 2], [9, 4, 9], [5, 5, 5], [2, 0, 0], [0, 0, 0]]
    assert questions == [[0, 0], [0, 0], [5, 5], [0, 0], [3, 7]]
    alone = {**facts, "captions": facts["captions"][:1]}
    assert CaptionTexts(split).lengths(0, alone)[1].tolist() == [0], "there is no other caption"
