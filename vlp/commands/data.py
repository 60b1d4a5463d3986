"""Make a data set of shards: a table of your pictures, a benchmark's official files, plain text, scenes, or tars.

A data set appears whole or not at all, and nothing is overwritten. All but `scenes` make one split; run it again with
another --split and the same --out to add one. What could not be used is counted by reason and listed in
SPLIT.left_out.jsonl beside the shards. `vlp data SOURCE --help` shows a source's own options, and examples.

`webdataset` indexes tars in webdataset's layout (pictures with KEY.txt or KEY.json, as img2dataset writes them) where
they lie: no tar is copied or changed. Run again, it reads the tars alone that are new or have changed.

`encode` makes no data set: it adds the codes of a data set's pictures, by a coder that was trained. `caption` makes one
out of another: a run describes its images that have no captions, or few. `vocabulary` makes a file of the words that
data sets have.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

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
from data_pipelines.annotations.build import build_split
from data_pipelines.annotations.coco import CocoReader
from data_pipelines.annotations.files import AnnotationError, LeftOut
from data_pipelines.annotations.nlvr1 import PARTS, Nlvr1Reader
from data_pipelines.annotations.pictures import Annotations, read_samples
from data_pipelines.annotations.tars import find_tars, index_tars, says_retrieval
from data_pipelines.annotations.text import TextReader
from data_pipelines.annotations.web_pictures import NAMINGS
from data_pipelines.scenes.build import build_scenes
from data_pipelines.scenes.placing import OBJECTS
from data_pipelines.shards.facts import CaptionPlace
from data_pipelines.shards.format import Manifest, Sample, ShardError, read_manifest
from vlp.commands import caption, encode, vocabulary
from vlp.commands.command import GO_ON, STOPPED, examples_of, open_console, options_of, run_command, whole_number
from vlp.strict_yaml import ConfigError

MOST_REASONS = 20  # that are printed
MUCH = 0.05  # a greater share of what the files hold is not left out without a warning
# facts that are lists of what a sample holds, and what to call it
RECORDS = {name: name for name in ("captions", "questions", "expressions")} | {"vcr": "questions with four answers"}


@dataclass(frozen=True)
class Benchmark:
    """A source that is read from a benchmark's official files and a folder of pictures.

    `module`: of the reader; its docstring is the help. `example`: its options but --images and --out. `options`: of its
    own, as `argparse` takes them.
    """

    module: ModuleType
    example: str
    options: dict[str, dict[str, Any]]
    read: Callable[[argparse.Namespace], Annotations]


def a_file(text: str, required: bool = True, **others: Any) -> dict[str, Any]:
    """The settings of an option that names a file."""
    return {"type": Path, "required": required, "help": text, "metavar": "FILE", **others}


def some_files(text: str, **others: Any) -> dict[str, Any]:
    """The settings of an option that names one file or more."""
    return a_file(text, nargs="+", **others)


def vocabulary_files(options: argparse.Namespace, own: list[Path]) -> list[Path]:
    """The files whose answers a model is to choose from; none if the data set is there and keeps its own.

    Raises:
        AnnotationError: a new data set would take the answers of a split that is not for training.
    """
    if options.vocabulary:
        return options.vocabulary
    if (options.out / "manifest.json").is_file():
        return []
    if options.split != "train":
        raise AnnotationError(
            f"the answers to choose from are those of the training split, and {options.out} has none yet;"
            " make the split train first, or name its files with --vocabulary"
        )
    if not own:
        raise AnnotationError("a split to train on needs --annotations, which have the answers; or name --vocabulary")
    return own


def read_vqa(options: argparse.Namespace) -> Annotations:
    """VQA v2's files."""
    own = options.annotations or []
    return vqa_v2.read_vqa_v2(options.questions, own, vocabulary_files(options, own), options.at_least, options.naming)


def read_visual_genome_qa(options: argparse.Namespace) -> Annotations:
    """Visual Genome's questions, with answers of their own or of another data set."""
    answers = None if options.answers_of is None else read_manifest(options.answers_of).answer_names
    if answers == []:
        raise AnnotationError(f"--answers-of {options.answers_of}: this data set has no answers to choose from")
    return visual_genome_qa.read_visual_genome_qa(options.file, options.part, options.most_answers, answers)


