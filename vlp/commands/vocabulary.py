"""Make a WordPiece vocabulary of the texts that you have.

DATA are folders of data sets, whose captions, questions or expressions, answers and choices are read, and text files in
UTF-8, whose lines are. Written is FILE: [PAD] [UNK] [CLS] [SEP] [MASK], characters, and pieces of words, one a line, as
`data.tokenizer.vocabulary` takes it. The same texts give the same file.

Texts are cut as BERT's are: at blanks, at signs, and around each Chinese character. A piece gets in by how often the
two that it is joined of stand side by side; ASCII's letters, digits and signs are always in.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from data_pipelines.shards.format import BadSampleError, ShardError
from data_pipelines.shards.reader import ShardReader
from data_pipelines.vocabulary_texts import lines_of, texts_of_split
from data_pipelines.written_captions import require_new
from vlp.checkpoints.load import write_atomically
from vlp.commands.command import whole_number
from vlp.strict_yaml import ConfigError
from vlp.text.choose import CLIP, check_case, open_tokenizer
from vlp.text.make_vocabulary import make_vocabulary
from vlp.text.wordpiece import words_of

EXAMPLE = "data/coco --out data/coco/vocabulary.txt"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of `vlp data vocabulary`."""
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA", help="folders of data sets, and text files")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the vocabulary, not there yet")
    parser.add_argument("--split", action="append", help="of the data sets; may be given again (default: train)")
    parser.add_argument("--size", type=whole_number, default=8000, metavar="N", help="tokens at most")
    parser.add_argument(
        "--at-least", type=whole_number, default=2, metavar="N", help="times that a piece or a character occurs"
    )
    parser.add_argument("--cased", action="store_true", help="keep capitals and accents")


def texts_of(data: list[Path], splits: list[str], left_out: list[BadSampleError]) -> Iterator[list[str]]:
    """The texts of data sets and files, some at a time.

    Raises:
        FileNotFoundError: there is no such folder or file. ShardError: a data set has no such split.
    """
    missing = [path for path in data if not path.exists()]
    if missing:
        raise FileNotFoundError(f"there is no folder or file {missing[0]}")
    readers = {path: [ShardReader(path, split) for split in splits] for path in data if path.is_dir()}
    for path in data:
        for reader in readers.get(path, []):
            yield from texts_of_split(reader, left_out)
        if path not in readers:
            yield from lines_of(path, left_out)


def vocabulary(options: argparse.Namespace, console: Console) -> None:
    """Read the texts, make the vocabulary, and say how well it knows them."""
    require_new(options.out)
    if options.out.suffix in (".json", ".model") or options.out.name == CLIP:
        raise ConfigError(
            f"--out {options.out} would be read as another kind of vocabulary; name it vocabulary.txt, say"
        )
    lowercase, left_out, texts = not options.cased, list[BadSampleError](), 0
    counts: Counter[str] = Counter()
    with Progress(*Progress.get_default_columns(), console=console, transient=True) as progress:
        task = progress.add_task("reading", total=None)
        for some in texts_of(options.data, options.split or ["train"], left_out):
            counts.update(words_of(some, lowercase))
            texts += len(some)
            progress.advance(task)
    for reason, number in Counter(error.reason for error in left_out).most_common():
        first = next(error.key for error in left_out if error.reason == reason)
        console.print(f"left out: {number} x {reason} (first: {first})", style="yellow", soft_wrap=True)
    if not counts:
        raise ShardError("there is no word in these texts to make a vocabulary of")
    with console.status("joining pieces"):
        tokens = make_vocabulary(counts, options.size, options.at_least, lowercase)
    file = "\n".join([*tokens, ""]).encode()
    with tempfile.TemporaryDirectory() as folder:  # it is tried before it is there
        made = Path(folder) / options.out.name
        made.write_bytes(file)
        tokenizer = open_tokenizer(made, lowercase)
        check_case(tokenizer)
        encoded = zip(counts.values(), tokenizer.encode(list(counts)), strict=True)
        cut = [(times, len(own.ids), own.ids.count(tokenizer.special["UNK"])) for times, own in encoded]
    spelled = sum(times * pieces for times, pieces, _ in cut)
    unknown = sum(times * missed for times, _, missed in cut)
    strange = sum(missed > 0 for _, _, missed in cut)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, file)
    for line in (
        f"written: {options.out}: {len(tokens):,} tokens, {'lower case' if lowercase else 'cased'}; set"
        f" data.tokenizer.lowercase={str(lowercase).lower()} and room for {len(tokens):,} tokens (vocab_size)",
        f"of {counts.total():,} words ({len(counts):,} different) in {texts:,} texts:"
        f" {unknown / max(spelled, 1):.2%} of tokens unknown to the vocabulary ({strange:,} different words),"
        f" {spelled / counts.total():.2f} tokens a word",
    ):
        console.print(line, soft_wrap=True)
