"""What is fuzzed: for each reader small files that are right, and how it reads them."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import made_up_published
import msgpack
import numpy as np
import pyarrow
import pyarrow.parquet
from made_up_coco import picture
from made_up_published import Detected, uniter_arrays, vilbert_map, vlbert_map, write_labels, write_vlp
from made_up_shards import make_data_set, make_sample
from made_up_tars import write_like_img2dataset, write_members
from mutations import damaged_bytes, damaged_tree
from safetensors.numpy import load, save

from data_pipelines.annotations import (
    conceptual_captions,
    easy_vqa,
    flickr30k_entities,
    gqa,
    guesswhat,
    karpathy,
    nlvr2,
    nocaps,
    refcoco,
    sbu,
    snli_ve,
    table,
    vcr,
    visual7w,
    visual_genome,
    visual_genome_qa,
    vqa_v2,
)
from data_pipelines.annotations.coco import CocoReader
from data_pipelines.annotations.nlvr1 import Nlvr1Reader
from data_pipelines.annotations.pictures import Annotations, read_samples
from data_pipelines.annotations.tars import find_tars, index_tars
from data_pipelines.features.published.check import checked
from data_pipelines.features.published.forms import FORMS, Files
from data_pipelines.features.published.join import Index, sizes_of
from data_pipelines.features.published.record import Entry, Record
from data_pipelines.features.published.uniter import uniter_value
from data_pipelines.features.published.vilbert import vilbert_value
from data_pipelines.shards.format import write_shard
from data_pipelines.shards.index import write_index
from data_pipelines.shards.reader import ShardReader
from vlp.config import load_config

ROOT = Path(__file__).parent.parent.parent
IMAGES = ("1.jpg", "2.jpg", "3.jpg")


@dataclass(frozen=True)
class Fuzzed:
    """A reader. `files`: right ones, by name, of which one is damaged: text of JSON as a tree, JSON lines as a list of
    trees (`.jsonl`), others as bytes. `read`: takes the folder that holds them. `make` lays other files there first.
    """

    files: dict[str, Any]
    read: Callable[[Path], object]
    make: Callable[[Path], object] = lambda folder: None

    def lay(self, folder: Path, rng: random.Random) -> str:
        """Write the files into an empty folder, one of them damaged; returns its name."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.make(folder)
        files = {**self.files, **{p.name: p.read_bytes() for p in _made(folder, self.files)}}
        chosen = rng.choice(sorted(files))
        for name, content in files.items():
            data = damaged(name, content, rng) if name == chosen else as_bytes(name, content)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return chosen


def _made(folder: Path, files: dict[str, Any]) -> list[Path]:
    """What `make` wrote that is to be damaged too, if the reader names no files of its own."""
    return [] if files else [path for path in sorted(folder.iterdir()) if path.is_file()]


def as_bytes(name: str, content: Any) -> bytes:
    """A file's bytes."""
    if isinstance(content, bytes):
        return content
    if name.endswith(".jsonl") and isinstance(content, list):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    return json.dumps(content).encode()


def damaged(name: str, content: Any, rng: random.Random) -> bytes:
    """A file's bytes, with something wrong; of a blob of arrays also values and types."""
    if isinstance(content, bytes) or rng.random() < 0.2:
        if name.endswith(".safetensors") and rng.random() < 0.7:
            return damaged_arrays(rng, as_bytes(name, content))
        if name == "manifest.json" and rng.random() < 0.7:
            return as_bytes(name, damaged_tree(rng, without_seal(json.loads(as_bytes(name, content)))))
        return damaged_bytes(rng, as_bytes(name, content))
    return as_bytes(name, damaged_tree(rng, content))