def read_own_table(options: argparse.Namespace) -> Annotations:
    """A table of one's own; a new data set has the answers of its split to choose from."""
    columns = table.Columns(
        options.image_column,
        options.caption_columns,
        options.question_column,
        options.answer_columns,
        options.label_column,
        options.split_column,
        options.language_column,
    )
    new = not (options.out / "manifest.json").is_file()
    splits = options.take or [options.split]
    return table.read_table(
        options.file, options.images, columns, splits, options.part, options.at_least if new else None
    )


def a_column(text: str) -> dict[str, Any]:
    """The settings of an option that names a column."""
    return {"default": "", "metavar": "COLUMN", "help": text}


def some_columns(text: str) -> dict[str, Any]:
    """The settings of an option that names one column or more."""
    return {"default": [], "nargs": "+", "metavar": "COLUMN", "help": text}


TAKE = {"nargs": "+", "metavar": "SPLIT", "help": "splits of the file (default: the one of --split)"}
NAMING = {"choices": NAMINGS, "required": True, "help": "of the pictures, as above"}
VOCABULARY = {
    "nargs": "+",
    "type": Path,
    "metavar": "FILE",
    "help": "files whose (frequent) answers a model can choose from (default: those of the split train)",
}

NLVR2 = "--statements nlvr2/data/train.json --split train"
BENCHMARKS = {
    "conceptual_captions": Benchmark(
        conceptual_captions,
        "--captions Train_GCC-training.tsv --naming img2dataset --split train",
        {
            "--captions": a_file("Train_GCC-training.tsv or Validation_GCC-1.1.0-Validation.tsv"),
            "--naming": NAMING,
        },
        lambda options: conceptual_captions.read_conceptual_captions(options.captions, options.images, options.naming),
    ),
    "easy_vqa": Benchmark(
        easy_vqa,
        "--questions easy_vqa/data/train/questions.json --answers easy_vqa/data/answers.txt --part train",
        {
            "--questions": a_file("questions.json of train or test"),
            "--answers": a_file("answers.txt"),
            "--part": {"choices": easy_vqa.PARTS, "default": "all", "help": "of the pictures (default %(default)s)"},
        },
        lambda options: easy_vqa.read_easy_vqa(options.questions, options.answers, options.part),
    ),
    "flickr30k_entities": Benchmark(
        flickr30k_entities,
        "--entities flickr30k_entities --split train",
        {
            "--entities": {
                "type": Path,
                "required": True,
                "metavar": "DIR",
                "help": "folder of Sentences, Annotations and the lists of splits",
            },
            "--take": TAKE,
        },
        lambda options: flickr30k_entities.read_flickr30k_entities(options.entities, options.take or [options.split]),
    ),
    "gqa": Benchmark(
        gqa,
        "--questions train_balanced_questions.json --split train",
        {
            "--questions": some_files("train_balanced_questions.json or another of the questions' files"),
            "--vocabulary": VOCABULARY,
            "--unbalanced": {"action": "store_true", "help": "take those questions too that are not balanced"},
            "--choices": a_file("val_choices.json, for the metrics validity and plausibility", required=False),
            "--scene-graphs": some_files("train_sceneGraphs.json or val_sceneGraphs.json, for boxes", required=False),
        },
        lambda options: gqa.read_gqa(
            options.questions,
            vocabulary_files(options, options.questions),
            options.unbalanced,
            options.choices,
            options.scene_graphs or [],
        ),
    ),
    "guesswhat": Benchmark(
        guesswhat,
        "--games guesswhat.train.jsonl.gz --split train",
        {
            "--games": a_file("guesswhat.train.jsonl.gz, guesswhat.valid.jsonl.gz or guesswhat.test.jsonl.gz"),
            "--any-status": {"action": "store_true", "help": "take games too that did not end in success"},
        },
        lambda options: guesswhat.read_guesswhat(options.games, options.any_status),
    ),
    "karpathy": Benchmark(
        karpathy,
        "--file dataset_coco.json --split train --take train restval",
        {
            "--file": a_file("dataset_flickr30k.json or dataset_coco.json"),
            "--take": TAKE,
        },
        lambda options: karpathy.read_karpathy(options.file, options.take or [options.split]),
    ),
    "nlvr2": Benchmark(
        nlvr2,
        NLVR2,
        {"--statements": a_file("train.json, dev.json or test1.json (JSON lines)")},
        lambda options: nlvr2.read_nlvr2(options.statements),
    ),
    "nocaps": Benchmark(
        nocaps,
        "--captions nocaps_val_4500_captions.json --split val",
        {"--captions": a_file("nocaps_val_4500_captions.json, nocaps_{val,test}_image_info.json")},
        lambda options: nocaps.read_nocaps(options.captions),
    ),
    "refcoco": Benchmark(
        refcoco,
        "--name refcoco+ --refs refs_unc.json --instances refcoco+/instances.json --split testA",
        {
            "--name": {"choices": refcoco.NAMES, "required": True, "help": "of the data set"},
            "--refs": a_file("what `vlp convert-refcoco` made of refs(unc).p, refs(umd).p or refs(google).p"),
            "--instances": a_file("instances.json of the same folder"),
            "--take": TAKE,
        },
        lambda options: refcoco.read_refcoco(
            options.name, options.refs, options.instances, options.take or [options.split]
        ),
    ),
    "sbu": Benchmark(
        sbu,
        "--captions sbu-captions-all.json --naming img2dataset --split train",
        {
            "--captions": a_file("sbu-captions-all.json or SBU_captioned_photo_dataset_captions.txt"),
            "--urls": a_file("SBU_captioned_photo_dataset_urls.txt, beside captions as text", required=False),
            "--naming": NAMING,
        },
        lambda options: sbu.read_sbu(options.captions, options.urls, options.images, options.naming),
    ),
    "snli_ve": Benchmark(
        snli_ve,
        "--hypotheses snli_ve_train.jsonl --split train",
        {"--hypotheses": a_file("snli_ve_train.jsonl, snli_ve_dev.jsonl or snli_ve_test.jsonl")},
        lambda options: snli_ve.read_snli_ve(options.hypotheses),
    ),
    "table": Benchmark(
        table,
        "--file captions.csv --part train --split train",
        {
            "--file": a_file("the table: .csv, .tsv, .jsonl or .parquet"),
            "--image-column": a_column("names of the pictures (default for all columns: a guess, which is told)"),
            "--caption-columns": some_columns("captions"),
            "--question-column": a_column("questions"),
            "--answer-columns": some_columns("their answers"),
            "--label-column": a_column("classes of the pictures"),
            "--split-column": a_column("splits"),
            "--language-column": a_column("languages of the captions"),
            "--take": TAKE,
            "--part": {"choices": table.PARTS, "default": "all", "help": "of the pictures (%(default)s)"},
            "--at-least": {
                "type": whole_number,
                "default": 1,
                "help": "occurrences of an answer to choose from (%(default)s)",
            },
        },
        read_own_table,
    ),
    "vcr": Benchmark(
        vcr,
        "--questions vcr1annots/train.jsonl --split train",
        {"--questions": a_file("train.jsonl, val.jsonl or test.jsonl; --images is vcr1images, with its metadata")},
        lambda options: vcr.read_vcr(options.questions, options.images),
    ),
    "visual7w": Benchmark(
        visual7w,
        "--file dataset_v7w_pointing.json --split train",
        {"--file": a_file("dataset_v7w_pointing.json"), "--take": TAKE},
        lambda options: visual7w.read_visual7w(options.file, options.images, options.take or [options.split]),
    ),
    "visual_genome": Benchmark(
        visual_genome,
        "--regions region_descriptions.json --image-data image_data.json --split train",
        {
            "--regions": a_file("region_descriptions.json (1 GB; it takes 6 GB of memory)"),
            "--image-data": a_file("image_data.json"),
        },
        lambda options: visual_genome.read_visual_genome(options.regions, options.image_data),
    ),
    "visual_genome_qa": Benchmark(
        visual_genome_qa,
        "--file question_answers.json --part train --split train",
        {
            "--file": a_file("question_answers.json"),
            "--part": {"choices": visual_genome_qa.PARTS, "default": "all", "help": "of the questions (%(default)s)"},
            "--most-answers": {
                "type": whole_number,
                "default": visual_genome_qa.MOST_ANSWERS,
                "help": "a model can choose from, the most frequent (%(default)s)",
            },
            "--answers-of": {
                "type": Path,
                "metavar": "DIR",
                "help": "a data set whose answers it has instead",
            },
        },
        read_visual_genome_qa,
    ),
    "vqa_v2": Benchmark(
        vqa_v2,
        "--questions v2_OpenEnded_mscoco_train2014_questions.json \\\n"
        "    --annotations v2_mscoco_train2014_annotations.json \\\n"
        "    --vocabulary v2_mscoco_train2014_annotations.json v2_mscoco_val2014_annotations.json --split train",
        {
            "--questions": some_files("v2_OpenEnded_mscoco_*_questions.json"),
            "--annotations": some_files("v2_mscoco_*_annotations.json; none for test splits", required=False),
            "--vocabulary": VOCABULARY,
            "--at-least": {"type": whole_number, "default": 9, "help": "occurrences of such an answer (%(default)s)"},
            "--naming": {"metavar": "NAME", "help": "of pictures, with {id} or {id:012d} in it (default: COCO's)"},
        },
        read_vqa,
    ),
}


