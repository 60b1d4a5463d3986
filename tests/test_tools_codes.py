"""Codes of pictures made before training: made in parts, killed, read in the place of pictures, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import data_pipelines.codes
import vlp
from data_pipelines.batches import MicroBatchLoader
from data_pipelines.codes import SplitCodes
from data_pipelines.scenes.build import build_scenes
from data_pipelines.shards.format import BadSampleError, Sample, ShardError, read_manifest, write_manifest
from data_pipelines.shards.index import write_split
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.codes import RECORD, read_codes
from data_pipelines.sources.plan import Plan
from data_pipelines.sources.source import Source
from vlp.build import loads_of
from vlp.checkpoints.load import read_weights
from vlp.commands import data, evaluate, train
from vlp.commands.encode import coder_of
from vlp.interfaces import Images, Regions
from vlp.nn.pictures.patch_codebook import PatchCodebook

ROOT = Path(__file__).parent.parent
BROKEN, NONE = 7, 11  # samples: with what is no picture, and without one
STEPS = [
    "model.pixels={size: 32, resize: squash}",
    "data.workers=0",
    "trainer.max_steps=4",
    "trainer.accelerator=cpu",
    "validation={every: 2, micro_batches: 2, split: val}",
    "checkpoint={every: 2, keep: 9}",
]
DECODER = [
    "model.hidden_size=32",
    "model.layers=2",
    "model.patterns=[row, column]",
    "model.heads=2",
    "model.head_size=16",
    "model.mlp_size=32",
    "data.micro_batch=4",
]
# of each coder the configuration that makes it, and its block
CODERS = {
    "vq": ("vqvae_small", "{type: vq_vae, codes: 20, code_size: 8, width: 8, even: false, restart_below: 0.5%s}"),
    "dvae": ("dvae_small", "{type: discrete_vae, codes: 20, code_size: 8, width: 8, strides: [4, 2]%s}"),
    "patches": ("dalle_small", "{type: patch_codebook, codes: 24, patch: 8, calibration_pictures: 20%s}"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, one with a picture that can't be read, and one without a picture."""
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "whole", 60, 12, 0, lambda text: None, processes=1, objects=(1, 2))
    made = folder / "scenes_of_two"

    def changed(reader: ShardReader) -> Iterator[Sample]:
        for number in range(len(reader)):
            sample = reader.sample(number)
            image = {BROKEN: b"no picture", NONE: None}.get(number, sample.image)
            yield Sample(sample.key, sample.captions, sample.regions, image, sample.image_format, sample.facts)

    for split in ("train", "val"):
        write_split(made, split, changed(ShardReader(folder / "whole", split)))
    manifest = read_manifest(folder / "whole")
    manifest.samples = {"train": 60, "val": 12}
    write_manifest(made, manifest)
    shutil.copy(folder / "whole/vocabulary.txt", made)
    return folder