def without_seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest whose values are looked at, not its digest alone."""
    return {key: value for key, value in manifest.items() if key != "sha256"}


def damaged_arrays(rng: random.Random, data: bytes) -> bytes:
    """Region arrays with a type, shape or number that none has."""
    arrays = dict(load(data))
    name = rng.choice(sorted(arrays))
    act, array = rng.randrange(4), arrays[name]
    if act == 0:
        kind = rng.choice([np.int8, np.bool_, np.complex64, np.float64, np.uint16, np.int64])
        arrays[name] = array.astype(kind)
    elif act == 1:
        arrays[name] = rng.choice([array[:-1], array[:, :-1], array.ravel(), array[None], array[:0]]).copy()
    elif act == 2:
        arrays[name] = array.copy()
        arrays[name].ravel()[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, -np.inf, -1.0, 6e4, 0.5])
    else:
        del arrays[name]
    return save(arrays)


def benchmark(files: dict[str, Any], read: Callable[[Path], Annotations]) -> Fuzzed:
    """A reader of annotations, whose samples are then stored."""

    def samples(folder: Path) -> None:
        annotations = read(folder)
        write_shard(folder / "out.tar", read_samples(folder, annotations))
        json.dumps(annotations.left_out)

    return Fuzzed({**files}, samples, pictures)


def pictures(folder: Path) -> None:
    """The pictures that the annotations below speak of."""
    for seed, name in enumerate(IMAGES):
        (folder / name).write_bytes(PICTURES[seed])


PICTURES = [picture(seed) for seed in range(len(IMAGES))]
BOX, OTHER = [4.0, 5.0, 20.0, 10.0], [1, 2, 8, 9]
INSTANCES = {
    "licenses": [{"id": 1, "name": "CC BY 2.0", "url": "http://x"}],
    "images": [
        {"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 20, "license": 1, "coco_url": "u"} for n in (1, 2)
    ],
    "categories": [{"id": 3, "name": "car"}, {"id": 18, "name": "dog"}],
    "annotations": [
        {"id": 10 + n, "image_id": n, "category_id": 3, "bbox": BOX, "iscrowd": 0, "segmentation": []} for n in (1, 2)
    ],
}
CAPTIONS = {**INSTANCES, "annotations": [{"id": n, "image_id": n, "caption": f"picture {n}"} for n in (1, 2)]}
REFS = [
    {"ref_id": n, "image_id": n, "ann_id": 10 + n, "split": "train", "sentences": [{"sent_id": n, "sent": "a car"}]}
    for n in (1, 2)
]
VQA_QUESTIONS = {
    "data_subtype": "train2014",
    "questions": [{"question_id": 10 + n, "image_id": n, "question": "what is it?"} for n in (1, 2)],
}
VQA_ANSWERS = {
    "annotations": [
        {
            **{"question_id": 10 + n, "image_id": n, "question_type": "what", "answer_type": "other"},
            **{"multiple_choice_answer": "car", "answers": [{"answer": "car"}, {"answer": "dog"}]},
        }
        for n in (1, 2)
    ]
}
VCR_LINES = [
    {
        **{"annot_id": f"train-{n}", "img_id": "i-1", "img_fn": "1.jpg", "metadata_fn": "1.json", "answer_label": 1},
        **{"rationale_label": 0, "objects": ["person", "dog"], "question": ["Is", [0], "near", [0, 1], "?"]},
        **{"answer_choices": [["yes", [1]]] * 4, "rationale_choices": [["because", "."]] * 4},
    }
    for n in (1, 2)
]
VCR_METADATA = {"boxes": [[*OTHER, 0.9], [0, 0, 5, 5, 1]], "names": ["person", "dog"], "width": 40, "height": 20}
VG_REGIONS = [
    {
        "id": n,
        "regions": [{"region_id": 10 * n, "phrase": "a car", **dict(zip(("x", "y", "width", "height"), OTHER))}],  # noqa: B905
    }
    for n in (1, 2)
]
GQA_QUESTION = {
    **{"question": "is it?", "answer": "yes", "types": {"structural": "verify"}, "isBalanced": True},
    **{"groups": {"global": "x"}, "entailed": ["02"], "semantic": [{"operation": "exist", "argument": "?"}]},
}
GQA_OBJECTS = {
    key: {
        **{"name": "dog", "x": 1, "y": 2, "w": 8, "h": 9, "attributes": ["brown"]},
        "relations": [{"name": "near", "object": other}],
    }
    for key, other in ("ab", "ba")
}
V7W = {
    "images": [
        {
            **{"image_id": n, "filename": f"{n}.jpg", "split": "train"},
            "qa_pairs": [{"qa_id": 10 + n, "question": "which?", "answer": 1, "multiple_choices": [2, 3, 4]}],
        }
        for n in (1, 2)
    ],
    "boxes": [{"box_id": n, "name": "dog", "x": n, "y": 2, "width": 8, "height": 9} for n in range(1, 5)],
}
GAMES = [
    {
        **{"id": 10 + n, "status": "success", "object_id": 5, "qas": [{"question": "a dog?", "answer": "Yes"}]},
        "image": {"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 20},
        "objects": [{"id": key, "category": "dog", "bbox": [key, 2, 8.5, 9], "segment": [[1]]} for key in (5, 6)],
    }
    for n in (1, 2)
]
SHAPE = {"type": "circle", "color": "Yellow", "size": 20, "x_loc": 3, "y_loc": 5}
XML = b"""<annotation><size><width>40</width><height>20</height></size><object><name>7</name><bndbox><xmin>1</xmin>
<ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""
ENTITIES = {
    "train.txt": b"1\n",
    "Sentences/1.txt": b"[/EN#7/people A man] sees [/EN#0/other it] .\n",
    "Annotations/1.xml": XML,
}


