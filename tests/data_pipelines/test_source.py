"""Sources, batches and the loader: bad samples are replaced without moving the others; processes share one plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_shards import loads, make_data_set, make_sample, write_vocabulary
from torch.utils.data import DataLoader

from data_pipelines.batches import MicroBatchLoader, collate
from data_pipelines.datamodule import MicroBatches, PlaceSampler
from data_pipelines.prepare import open_sources, validation_batches
from data_pipelines.shards.format import BadSampleError, ShardError, read_manifest, write_manifest
from data_pipelines.sources.plan import LENGTH_STEP, Plan
from data_pipelines.sources.source import Source
from vlp.interfaces import Batch
from vlp.text.wordpiece import WordPiece


@pytest.fixture
def tokenizer(tmp_path: Path) -> WordPiece:
    return WordPiece(write_vocabulary(tmp_path / "vocabulary.txt"), lowercase=True)


def source(folder: Path, tokenizer: WordPiece, name: str = "made_up", max_regions: int = 100) -> Source:
    return Source(name, folder, "train", tokenizer, loads({"caption": 60}, max_regions))


def loader(sources: list[Source], pairs: int | None, tokens: int | None, per_step: int = 2) -> MicroBatchLoader:
    planned = [s.planned(1, with_lengths=tokens is not None) for s in sources]
    return MicroBatchLoader(Plan(planned, 7, per_step, pairs, tokens), sources)


def equal(one: Batch, other: Batch) -> bool:
    a, b = one.texts.segments["caption"], other.texts.segments["caption"]
    return (
        torch.equal(a.tokens, b.tokens)
        and torch.equal(a.offsets, b.offsets)
        and torch.equal(one.pairs, other.pairs)
        and torch.equal(one.images.ids, other.images.ids)
        and torch.equal(one.images.features, other.images.features)
        and (one.step, one.micro_batch) == (other.step, other.micro_batch)
    )


def with_nan(number: int) -> object:
    sample = make_sample(number)
    features = sample.regions.features.copy()
    features[0, 0] = np.nan
    return replace(sample, regions=replace(sample.regions, features=features))


def test_images_that_are_only_asked_about_need_no_captions(tmp_path: Path, tokenizer: WordPiece) -> None:
    samples = [make_sample(0, captions=2), make_sample(1, captions=0), make_sample(2, regions=0), make_sample(3)]
    folder = make_data_set(tmp_path / "d", [replace(s, facts={"domain": "in-domain"}) for s in samples[:3]])
    asked = Source("made_up", folder, "train", tokenizer, loads({"caption": 60}), asking=True)
    found = [asked.ask(place, "images") for place in asked.asked("images")]
    assert [truth.captions for truth, _ in found] == [samples[0].captions, []]
    assert [truth.kind for truth, _ in found] == ["in-domain"] * 2
    assert [len(pair.segments["caption"].ids) > 0 for _, [pair] in found] == [True, False]
    assert len(source(folder, tokenizer).asked("images")) == 1
    bare = make_data_set(tmp_path / "bare", samples[1:2])
    assert len(Source("bare", bare, "train", tokenizer, loads({"caption": 60}), asking=True)) == 1
    with pytest.raises(ShardError, match="has no sample with both captions and region features"):
        source(bare, tokenizer)


def test_pairs_are_captions_of_samples_with_regions(tmp_path: Path, tokenizer: WordPiece) -> None:
    samples = [make_sample(0, captions=3), make_sample(1, captions=0), make_sample(2, regions=0), make_sample(3)]
    s = source(make_data_set(tmp_path / "d", samples), tokenizer)
    assert [(int(a), int(b)) for a, b in zip(s.sample_of, s.item_of, strict=True)] == [
        (0, 0), (0, 1), (0, 2), (3, 0), (3, 1)
    ]  # fmt: skip
    assert s.unusable_samples == 2
    assert s.load(1).segments["caption"].ids == tokenizer.encode([samples[0].captions[1]])[0].ids


def test_a_data_set_without_pairs_is_refused(tmp_path: Path, tokenizer: WordPiece) -> None:
    folder = make_data_set(tmp_path / "d", [make_sample(0, regions=0), make_sample(1, captions=0)])
    with pytest.raises(ShardError, match="no sample with both captions and region features"):
        source(folder, tokenizer)


def test_captions_share_their_image(tmp_path: Path, tokenizer: WordPiece) -> None:
    s = source(make_data_set(tmp_path / "d", [make_sample(n) for n in range(3)]), tokenizer)
    batch = collate([s.load(n) for n in (0, 4, 1, 5)], "made_up", 3, 1, [])
    assert batch.images.ids.tolist() == [0, 2]
    assert batch.pairs.tolist() == [[0, 0], [1, 1], [2, 0], [3, 1]]
    assert batch.images.features.dtype == torch.float32
    assert len(batch.images.features) == int(s.reader.region_counts[[0, 2]].sum())


def test_lengths_are_tokens_and_regions(tmp_path: Path, tokenizer: WordPiece) -> None:
    """Measured once, kept beside the index, cut as the model cuts."""
    samples = [make_sample(n) for n in range(8)]
    folder = make_data_set(tmp_path / "d", samples)
    expected = [
        min(len(caption.split()), 60) + min(len(sample.regions.boxes), 3)
        for sample in samples
        for caption in sample.captions
    ]
    for _ in range(2):  # the second time from the kept file
        lengths = source(folder, tokenizer, max_regions=3).planned(1, with_lengths=True).lengths
        assert lengths.tolist() == expected
    (kept,) = folder.glob("train-tokens-*.npz")
    stored = kept.read_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(stored), 100, replace=False).tolist():
        flipped = bytearray(stored)
        flipped[bit // 8] ^= 1 << bit % 8
        kept.write_bytes(flipped)
        lengths = source(folder, tokenizer, max_regions=3).planned(1, with_lengths=True).lengths
        assert lengths.tolist() == expected, f"bit {bit}: what is damaged is measured anew"


@pytest.mark.parametrize(("pairs", "tokens"), [(5, None), (None, 64)])
def test_bad_samples_do_not_move_the_others(
    tmp_path: Path, tokenizer: WordPiece, pairs: int | None, tokens: int | None
) -> None:
    clean = make_data_set(tmp_path / "clean", [make_sample(n) for n in range(30)])
    broken = make_data_set(tmp_path / "broken", [with_nan(n) if n in (4, 11) else make_sample(n) for n in range(30)])
    good, bad = (loader([source(folder, tokenizer)], pairs, tokens) for folder in (clean, broken))
    replaced = 0
    for step in range(12):
        for micro_batch in range(2):
            one, other = good(step, micro_batch), bad(step, micro_batch)
            again = loader([source(broken, tokenizer)], pairs, tokens)(step, micro_batch)
            assert equal(other, again), "the replacement must be the same each time"
            assert one.replaced == []
            _, planned = good.plan.pairs_of(step, micro_batch)
            damaged = np.isin(good.sources[0].sample_of[planned], [4, 11])
            assert one.texts.ids[~damaged].tolist() == other.texts.ids[~damaged].tolist()
            assert not np.isin(good.sources[0].sample_of[other.texts.ids], [4, 11]).any()
            keys = {"sample-0004", "sample-0011"}
            assert {r.key for r in other.replaced} <= keys
            assert all(r.reason == "features are not finite" and r.source == "made_up" for r in other.replaced)
            assert len(other.replaced) >= damaged.sum()
            replaced += len(other.replaced)
            if tokens is not None:
                rounded = -(-good.sources[0]._lengths // LENGTH_STEP)
                assert (rounded[other.texts.ids] <= rounded[one.texts.ids]).all(), "no longer than planned"
    assert replaced > 0


def test_a_data_set_of_broken_samples_is_fatal(tmp_path: Path, tokenizer: WordPiece) -> None:
    folder = make_data_set(tmp_path / "d", [with_nan(n) for n in range(10)])
    with pytest.raises(ShardError, match=r"20 samples of source 'made_up' in a row .*vlp inspect"):
        loader([source(folder, tokenizer)], 4, None)(0, 0)


def test_empty_captions_are_replaced(tmp_path: Path, tokenizer: WordPiece) -> None:
    samples = [replace(make_sample(n), captions=["a red circle", "  "]) for n in range(10)]
    batch = loader([source(make_data_set(tmp_path / "d", samples), tokenizer)], 20, None)(0, 0)
    assert {r.reason for r in batch.replaced} == {"caption 1 is empty"}
    assert (batch.texts.segments["caption"].offsets.diff() == 3).all()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_two_processes_share_one_plan_whatever_the_workers(tmp_path: Path, tokenizer: WordPiece, workers: int) -> None:
    """Resumed at step 3, two ranks together load what one process loads from the start."""
    folder = make_data_set(tmp_path / "d", [make_sample(n) for n in range(30)])
    load = loader([source(folder, tokenizer)], 5, None, per_step=4)
    data = MicroBatches(load)

    def batches(first_step: int, rank: int, world_size: int) -> list[Batch]:
        sampler = PlaceSampler(first_step, 6, 4, rank, world_size)
        assert len(sampler) == 6 * 4 // world_size
        return list(DataLoader(data, sampler=sampler, batch_size=None, num_workers=workers))

    one = {(b.step, b.micro_batch): b for b in batches(0, 0, 1)}
    assert len(one) == 24
    two = {(b.step, b.micro_batch): b for rank in (0, 1) for b in batches(3, rank, 2)}
    assert set(two) == {(step, m) for step in (3, 4, 5) for m in range(4)}
    assert all(equal(batch, one[place]) for place, batch in two.items())


def test_sources_of_different_features_are_not_mixed(tmp_path: Path, tokenizer: WordPiece) -> None:
    folder = make_data_set(tmp_path / "d", [make_sample(0)])
    other = make_data_set(tmp_path / "e", [make_sample(1)])
    write_manifest(other, replace(read_manifest(other), feature_size=8))
    with pytest.raises(ShardError, match="features of 16 and 8 numbers"):
        open_sources(["a", "b"], [folder, other], ["train", "train"], tokenizer, [loads({"caption": 60}, 100)] * 2)


def test_attributes_are_loaded_if_asked_for(tmp_path: Path, tokenizer: WordPiece) -> None:
    rng = np.random.default_rng(0)
    samples = [make_sample(n) for n in range(4)]
    scores = [rng.random((len(sample.regions.boxes), 3)).astype(np.float16) for sample in samples]
    folder = make_data_set(
        tmp_path / "d",
        [
            replace(sample, regions=replace(sample.regions, attribute_scores=own))
            for sample, own in zip(samples, scores, strict=True)
        ],
    )
    arguments = (["a"], [folder], ["train"], tokenizer)
    plain, with_attributes = ([loads({"caption": 60}, 2, attributes=more)] for more in (False, True))
    with pytest.raises(ShardError, match="names none"):
        open_sources(*arguments, with_attributes)
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, attribute_names=["red", "large", "dotted"]))
    (s,), manifest = open_sources(*arguments, plain)
    assert manifest.attribute_names == []
    assert collate([s.load(0)], "a", 0, 0, []).images.attributes is None
    (s,), manifest = open_sources(*arguments, with_attributes)
    assert manifest.attribute_names == ["red", "large", "dotted"]
    batch = collate([s.load(pair) for pair in (2, 0, 6)], "a", 0, 0, [])
    expected = np.concatenate([scores[n][:2] for n in (1, 0, 3)])
    assert batch.images.attributes.tolist() == expected.argmax(1).tolist()
    assert batch.images.attribute_confidence.tolist() == expected.max(1).tolist()


def test_a_sample_without_attributes_is_broken(tmp_path: Path, tokenizer: WordPiece) -> None:
    folder = make_data_set(tmp_path / "d", [make_sample(0)])
    write_manifest(folder, replace(read_manifest(folder), attribute_names=["red"]))
    (s,), _ = open_sources(["a"], [folder], ["train"], tokenizer, [loads({"caption": 60}, 100, attributes=True)])
    with pytest.raises(BadSampleError, match="regions without attributes"):
        s.load(0)


def test_validation_is_the_same_for_every_run(tmp_path: Path, tokenizer: WordPiece) -> None:
    folder = make_data_set(tmp_path / "d", [make_sample(n) for n in range(30)])
    one, other = (list(validation_batches([source(folder, tokenizer)], 5, None, 3)) for _ in range(2))
    assert len(one) == 3
    assert all(equal(a, b) for a, b in zip(one, other, strict=True))