# the other sources, each with what it reads and how it is called
OTHERS = {
    "scenes": ("Rendered scenes with captions and region features, from a seed.", "--out data/scenes"),
    "coco": (
        "Pictures and annotations in COCO's layout.",
        "--images DIR --captions captions.json --instances instances.json --out data/coco",
    ),
    "text": (
        "Plain text without images, to train on beside captions.",
        "--files books.txt wikipedia.txt --out data/books",
    ),
    "nlvr1": (
        sys.modules[Nlvr1Reader.__module__].__doc__ or "",
        "--files train/train.json --out data/nlvr1 --split train",
    ),
    "webdataset": (
        "Tars of pictures and captions in webdataset's layout, as they lie.",
        "--tars 'data/cc3m/{00000..00331}.tar' --out data/cc3m",
    ),
}


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The source and its options."""
    parser = options_of(
        "data", __doc__, [f"data scenes {OTHERS['scenes'][1]}", f"data nlvr2 --images DIR --out data/nlvr2 {NLVR2}"]
    )
    sources = parser.add_subparsers(dest="command", required=True, metavar="SOURCE")
    added = {}
    for name, (text, example) in OTHERS.items():
        added[name] = _add(sources, name, text, example)
    for name, benchmark in BENCHMARKS.items():
        example = f"--images DIR --out data/{name} \\\n    {benchmark.example}"
        added[name] = _add(sources, name, benchmark.module.__doc__ or "", example)
        added[name].add_argument("--images", type=Path, required=True, help="folder of the pictures")
        for option, settings in benchmark.options.items():
            added[name].add_argument(option, **settings)
    added["coco"].add_argument("--images", type=Path, required=True, help="folder of the pictures")
    added["coco"].add_argument("--captions", type=Path, required=True, help="COCO's captions JSON")
    added["coco"].add_argument("--instances", type=Path, help="COCO's instances JSON of the same pictures, for boxes")
    added["text"].add_argument(
        "--files", type=Path, nargs="+", required=True, help="UTF-8; empty lines separate documents"
    )
    added["text"].add_argument("--words", type=whole_number, default=50, help="words of a passage")
    added["nlvr1"].add_argument("--files", type=Path, nargs="+", required=True, help="JSON lines, plain or .gz")
    added["nlvr1"].add_argument("--part", choices=PARTS, default="all", help="of the scenes")
    added["nlvr1"].add_argument(
        "--statements",
        type=whole_number,
        default=0,
        metavar="N",
        help="make about N sentences for each scene in the place of people's",
    )
    added["webdataset"].add_argument(
        "--tars", nargs="+", required=True, help="folders, files, or patterns as in 'cc3m/{00..31}.tar'"
    )
    added["webdataset"].add_argument(
        "--caption-key",
        nargs="+",
        metavar="KEY",
        help="keys of KEY.json that hold captions, texts or lists of texts, in place of KEY.txt",
    )
    added["webdataset"].add_argument(
        "--caption-lines",
        action="store_true",
        help="each line of KEY.txt is a caption (so without the option, where dataset_type.txt says retrieval)",
    )
    added["webdataset"].add_argument("--out", type=Path, help="folder of the index (default: the tars' own)")
    for command in (encode, caption, vocabulary):
        command.add_options(_add(sources, command.__name__.split(".")[-1], command.__doc__ or "", command.EXAMPLE))
    for name, source in added.items():
        if name == "scenes":
            source.add_argument("--out", type=Path, required=True, help="folder of the data set, not there yet")
            source.add_argument("--train", type=whole_number, default=20000, help="scenes for training")
            source.add_argument("--val", type=whole_number, default=1000, help="scenes of each held-out split")
            source.add_argument("--seed", type=int, default=0, help="that the scenes follow from")
            source.add_argument(
                "--objects", type=int, nargs=2, default=OBJECTS, metavar="N", help="fewest and most of a scene"
            )
            source.add_argument("--language", choices=["en", "zh"], default="en", help="of the captions")
            continue
        if name != "webdataset":
            source.add_argument(
                "--out", type=Path, required=True, help="folder of the data set, new or with other splits"
            )
        source.add_argument("--split", default="train", help="name of the split")
    return parser.parse_args(arguments)


def _add(sources: Any, name: str, text: str, example: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = sources.add_parser(
        name, help=text.splitlines()[0], description=text, epilog=examples_of([f"data {name} {example}"])
    )
    return added


def make_scenes(options: argparse.Namespace, console: Console) -> None:
    """The embedded scenes."""
    counts = (options.train, options.val, options.seed)
    build_scenes(
        options.out,
        *counts,
        lambda text: console.print(text),
        objects=tuple(options.objects),
        language=options.language,
    )
    console.print(f"written: {options.out} (splits train, val, unseen; vocabulary.txt)", soft_wrap=True)


def make_coco(options: argparse.Namespace, console: Console) -> None:
    """One split from COCO's files."""
    reader = CocoReader(options.images, options.captions, options.instances)
    counts: Counter[str] = Counter()
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as progress:
        task = progress.add_task("pictures", total=len(reader))

        def counted() -> Iterator[Sample]:
            for sample in reader:
                progress.advance(task)
                counts["captioned"] += bool(sample.captions)
                counts["captions"] += len(sample.captions)
                counts["boxes"] += len(sample.facts.get("boxes", []))
                yield sample

        manifest = Manifest("coco", 0, reader.class_names, "", "each picture's own, in its facts")
        samples = build_split(options.out, options.split, counted(), manifest, reader.left_out)
    console.print(
        f"{options.out}, split {options.split}: {samples} samples, {counts['captioned']} of them with"
        f" {counts['captions']} captions, {counts['boxes']} boxes of {max(len(reader.class_names) - 1, 0)} classes"
        f" ({reader.clipped_boxes} cut at the picture's edge)",
        soft_wrap=True,
    )
    if reader.turned_pictures:
        told = f"{reader.turned_pictures} pictures are turned by their EXIF orientation, and their boxes with them"
        console.print(told, soft_wrap=True)
    report_left_out(reader.left_out, options, console)