def read_coco(folder: Path) -> None:
    reader = CocoReader(folder, folder / "captions.json", folder / "instances.json")
    write_shard(folder / "out.tar", reader)
    json.dumps(reader.left_out)


def read_nlvr1(folder: Path) -> None:
    write_shard(folder / "out.tar", Nlvr1Reader([folder / "train.jsonl"]))
    write_shard(folder / "made.tar", Nlvr1Reader([folder / "train.jsonl"], statements=1))


def make_shards(folder: Path) -> None:
    make_data_set(folder, [make_sample(number) for number in range(3)])


def read_shards(folder: Path) -> None:
    """All of a data set; a sample that is broken is one, as in a training."""
    reader = ShardReader(folder, "train")
    for number in range(min(len(reader), 5)):
        reader.sample(number)


def make_facts(folder: Path) -> None:
    """A data set whose one shard is still to be made."""
    make_shards(folder)
    (folder / "train.parquet").unlink()


def read_facts(folder: Path) -> None:
    """A shard whose members are damaged and indexed as they are."""
    damaged = {"sample-0000.json": (folder / "facts.json").read_bytes()}
    damaged["sample-0000.regions.safetensors"] = (folder / "regions.safetensors").read_bytes()
    write_members(folder / "train-00000.tar", list(damaged.items()))
    write_index(folder, "train")
    read_shards(folder)


def regions_blob() -> bytes:
    regions = make_sample(0).regions
    assert regions is not None
    assert regions.scores is not None
    return save({"boxes": regions.boxes, "features": regions.features, "scores": regions.scores})


def read_index(folder: Path) -> None:
    """An index that carries no digest, whose numbers are damaged in turn by the bytes of `numbers.bin`."""
    table = pyarrow.parquet.read_table(folder / "train.parquet")
    facts = {k: v for k, v in (table.schema.metadata or {}).items() if k != b"sha256"}
    rng = random.Random((folder / "numbers.bin").read_bytes())
    columns = table.to_pydict()
    name = rng.choice(sorted(columns))
    texts = name in ("key", "image_format")
    values: Iterable[Any] = [None, "", "x"] if texts else [None, -1, 0, 2**31 - 1, 7]
    if "offset" in name or "bytes" in name:
        values = [None, -1, 2**62, 2**40, 3]
    columns[name][rng.randrange(len(columns[name]))] = rng.choice(list(values))
    if rng.random() < 0.3:
        facts[b"shards"] = json.dumps(damaged_tree(rng, json.loads(facts[b"shards"]))).encode()
    changed = pyarrow.table(columns, schema=table.schema).replace_schema_metadata(facts)
    pyarrow.parquet.write_table(changed, folder / "train.parquet")
    read_shards(folder)


def make_tars(folder: Path) -> None:
    write_like_img2dataset(folder, 0)
    (folder / "00000.parquet").unlink()
    (folder / "00000_stats.json").unlink()


def read_tars(folder: Path) -> None:
    index_tars(find_tars([str(folder)]), folder, "train", lambda: None)
    read_shards(folder)


def read_yaml_file(folder: Path) -> None:
    load_config(folder / "run.yaml", [])


FACTS = {"captions": ["a red circle"], "number": 1, "boxes": [[0, 0, 1, 1]], "box_names": ["x"], "questions": ["q"]}
URLS = ("http://x/1.jpg", "http://x/2.jpg")
SEEN = [replace(made_up_published.detected(number, 3), scores=np.eye(3, 5, 1, np.float32)) for number in (1, 2)]


def check_record(record: Record) -> None:
    """What comes out of a reader, as if of a first image."""
    sizes = sizes_of(record, None, None, False, False)
    checked(Entry("1", "here", None), record, record.size or (640, 480), sizes)


def published(form: str, names: list[str], **others: str) -> Callable[[Path], None]:
    """A reader of published features. others: files that belong to them."""

    def read(folder: Path) -> None:
        reader = FORMS[form].open(
            Files([folder / name for name in names], **{k: folder / v for k, v in others.items()})
        )
        for entry in Index(reader).fill().entries.values():
            check_record(reader.read(entry))

    return read