@pytest.fixture(scope="module")
def coders(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run for each coder; the data has their codes."""
    runs = tmp_path_factory.mktemp("runs")
    for name, (config, block) in CODERS.items():
        own = [] if config != "dalle_small" else DECODER
        places = [f"data.root={root}", f"run_dir={runs / name}", f"model.pictures={block % ''}"]
        if config != "dalle_small":
            places += ["data.sources.0.path=scenes_of_two", "data.sources.0.scenes=null", "data.micro_batch=4"]
        assert train.main([config, *STEPS, *own, *places]) == 0
        assert data.main(["encode", str(runs / name), str(root / "scenes_of_two")]) == 0
    return runs


def decoder(root: Path, coders: Path, run: Path, coder: str, *more: str) -> int:
    """Train a decoder of a coder's codes."""
    block = CODERS[coder][1] % f", weights: {coders / coder}"
    places = [f"data.root={root}", f"run_dir={run}", f"model.pictures={block}", "data.sources.0.scenes=null"]
    return train.main(["dalle_small", *STEPS, *DECODER, *places, *more])


def losses(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "loss" in k or k == "step"} for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    told = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in told
    return told


@pytest.mark.parametrize("coder", CODERS)
def test_codes_are_those_of_the_batch(root: Path, coders: Path, coder: str) -> None:
    """Also the pairs, what stands in for the broken ones, and what is told of these."""
    model = vlp.load(coders / coder)
    made = vlp.load(coders / "patches")  # which reads text
    loads, folder = loads_of(made.config), root / "scenes_of_two"
    by_pixels, by_codes = (Source("scenes", folder, "train", made.tokenizer, loads) for _ in range(2))
    by_codes.bring_codes(coder)
    assert by_pixels.codes is None
    loaders = [
        MicroBatchLoader(Plan([source.planned(1, False)], 0, 1, 5, None), [source]) for source in (by_pixels, by_codes)
    ]
    replaced = 0
    for step in range(60):
        seen, coded = (loader(step, 0) for loader in loaders)
        assert coded.images.pixels is None
        assert coded.images.codes is not None
        assert coded.images.codes.dtype == torch.int64
        assert torch.equal(coded.images.codes, model.model.pictures.encode(seen.images))
        assert torch.equal(coded.images.ids, seen.images.ids)
        assert torch.equal(coded.pairs, seen.pairs)
        assert torch.equal(coded.texts.segments["caption"].tokens, seen.texts.segments["caption"].tokens)
        assert coded.replaced == seen.replaced
        replaced += len(coded.replaced)
    assert replaced >= 3, "each caption of the broken sample comes once in an epoch"
    for source in (by_pixels, by_codes):
        assert NONE not in source.sample_of
        with pytest.raises(BadSampleError, match=by_pixels.reader.key(BROKEN)):
            source.load(int(np.flatnonzero(source.sample_of == BROKEN)[0]))


@pytest.mark.parametrize("coder", CODERS)
def test_what_is_written(root: Path, coders: Path, coder: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "scenes_of_two/codes" / coder
    before = files(folder)
    assert set(before) == {RECORD, *(f"{s}.{end}" for s in ("train", "val") for end in ("npy", "left_out.jsonl"))}
    codes = np.load(folder / "train.npy", mmap_mode="r")
    assert (codes.dtype, codes.shape) == (np.uint16, (60, 16))
    lines = [json.loads(line) for line in (folder / "train.left_out.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines] == [BROKEN, NONE]
    assert lines[0]["what"] == ShardReader(root / "scenes_of_two", "train").key(BROKEN)
    coded = np.delete(codes, [BROKEN, NONE], 0)
    assert len(np.unique(coded, axis=0)) > 20, "pictures are told apart"
    assert coded.max() < 24
    assert (codes[[BROKEN, NONE]] == 65_535).all(), "no code, so that none is trained on if the list is not looked at"
    assert data.main(["encode", str(coders / coder / "model.safetensors"), str(root / "scenes_of_two")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("already there") == 2
    assert "60 samples, 58 of them with 4 x 4 codes" in told
    assert f"{len(np.unique(coded))} of {CODERS[coder][1].split('codes: ')[1][:2]} codes are used" in told
    assert "without codes: 1 x no picture" in told
    assert files(folder) == before


@pytest.mark.parametrize("coder", ["vq", "patches"])
def test_training_with_codes_is_training_with_pictures(
    root: Path, coders: Path, coder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit; resumed too, and no picture is decoded, nor a coder made anew."""
    assert decoder(root, coders, tmp_path / "pictures", coder) == 0

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(ShardReader, "pixels", never)
        patched.setattr(PatchCodebook, "calibrate", never)
        named = f"data.sources.0.codes={coder}"
        assert decoder(root, coders, tmp_path / "codes", coder, named) == 0
        again = tmp_path / "again"
        shutil.copytree(tmp_path / "codes", again)
        for step in (3, 4):
            (again / f"checkpoints/step-{step:08d}.ckpt").unlink(missing_ok=True)
        assert train.main(["dalle_small", f"run_dir={again}", "--resume", "last"]) == 0
    rows = losses(tmp_path / "pictures")
    assert len(rows) == 4
    weights = read_weights(tmp_path / "pictures/model.safetensors")
    for run in (tmp_path / "codes", again):
        assert losses(run) == rows
        own = read_weights(run / "model.safetensors")
        assert all(torch.equal(own[name], value) for name, value in weights.items())
    of_coder = read_weights(coders / coder / "model.safetensors")
    pictures = [name for name in weights if name.startswith("model.pictures.")]
    assert pictures
    assert all(torch.equal(weights[name], of_coder[name]) for name in pictures)
    facts = json.loads((tmp_path / "codes/data.json").read_text())
    digest = read_codes(ShardReader(root / "scenes_of_two", "train"), coder).digest
    assert facts["fingerprints"]["scenes, codes"] == digest


def test_changed_codes_and_an_evaluation(
    root: Path, coders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on codes doesn't go on with others. What it draws is measured with pictures, whatever is there of codes."""
    own = tmp_path / "data"
    shutil.copytree(root / "scenes_of_two", own / "scenes_of_two")
    run, folder = tmp_path / "run", own / "scenes_of_two/codes"
    assert decoder(own, coders, run, "vq", "data.sources.0.codes=vq") == 0
    resume = ["dalle_small", f"run_dir={run}", "trainer.max_steps=5", "--resume", "last"]
    assert train.main([*resume, "data.sources.0.codes=dvae"]) == 1
    assert "the data is not what" in error_of(capsys)
    assert train.main([*resume, "data.sources.0.codes=null"]) == 1
    assert "the data is not what" in error_of(capsys)
    shutil.rmtree(folder)
    assert evaluate.main([str(run), "--most", "6", "--data", str(root / "whole")]) == 0, capsys.readouterr().err
    report = json.loads((run / "generation-val.json").read_text())
    assert report["true pictures"]["entities"] > 0.3 > report["other pictures"]["entities"], "they are seen, if small"
    assert data.main(["encode", str(coders / "vq"), str(own / "scenes_of_two")]) == 0
    assert train.main(resume) == 0, "the same codes, made anew"
    assert len(losses(run)) == 5


SLOWLY = """
import sys, time
import data_pipelines.codes as codes
from vlp.commands import data
make = codes.SplitCodes.make
def slowly(self, part, images, encode):
    def late(pictures):
        time.sleep(0.2)
        return encode(pictures)
    return make(self, part, images, late)
codes.SplitCodes.make, codes.PART = slowly, 4
sys.exit(data.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_killed_it_goes_on(
    root: Path, coders: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "scenes"
    shutil.copytree(root / "scenes_of_two", own, ignore=shutil.ignore_patterns("codes"))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "encode", str(coders / "vq"), str(own)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    began = time.monotonic()
    while len(list(own.glob("codes/vq/train.*.parts/*.npy"))) < 2 and time.monotonic() - began < 100:
        time.sleep(0.01)
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == {signal.SIGINT: 75}.get(number, -number), told
    assert "Traceback" not in told
    there = {path: path.stat().st_mtime_ns for path in own.glob("codes/vq/train.*.parts/*.npy")}
    assert 2 <= len(there) < 15
    with pytest.raises(ShardError, match="not made of split 'train'"):
        read_codes(ShardReader(own, "train"), "vq")
    made: list[int] = []
    make = SplitCodes.make

    def counted(self: SplitCodes, part: int, *more: object) -> int:
        made.append(part)
        assert {path: path.stat().st_mtime_ns for path in there} == there
        return make(self, part, *more)

    monkeypatch.setattr(data_pipelines.codes, "PART", 4)
    monkeypatch.setattr(SplitCodes, "make", counted)
    assert data.main(["encode", str(coders / "vq"), str(own), "--split", "train"]) == 0
    assert len(made) == 15 - len(there)
    monkeypatch.undo()
    assert data.main(["encode", str(coders / "vq"), str(own)]) == 0
    assert files(own / "codes/vq") == files(root / "scenes_of_two/codes/vq"), "also as made in one part"


def test_shares(
    root: Path, coders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that is made last joins all; before that there are no codes."""
    own = tmp_path / "scenes"
    shutil.copytree(root / "scenes_of_two", own, ignore=shutil.ignore_patterns("codes"))
    monkeypatch.setattr(data_pipelines.codes, "PART", 7)
    encode = ["encode", str(coders / "vq"), str(own), "--part"]
    for share, left in (("3/4", 7), ("1/4", 4), ("4/4", 2)):
        assert data.main([*encode, share]) == 0
        assert f"train: {left} of 9 parts are not there yet" in " ".join(capsys.readouterr().out.split())
        with pytest.raises(ShardError, match="not made of split 'train'"):
            read_codes(ShardReader(own, "train"), "vq")
    assert data.main([*encode, "2/4"]) == 0
    assert files(own / "codes/vq") == files(root / "scenes_of_two/codes/vq")
    assert data.main([*encode, "1/4"]) == 0
    assert "already there" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "shape", "bit", "list", "list bit", "gone", "record"])
def test_damaged_codes_are_refused_and_mended(
    root: Path, coders: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "scenes_of_two"
    shutil.copytree(root / "scenes_of_two", own)
    folder = own / "codes/vq"
    before = files(folder)
    array, listed = folder / "train.npy", folder / "train.left_out.jsonl"
    content = bytearray(array.read_bytes())
    match damage:
        case "cut":
            array.write_bytes(content[:-10])
        case "shape":
            np.save(array, np.load(array)[:, :-1])
        case "bit":
            content[-1] ^= 1
            array.write_bytes(content)
        case "list":
            listed.unlink()
        case "list bit":
            listed.write_bytes(listed.read_bytes().replace(b"7", b"8"))
        case "gone":
            array.unlink()
        case "record":
            (folder / RECORD).write_text((folder / RECORD).read_text().replace('"left_out": 2', '"left_out": 0'))
    assert decoder(tmp_path, coders, tmp_path / "run", "vq", "data.sources.0.codes=vq") == 1
    told = error_of(capsys)
    assert not (tmp_path / "run").exists()
    assert str(folder / RECORD if damage == "record" else array) in told
    assert "vlp data encode" in told
    if damage == "record":
        shutil.rmtree(folder)
    assert data.main(["encode", str(coders / "vq"), str(own)]) == 0
    assert files(folder) == before


def test_a_changed_data_set(root: Path, coders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other pictures of the same samples, too: the fingerprint doesn't see them."""
    own = tmp_path / "scenes_of_two"
    shutil.copytree(root / "scenes_of_two", own)
    reader = ShardReader(own, "train")
    samples = [reader.sample(number) for number in range(len(reader))]
    samples[0], samples[1] = (
        Sample(a.key, a.captions, a.regions, b.image, b.image_format, a.facts)
        for a, b in ((samples[0], samples[1]), (samples[1], samples[0]))
    )
    for path in own.glob("train*"):
        path.unlink()
    write_split(own, "train", samples)
    assert ShardReader(own, "train").fingerprint == reader.fingerprint
    assert decoder(tmp_path, coders, tmp_path / "run", "vq", "data.sources.0.codes=vq") == 1
    told = error_of(capsys)
    assert "the index of split 'train'" in told
    assert f"vlp data encode {coders / 'vq'} {own} --split train --name vq" in told
    assert data.main(["encode", str(coders / "vq"), str(own), "--split", "train", "--name", "vq"]) == 0
    old, new = (np.load(place / "scenes_of_two/codes/vq/train.npy") for place in (root, tmp_path))
    assert np.array_equal(new[[1, 0]], old[:2])
    assert np.array_equal(new[2:], old[2:])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sources.0.codes=dvae"], "were made by another coder than the model's, that of CODERS/dvae (other"),
        (["data.sources.0.codes=patches"], "(other weights; 24 codes, not 20)"),
        (["data.sources.0.codes=none"], "no codes 'none' of split 'train' of DATA (there are dvae, patches, vq)"),
        (
            ["data.sources.0.codes=vq", "model.pixels.size=64"],
            "a grid of (4, 4), not (8, 8); pictures of 32 pixels, not 64",
        ),
        (["data.sources.0.codes=vq", "model.pixels.resize=shortest"], "scaled by squash, not shortest"),
        (["data.sources.0.codes=vq", "model.pixels.random_crop=[0.5, 1]"], "leave model.pixels.random_crop out"),
        (
            ["data.sources.0.codes=patches", "model.pictures={type: patch_codebook, codes: 24, patch: 8}"],
            "data.sources.0.codes: the coder patch_codebook is made from pictures when a run begins",
        ),
    ],
)
def test_codes_of_others_are_refused(
    root: Path,
    coders: Path,
    tmp_path: Path,
    overrides: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert decoder(root, coders, tmp_path / "run", "vq", *overrides) == 1
    told = error_of(capsys)
    assert message.replace("CODERS", str(coders)).replace("DATA", str(root / "scenes_of_two")) in told
    assert not (tmp_path / "run").exists()


def test_a_split_without_codes(root: Path, coders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The held-out one."""
    own = tmp_path / "scenes_of_two"
    shutil.copytree(root / "scenes_of_two", own, ignore=shutil.ignore_patterns("codes"))
    assert data.main(["encode", str(coders / "vq"), str(own), "--split", "train", "--name", "mine"]) == 0
    assert decoder(tmp_path, coders, tmp_path / "run", "vq", "data.sources.0.codes=mine") == 1
    told = error_of(capsys)
    assert f"the codes 'mine' are not made of split 'val' of {own} (but of train)" in told
    assert f"make them with `vlp data encode {coders / 'vq'} {own} --split val --name mine`" in told


@pytest.mark.parametrize("config", ["uniter_small", "vqvae_small"])
def test_other_models_read_no_codes(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    own = ["data.sources.0.scenes=null", "data.sources.0.codes=vq", f"data.root={tmp_path / 'data'}"]
    if config == "uniter_small":
        build_scenes(tmp_path / "data/scenes", 6, 3, 0, lambda text: None, processes=1)
    assert train.main([config, *own, f"run_dir={tmp_path / 'run'}"]) == 1
    assert "reads no codes of pictures, a token_decoder does" in error_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CODERS", "DATA"], "there is no run in CODERS (no config.yaml)"),
        (["FUSION", "DATA"], "is the run of a single_stream, which codes no pictures; take one of a picture coder"),
        (["CODERS/vq/none.safetensors", "DATA"], "no weights file CODERS/vq/none.safetensors"),
        (["CODERS/vq", "CODERS"], "CODERS holds no data set"),
        (["CODERS/vq", "TEXT"], "TEXT holds no pictures to make codes of"),
        (["CODERS/vq", "DATA", "--split", "test"], "has no index of a split 'test'; splits there: train, val"),
        (["CODERS/dvae", "DATA", "--name", "vq"], "holds codes by another coder, that of CODERS/vq (other weights)"),
        (["CODERS/vq", "DATA", "--name", "a/b"], "'a/b' is not a name"),
        (["CODERS/vq", "DATA", "--part", "4/3"], "'4/3' is not a share as 3/8"),
        (["MANY", "DATA"], "has 20 codes, and files have room for 19"),
    ],
)
def test_what_encode_refuses(
    root: Path,
    coders: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = {"CODERS": coders, "DATA": root / "scenes_of_two", "TEXT": tmp_path / "text", "MANY": coders / "vq"}
    places["FUSION"] = tmp_path / "fusion"
    if "TEXT" in arguments:
        (tmp_path / "words.txt").write_text("one two three.\n")
        assert data.main(["text", "--files", str(tmp_path / "words.txt"), "--out", str(tmp_path / "text")]) == 0
    if "FUSION" in arguments:
        places["FUSION"].mkdir()
        shutil.copy(ROOT / "configs/uniter_small.yaml", places["FUSION"] / "config.yaml")
    if "MANY" in arguments:
        monkeypatch.setattr("vlp.commands.encode.MOST_CODES", 19)

    def placed(text: str) -> str:
        for name, path in places.items():
            text = text.replace(name, str(path))
        return text

    before = files(root / "scenes_of_two/codes/vq")
    assert data.main(["encode", *map(placed, arguments)]) == 1
    assert placed(message) in error_of(capsys)
    assert files(root / "scenes_of_two/codes/vq") == before


def test_a_coder_is_its_weights_and_its_pictures(coders: Path) -> None:
    """Whatever they are computed with."""
    pictures = vlp.load(coders / "vq").model.pictures
    own = coder_of(pictures)
    assert coder_of(pictures.double()) == own
    with torch.no_grad():
        pictures.codebook.vectors[0, 0] += 1
    assert coder_of(pictures) != own


def test_images_have_codes_where_all_have() -> None:
    rows = [torch.arange(4), torch.arange(4) + 1]
    assert torch.equal(Images.from_regions([Regions.from_codes(row) for row in rows], [0, 1]).codes, torch.stack(rows))
    mixed = [Regions.from_codes(rows[0]), Regions.from_pixels(torch.zeros(2, 2, 3, dtype=torch.uint8))]
    assert Images.from_regions(mixed, [0, 1]).codes is None