def make_benchmark(options: argparse.Namespace, console: Console) -> None:
    """One split from a benchmark's files."""
    if not options.images.is_dir():  # before files are read that take minutes
        raise FileNotFoundError(f"no folder of pictures {options.images}")
    with console.status("reading the annotations"):
        annotations = BENCHMARKS[options.command].read(options)
    counts: Counter[str] = Counter()
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as progress:
        task = progress.add_task("pictures", total=None)

        def counted() -> Iterator[Sample]:
            for sample in read_samples(options.images, annotations):
                progress.advance(task)
                for name in RECORDS:
                    counts[name] += len(sample.captions if name == "captions" else sample.facts.get(name, []))
                yield sample

        a = annotations
        samples = build_split(options.out, options.split, counted(), a.manifest, a.left_out, a.words)
    records = ", ".join(f"{number} {RECORDS[name]}" for name, number in counts.items() if number)
    made = f"{options.out}, split {options.split}: {samples} samples with {records or 'no texts'}"
    for line in [made, *annotations.remarks]:
        console.print(line, soft_wrap=True)
    report_left_out(annotations.left_out, options, console)
    lost = sum(entry.reason != table.UNNAMED for entry in annotations.left_out)
    share = lost / (lost + samples + counts.total())
    if share > MUCH:
        console.print(
            f"WARNING: {share:.0%} of what the files hold was left out; do --images and the files belong together?",
            style="bold red",
            soft_wrap=True,
        )