def file_of(write: Callable[..., Any], name: str) -> bytes:
    """What a writer of files writes."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name, SEEN)
        return (Path(folder) / name).read_bytes()


def npz_of(arrays: dict[str, np.ndarray]) -> bytes:
    """An `.npz`, not compressed, so that damage reaches the arrays."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def read_values(folder: Path) -> None:
    """Values of LMDBs, out of files of their own: a damaged database could end the process."""
    for path in sorted(folder.glob("*.pickle")):
        check_record(vilbert_value(path.name, path.read_bytes()))
    for path in sorted(folder.glob("*.msgpack")):
        check_record(uniter_value(path.name, path.read_bytes()))


def msgpack_of(d: Detected) -> bytes:
    """A value of UNITER's LMDB."""
    packed: bytes = msgpack.dumps({k: made_up_published.packed(v) for k, v in uniter_arrays(d).items()})
    return packed


def make_vlp(folder: Path) -> None:
    """VLP's HDF5 of one image."""
    for path in write_vlp(folder / "h5", SEEN[:1])[0].parent.iterdir():
        path.rename(folder / path.name)
    (folder / "h5").rmdir()


PUBLISHED = {
    "published_bottom_up": Fuzzed(
        {"t.tsv": file_of(made_up_published.write_bottom_up, "t.tsv")}, published("bottom_up", ["t.tsv"])
    ),
    "published_uniter": Fuzzed(
        {f"{n}.npz": npz_of(uniter_arrays(d)) for n, d in enumerate(SEEN)}, published("uniter", ["0.npz", "1.npz"])
    ),
    "published_oscar": Fuzzed(
        {
            "t.tsv": file_of(made_up_published.write_oscar, "t.tsv"),
            "labels.tsv": file_of(write_labels, "labels.tsv"),
        },
        published("oscar", ["t.tsv"], labels="labels.tsv"),
    ),
    "published_values": Fuzzed(
        {
            "a.pickle": pickle.dumps(vilbert_map(SEEN[0], False)),
            "b.pickle": pickle.dumps(vilbert_map(SEEN[1], True), 2),
            "c.msgpack": msgpack_of(SEEN[0]),
        },
        read_values,
    ),
    "published_vlbert": Fuzzed(
        {f"{n}.json": vlbert_map(d) for n, d in enumerate(SEEN)}, published("vlbert", ["0.json", "1.json"])
    ),
    "published_arrays": Fuzzed(
        {
            f"{n}.npz": npz_of({"x": d.features, "bbox": d.boxes, "image_w": np.array(640), "image_h": np.array(480)})
            for n, d in enumerate(SEEN)
        },
        published("arrays", ["0.npz", "1.npz"]),
    ),
    "published_hdf5": Fuzzed({}, published("vlp", ["vg_feat001.h5"], boxes="vg_bbox.h5"), make_vlp),
}
READERS: dict[str, Fuzzed] = {
    "coco": Fuzzed({"captions.json": CAPTIONS, "instances.json": INSTANCES}, read_coco, pictures),
    "refcoco": benchmark(
        {"refs.json": REFS, "instances.json": INSTANCES},
        lambda f: refcoco.read_refcoco("refcoco", f / "refs.json", f / "instances.json", ["train"]),
    ),
    "karpathy": benchmark(
        {
            "d.json": {
                "dataset": "coco",
                "images": [
                    {
                        **{"filename": f"{n}.jpg", "split": "train", "cocoid": n, "filepath": "."},
                        "sentences": [{"raw": "a car", "sentid": n}],
                    }
                    for n in (1, 2)
                ],
            }
        },
        lambda f: karpathy.read_karpathy(f / "d.json", ["train"]),
    ),
    "vqa_v2": benchmark(
        {"q.json": VQA_QUESTIONS, "a.json": VQA_ANSWERS},
        lambda f: vqa_v2.read_vqa_v2([f / "q.json"], [f / "a.json"], [f / "a.json"], 1),
    ),
    "gqa": benchmark(
        {
            "q.json": {f"0{n}": {**GQA_QUESTION, "imageId": str(n)} for n in (1, 2)},
            "c.json": {f"0{n}": {"valid": ["yes", "no"], "plausible": ["yes"]} for n in (1, 2)},
            "g.json": {str(n): {"width": 40, "height": 20, "objects": GQA_OBJECTS} for n in (1, 2)},
        },
        lambda f: gqa.read_gqa([f / "q.json"], [f / "q.json"], True, f / "c.json", [f / "g.json"]),
    ),
    "easy_vqa": benchmark(
        {"q.json": [["what?", "car", 1], ["who?", "dog", 2]], "answers.txt": b"car\ndog\n"},
        lambda f: easy_vqa.read_easy_vqa(f / "q.json", f / "answers.txt"),
    ),
    "nlvr1": Fuzzed(
        {
            "train.jsonl": [
                {"identifier": f"{n}-0", "sentence": "one", "label": "true", "structured_rep": [[SHAPE], [], []]}
                for n in (1, 2)
            ]
        },
        read_nlvr1,
    ),
    "nlvr2": benchmark(
        {
            "train.jsonl": [
                {"identifier": f"train-{n}-0-0", "sentence": "one", "label": "True", "directory": 1} for n in (1, 2)
            ]
        },
        lambda f: nlvr2.read_nlvr2(f / "train.jsonl"),
    ),
    "snli_ve": benchmark(
        {
            "h.jsonl": [
                {"Flickr30K_ID": str(n), "pairID": f"{n}", "sentence2": "so", "gold_label": "neutral"} for n in (1, 2)
            ]
        },
        lambda f: snli_ve.read_snli_ve(f / "h.jsonl"),
    ),
    "vcr": benchmark({"train.jsonl": VCR_LINES, "1.json": VCR_METADATA}, lambda f: vcr.read_vcr(f / "train.jsonl", f)),
    "visual_genome": benchmark(
        {
            "regions.json": VG_REGIONS,
            "data.json": [{"image_id": n, "width": 40, "height": 20, "url": "u", "coco_id": 3} for n in (1, 2)],
        },
        lambda f: visual_genome.read_visual_genome(f / "regions.json", f / "data.json"),
    ),
    "visual7w": benchmark({"v.json": V7W}, lambda f: visual7w.read_visual7w(f / "v.json", f, ["train"])),
    "visual_genome_qa": benchmark(
        {"qa.json": [{"id": n, "qas": [{"qa_id": n, "question": "what?", "answer": "A dog."}]} for n in (1, 2)]},
        lambda f: visual_genome_qa.read_visual_genome_qa(f / "qa.json", "train", held_out=1),
    ),
    "guesswhat": benchmark({"g.jsonl": GAMES}, lambda f: guesswhat.read_guesswhat(f / "g.jsonl")),
    "nocaps": benchmark(
        {
            "n.json": {
                "images": [{"id": n, "file_name": f"{n}.jpg", "domain": "in-domain"} for n in (1, 2)],
                "annotations": [{"image_id": n, "caption": "a car"} for n in (1, 2)],
            }
        },
        lambda f: nocaps.read_nocaps(f / "n.json"),
    ),
    "flickr30k_entities": benchmark(ENTITIES, lambda f: flickr30k_entities.read_flickr30k_entities(f, ["train"])),
    "conceptual_captions": benchmark(
        {"c.tsv": "".join(f"a car\t{url}\n" for url in URLS).encode()},
        lambda f: conceptual_captions.read_conceptual_captions(f / "c.tsv", f, "url"),
    ),
    "sbu": benchmark(
        {"s.json": {"captions": ["a car", "a dog"], "image_urls": list(URLS)}},
        lambda f: sbu.read_sbu(f / "s.json", None, f, "url"),
    ),
    "table": benchmark(
        {"t.csv": b'id,caption,question,answer,label\n1,"a, car",what?,car,x\n2.jpg,"a ""dog""",,,y\n'},
        lambda f: table.read_table(f / "t.csv", f, table.Columns(), ["train"]),
    ),
    "table_of_objects": benchmark(
        {"t.jsonl": [{"id": n, "caption": ["a", "b"], "question": "q?", "answer": "a", "split": "x"} for n in (1, 2)]},
        lambda f: table.read_table(f / "t.jsonl", f, table.Columns(), ["x"]),
    ),
    "shards": Fuzzed({}, read_shards, make_shards),
    "members": Fuzzed({"facts.json": FACTS, "regions.safetensors": regions_blob()}, read_facts, make_facts),
    "index": Fuzzed({"numbers.bin": b"0123456789abcdef"}, read_index, make_shards),
    "tars": Fuzzed({}, read_tars, make_tars),
    "configuration": Fuzzed({"run.yaml": (ROOT / "configs" / "uniter_small.yaml").read_bytes()}, read_yaml_file),
    **PUBLISHED,
}
