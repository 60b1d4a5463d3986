"""Plain text as a source beside captions: passages by hand, pairs without an image, batches of the mix's widths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_up_shards import CLASSES, FEATURES, loads, make_data_set, make_sample, write_vocabulary

from data_pipelines.annotations.build import build_split
from data_pipelines.annotations.files import AnnotationError
from data_pipelines.annotations.text import TextReader
from data_pipelines.batches import MicroBatchLoader
from data_pipelines.prepare import open_sources
from data_pipelines.shards.format import Manifest, Sample, ShardError, write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.plan import Plan
from data_pipelines.sources.source import Source
from vlp.interfaces import NONE
from vlp.text.wordpiece import WordPiece

TEXT = Manifest("text", 0, [], "", "")


@pytest.fixture
def tokenizer(tmp_path: Path) -> WordPiece:
    return WordPiece(write_vocabulary(tmp_path / "vocabulary.txt"), lowercase=True)


def text_file(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def books(folder: Path, text: str = "a red circle of\nthe blue square\n\nleft of the square\n") -> Path:
    reader = TextReader([text_file(folder.parent / f"{folder.name}.txt", text)], words=3)
    build_split(folder, "train", reader, TEXT, reader.left_out)
    return folder


def test_passages_by_hand(tmp_path: Path) -> None:
    """Lines of a document run on, documents and files do not; nothing but the line that can't be read is lost."""
    first = text_file(tmp_path / "a.txt", b"\xef\xbb\xbfone two\nthree four\n \n\nfive\n")
    second = text_file(tmp_path / "b.txt", b"six \xff\r\nseven eight nine ten eleven twelve\r\nthirteen")
    reader = TextReader([first, second], words=3)
    assert [(s.key, s.captions, s.facts["file"], s.facts["line"]) for s in reader] == [
        ("text-000000000", ["one two three"], "a.txt", 1),
        ("text-000000001", ["four"], "a.txt", 2),
        ("text-000000002", ["five"], "a.txt", 5),
        ("text-000000003", ["seven eight nine"], "b.txt", 2),
        ("text-000000004", ["ten eleven twelve"], "b.txt", 2),
        ("text-000000005", ["thirteen"], "b.txt", 3),
    ]
    assert reader.left_out == [("b.txt:1", "line is not UTF-8")]
    with pytest.raises(AnnotationError, match=r"there is no file .*c\.txt"):
        TextReader([first, tmp_path / "c.txt"], words=3)


def test_texts_have_no_image_and_batches_the_widths_of_the_mix(tmp_path: Path, tokenizer: WordPiece) -> None:
    text, scenes = books(tmp_path / "books"), make_data_set(tmp_path / "d", [make_sample(n) for n in range(4)])
    caps = {"caption": 60, "second_caption": 60, "tags": 60}
    for order in ([0, 1], [1, 0]):
        folders = [[text, scenes][n] for n in order]
        sources, manifest = open_sources(["one", "other"], folders, ["train"] * 2, tokenizer, [loads(caps, 100)] * 2)
        assert (manifest.feature_size, manifest.class_names) == (FEATURES, CLASSES)
        assert [s.text_only for s in sources] == [folder == text for folder in folders]
        for tokens in (None, 64):
            planned = [s.planned(1, with_lengths=tokens is not None) for s in sources]
            load = MicroBatchLoader(Plan(planned, 7, 1, None if tokens else 3, tokens), sources)
            batches = {load.plan.source_of(step)[0]: load(step, 0) for step in range(2)}
            alone, paired = batches[order.index(0)], batches[order.index(1)]
            assert (alone.pairs[:, 1] == NONE).all()
            assert alone.pairs[:, 0].tolist() == [*range(len(alone.pairs))]
            assert alone.images.features.shape == (0, FEATURES)
            assert alone.images.scores is not None
            assert alone.images.scores.shape == (0, len(CLASSES))
            assert alone.images.boxes.shape == (0, 4)
            assert alone.matched.all()
            assert not len(alone.texts.segments["second_caption"].tokens) + len(alone.texts.segments["tags"].tokens)
            assert (paired.pairs[:, 1] != NONE).all()
    only = sources[order.index(0)]
    assert [only.load(n).segments["caption"].ids for n in range(5)] == [
        tokenizer.encode([passage])[0].ids
        for passage in ("a red circle", "of the blue", "square", "left of the", "square")
    ]
    assert only.planned(1, with_lengths=True).lengths.tolist() == [3, 3, 1, 3, 1]


def test_text_without_false_captions_goes_with_a_model_that_takes_them(tmp_path: Path, tokenizer: WordPiece) -> None:
    source = Source("books", books(tmp_path / "books"), "train", tokenizer, loads({"caption": 60, "foil": 60}, 100))
    assert not source.load(0).segments["foil"].ids


def test_an_empty_passage_is_replaced(tmp_path: Path, tokenizer: WordPiece) -> None:
    samples = [Sample("x", ["a red circle"]), Sample("y", [" "])]
    folder = tmp_path / "d"
    write_manifest(folder, replace(TEXT, samples={"train": write_split(folder, "train", samples)}))
    loaded, failures = Source("books", folder, "train", tokenizer, loads({"caption": 60}, 100)).load_or_replace(1)
    assert loaded.sample == 0
    assert [str(failure) for failure in failures] == ["sample y: caption 0 is empty"]


def test_a_broken_sample_is_told_once(tmp_path: Path, tokenizer: WordPiece) -> None:
    """However often it, or another text of it, is drawn in its own place."""
    samples = [Sample("x", ["a red circle"]), Sample("y", [" "] * 6)]
    folder = tmp_path / "d"
    write_manifest(folder, replace(TEXT, samples={"train": write_split(folder, "train", samples)}))
    source = Source("books", folder, "train", tokenizer, loads({"caption": 60}, 100))
    drawn_again = 0
    for pair in range(1, 7):
        loaded, failures = source.load_or_replace(pair)
        assert loaded.sample == 0
        assert [failure.key for failure in failures] == ["y"]
        drawn_again += source.sample_of[source._replacement(pair, 0)] == 1
    assert drawn_again, "else nothing was tried"


def test_what_is_no_text_source(tmp_path: Path, tokenizer: WordPiece) -> None:
    """Text alone can't be trained on alone, and pictures that wait for their features are no text."""
    text = books(tmp_path / "books")
    with pytest.raises(ShardError, match="source 'books' is text alone; a mix needs a source with region features too"):
        open_sources(["books"], [text], ["train"], tokenizer, [loads({"caption": 60}, 100)])
    folder = tmp_path / "pictures"
    samples = [Sample("x", ["a red circle"], image=b"picture"), Sample("y", ["a blue square"])]
    write_manifest(folder, replace(TEXT, samples={"train": write_split(folder, "train", samples)}))
    with pytest.raises(ShardError, match="no sample with both captions and region features"):
        Source("pictures", folder, "train", tokenizer, loads({"caption": 60}, 100))


def test_other_texts_are_another_data_set(tmp_path: Path) -> None:
    """Their keys are numbers and their counts may be equal, so resuming could not tell them apart by these."""
    one = ShardReader(books(tmp_path / "one"), "train").fingerprint
    (tmp_path / "same").mkdir()
    same = ShardReader(books(tmp_path / "same" / "one"), "train").fingerprint
    other = ShardReader(books(tmp_path / "other", "a red circle of\nthe green square\n\nleft of the square\n"), "train")
    assert one == same != other.fingerprint