def make_text(options: argparse.Namespace, console: Console) -> None:
    """One split of passages."""
    reader = TextReader(options.files, options.words)
    with console.status("reading"):
        samples = build_split(options.out, options.split, reader, Manifest("text", 0, [], "", ""), reader.left_out)
    console.print(f"{options.out}, split {options.split}: {samples} passages without images", soft_wrap=True)
    report_left_out(reader.left_out, options, console)


def make_nlvr1(options: argparse.Namespace, console: Console) -> None:
    """One split of drawn scenes."""
    with console.status("drawing"):
        reader = Nlvr1Reader(options.files, options.part, options.statements)
        samples = build_split(options.out, options.split, reader, reader.manifest, reader.left_out, words=reader.words)
    console.print(f"{options.out}, split {options.split}: {samples} scenes", soft_wrap=True)
    report_left_out(reader.left_out, options, console)


def make_webdataset(options: argparse.Namespace, console: Console) -> None:
    """One split of tars that stay where they are."""
    tars = find_tars(options.tars)
    folders = {path.parent.resolve() for path in tars}
    if options.out is None and len(folders) > 1:
        raise ShardError(f"the tars lie in {len(folders)} folders; name one for the index by --out")
    options.out = options.out or tars[0].parent
    keys = tuple(dict.fromkeys(options.caption_key or ()))
    if keys and options.caption_lines:
        raise ConfigError("--caption-key and --caption-lines: captions are those of the JSON or those of the .txt")
    place = CaptionPlace(keys, not keys and (options.caption_lines or says_retrieval(tars)))
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as progress:
        task = progress.add_task("tars", total=len(tars))
        indexed = index_tars(tars, options.out, options.split, lambda: progress.advance(task), place)
    earlier = f", {indexed.gone} of an earlier index are no more among them" * bool(indexed.gone)
    console.print(
        f"{options.out}, split {options.split}: {indexed.samples} samples in {len(tars)} tars, {indexed.read} of which"
        f" were read now{earlier}",
        soft_wrap=True,
    )
    if place.lines:
        told = "" if options.caption_lines else ", since dataset_type.txt says retrieval"
        console.print(f"{indexed.captions} captions: each line of a .txt is one{told}", soft_wrap=True)
    elif keys:
        console.print(f"{indexed.captions} captions, of the keys {', '.join(keys)}", soft_wrap=True)
    report_left_out(indexed.left_out, options, console)


def report_left_out(left_out: list[LeftOut], options: argparse.Namespace, console: Console) -> None:
    """Say what could not be used, by reason."""
    examples = {entry.reason: entry.what for entry in reversed(left_out)}
    counted = Counter(entry.reason for entry in left_out).most_common()
    for reason, number in counted[:MOST_REASONS]:
        line = f"left out: {number} x {reason} (first: {examples[reason]})"
        shown = line.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair could not be printed
        console.print(shown, style="yellow", soft_wrap=True)
    if counted[MOST_REASONS:]:
        rest = sum(number for _, number in counted[MOST_REASONS:])
        console.print(f"left out: {rest} x {len(counted) - MOST_REASONS} other reasons", style="yellow", soft_wrap=True)
    if left_out:
        console.print(f"all of them: {options.out / options.split}.left_out.jsonl", style="yellow", soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    console = open_console(markup=False)
    makers = {"scenes": make_scenes, "coco": make_coco, "nlvr1": make_nlvr1, "text": make_text}
    makers |= {"webdataset": make_webdataset, "encode": encode.encode}
    makers |= {"caption": caption.caption, "vocabulary": vocabulary.vocabulary}

    def make(given: list[str]) -> None:
        options = read_arguments(given)
        makers.get(options.command, make_benchmark)(options, console)

    stopped = STOPPED, "stopped; nothing was added"
    if arguments[:1] in (["encode"], ["caption"]):
        stopped = GO_ON, "stopped; the same command goes on where it was"
    return run_command(make, arguments, stopped=stopped)
