"""Captions that a model wrote: COCO's metrics beside people's captions, and the result file of COCO and nocaps."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from rich.table import Table

from vlp.evaluation.asking import one_image, texts_of
from vlp.evaluation.objects import constraints_of, objects_of
from vlp.interfaces import NONE, Batch, Images, Truth
from vlp.metrics.cider import Frequencies, cider_d
from vlp.strict_yaml import ConfigError
from vlp.task_contracts import Measured, Prompt, Reply, Run, WritingTask
from vlp.writing.constrained import Constraint
from vlp.writing.settings import Writing

INSTALL = "pip install pycocoevalcap"
NO_JAVA = "there is no Java that runs"
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
SPICE_SOURCE = "http://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "METEOR", "SPICE")
ENTIRE = "entire"  # what nocaps calls all its domains together

Texts = dict[int, list[str]]


@dataclass(frozen=True)
class Captioned:
    """One image: its identifier, the caption that the model wrote, and those that people wrote. `domain`: as nocaps
    tells images apart; empty: it is not known.
    """

    identifier: int | str
    caption: str
    references: list[str]
    domain: str = ""


def official_captions(captioned: Sequence[Captioned]) -> str:
    """The captions as the servers of COCO and nocaps take them: a JSON list of image_id and caption."""
    return json.dumps([{"image_id": one.identifier, "caption": one.caption} for one in captioned], ensure_ascii=False)


def caption_metrics(captioned: Sequence[Captioned], slow: bool = True) -> dict[str, Any]:
    """BLEU-1 to BLEU-4, ROUGE-L, CIDEr-D, METEOR and SPICE of images with captions by people.

    They are those of COCO's evaluation server (Chen et al. 2015). CIDEr-D is `vlp.metrics.cider`, its rarities those of
    these images; the others are computed by pycocoevalcap. Texts are split into words by the Penn Treebank tokenizer,
    which needs pycocoevalcap and Java; without these a plain rule stands in for it (`tokenizer` says which), and the
    numbers compare with one another but not with published ones. METEOR and SPICE need Java, and SPICE models that
    pycocoevalcap comes without and that are not downloaded here. What could not be measured stands in `unmeasured`, a
    dict of reasons. Without `slow` METEOR and SPICE are left out.
    """
    known = [one for one in captioned if any(map(str.strip, one.references))]
    found: dict[str, Any] = {"images": len(captioned), "known": len(known)}
    if not known:
        return found
    # a line break would shift the captions after it, since the tokenizer is given one a line
    written = {n: [" ".join(one.caption.split())] for n, one in enumerate(known)}
    by_people = {n: [" ".join(text.split()) for text in one.references if text.strip()] for n, one in enumerate(known)}
    library, java = find_spec("pycocoevalcap") is not None, java_runs()
    if library and java:
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # only here, since it is an extra

        found["tokenizer"] = "Penn Treebank"
        written, by_people = (PTBTokenizer().tokenize(_as_entries(texts)) for texts in (written, by_people))
    else:
        why = NO_JAVA if library else "pycocoevalcap is not installed"
        found["tokenizer"] = f"plain words, since {why}: not comparable with published numbers"
        written, by_people = ({n: [*map(plain_words, own)] for n, own in t.items()} for t in (written, by_people))
    words = {n: [text.split() for text in own] for n, own in by_people.items()}
    frequencies = Frequencies.of(words.values())
    found["CIDEr"] = fmean(cider_d(text.split(), words[n], frequencies) for n, [text] in written.items())
    if not library:
        others = [name for name in METRICS if name != "CIDEr"]
        return found | {"unmeasured": {", ".join(others if slow else others[:-2]): f"to have them, {INSTALL}"}}
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(by_people, written, verbose=0)
    found |= {f"BLEU-{n}": float(score) for n, score in enumerate(bleu, 1)}
    found["ROUGE-L"] = float(Rouge().compute_score(by_people, written)[0])
    unmeasured: dict[str, str] = {}
    for name, measure in (("METEOR", meteor), ("SPICE", spice)) if slow else ():
        try:
            if not java:
                raise UnmeasuredError(NO_JAVA)
            found[name] = measure(by_people, written)
        except UnmeasuredError as reason:
            unmeasured[name] = str(reason)
    if unmeasured:
        found["unmeasured"] = unmeasured
    return found


class UnmeasuredError(Exception):
    """A metric could not be computed here; the message says why, and what to do."""


def java_runs() -> bool:
    """Whether a command `java` is there and works; macOS has one that only says that Java is missing."""
    try:
        return subprocess.run(["java", "-version"], capture_output=True, check=False, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def meteor(by_people: Texts, written: Texts) -> float:
    """METEOR 1.5 (Denkowski and Lavie 2014) of tokenized captions, by the program that pycocoevalcap carries.

    The program is given files, with the settings of pycocoevalcap's own class, and the number is the same. That class
    talks to it line by line without a limit of time, and after any error waits for ever for a lock that it holds.

    Raises:
        UnmeasuredError: the program failed, or did not end in time.
    """
    from pycocoevalcap.meteor import meteor as library

    program = Path(library.__file__).parent / library.METEOR_JAR
    most = max(map(len, by_people.values()))
    # each caption must have as many references: the last one again changes nothing, since the best of them counts
    references = [text for own in by_people.values() for text in own + own[-1:] * (most - len(own))]
    seconds = 600 + len(written)  # ample: reading its table takes up to a minute on a busy machine
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "written", Path(folder) / "references"]
        for file, lines in zip(files, ([written[n][0] for n in by_people], references), strict=True):
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        java = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(program), *map(str, files)]
        try:
            ended = subprocess.run(
                [*java, "-l", "en", "-norm", "-r", str(most), "-q"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=seconds,
                encoding="utf-8",
                errors="replace",
            )
            return float(ended.stdout)
        except subprocess.TimeoutExpired as error:
            raise UnmeasuredError(f"{program} did not end within {seconds} seconds") from error
        except subprocess.CalledProcessError as error:
            said = (error.stderr.strip() or error.stdout.strip() or "nothing").splitlines()[-1]
            raise UnmeasuredError(f"{program} failed with status {error.returncode} and said: {said}") from error
        except (OSError, ValueError) as error:
            raise UnmeasuredError(f"{program} gave no score: {error}") from error


def spice(by_people: Texts, written: Texts) -> float:
    """SPICE (Anderson et al. 2016) of tokenized captions, by pycocoevalcap, if its models are there.

    Raises:
        UnmeasuredError: Stanford CoreNLP's models, which pycocoevalcap would download, are not there; or SPICE failed.
    """
    from pycocoevalcap.spice import spice as library

    folder = Path(library.__file__).parent / "lib"
    missing = [name for name in SPICE_MODELS if not (folder / name).is_file()]
    if missing:
        raise UnmeasuredError(
            f"{folder} is without {' and '.join(missing)}, which are not downloaded unasked; to get them, run"
            f" `python -m pycocoevalcap.spice.get_stanford_models`, or copy them out of {SPICE_SOURCE}"
        )
    try:
        return float(library.Spice().compute_score(by_people, written)[0])
    except (OSError, ValueError, LookupError, subprocess.CalledProcessError) as error:
        raise UnmeasuredError(f"pycocoevalcap's SPICE failed: {error}") from error


def _as_entries(texts: dict[int, list[str]]) -> dict[int, list[dict[str, str]]]:
    return {number: [{"caption": text} for text in own] for number, own in texts.items()}


def plain_words(text: str) -> str:
    """Words in lower case with single blanks between them, without punctuation."""
    return " ".join(re.findall(r"\w+(?:['-]\w+)*", text.lower()))


class CaptionEvaluation:
    """Of tasks that write captions; see `vlp.task_contracts.Evaluation`."""

    measured_on: Literal["images"] = "images"
    Options = Writing

    def answer(self, task: WritingTask, run: Run, batch: Batch, options: Writing) -> list[str]:
        """A caption of each image."""
        return [caption for [(caption, _)] in write(task, run, batch, options)]

    def record(self, run: Run, truth: Truth, said: list[str]) -> Captioned:
        """The caption beside people's."""
        return Captioned(truth.identifier, said[0], truth.captions, truth.kind)

    def unseen(self, run: Run, truth: Truth) -> Captioned:
        """An empty caption."""
        return self.record(run, truth, [""])

    def predictions(self, records: Sequence[Captioned], options: Writing) -> tuple[str, str, str]:
        """See `official_captions`."""
        return "captions", "json", official_captions(records)

    def measure(self, run: Run, records: Sequence[Captioned], options: Writing, title: str) -> Measured:
        """See `caption_metrics`; of images whose domains are known, for each domain by itself too, as nocaps has it."""
        domains = sorted({record.domain for record in records} - {""})
        parts = {ENTIRE: records} | {d: [one for one in records if one.domain == d] for d in domains}
        scores = {name: caption_metrics(own) for name, own in parts.items()}
        found = scores.pop(ENTIRE)
        table = Table("", *([ENTIRE, *domains] if domains else ["score"]), title=title, title_justify="left")
        for metric in METRICS:
            if metric in found:
                numbers = (own.get(metric) for own in (found, *scores.values()))
                table.add_row(metric, *("" if number is None else f"{100 * number:.2f}" for number in numbers))
        changed = {f.name: value for f in fields(options) if (value := getattr(options, f.name)) != f.default}
        how = {"beams": options.beams, **changed}
        said = ", ".join(f"{name}={value}" for name, value in how.items())
        notes = [f"{found['known']} images; {said}; tokenizer: {found.get('tokenizer')}"]
        notes += [f"{domain}: {own['known']} images" for domain, own in scores.items()]
        missing = [f"{metric} is left out: {reason}" for metric, reason in found.get("unmeasured", {}).items()]
        report = {**how, **found, **({"domains": scores} if domains else {})}
        return Measured(report, table if found["known"] else None, notes, missing)

    def reply(self, task: WritingTask, run: Run, prompt: Prompt) -> Reply:
        """Captions with their scores; those of beams and samples are means of the logarithms of the words'
        probabilities (`vlp.writing.searches`).
        """
        if prompt.text is not None:
            raise ConfigError("this run was trained to write captions, not to answer: leave --text out")
        image = one_image(prompt, "a caption")
        how = Writing(**{"beams": 5, **prompt.settings})
        top = how.beams if prompt.top is None else prompt.top
        names = [name.strip() for name in prompt.tags.split(",") if name.strip()]
        text = {"caption": "", "tags": " ".join(names)} if "tags" in run.segments else {"caption": ""}
        batch = Batch(
            texts=texts_of(run, [text]),
            images=Images.from_regions([image], [0]),
            pairs=torch.zeros(1, 2, dtype=torch.int64),
            matched=torch.ones(1, dtype=torch.bool),
        )
        written = write(task, run, batch, how, min(top, how.beams), prompt.begin, [names] if names else None)
        return Reply(("caption", "score"), written[0])


@torch.no_grad()
def write(
    task: WritingTask,
    run: Run,
    batch: Batch,
    how: Writing,
    keep: int = 1,
    begin: str = "",
    names: Sequence[Sequence[str]] | None = None,
) -> list[list[tuple[str, float]]]:
    """Captions of the pairs of a clean batch, whose own are not looked at: the best of each first, with its score.

    Args:
        task, run: what was trained.
        batch: clean.
        how, keep: see `vlp.task_contracts.WritingTask.write`.
        begin: what each caption begins with.
        names: of the objects of each pair's image, for a search that is to name them; None: as its regions say.

    Raises:
        ConfigError: the run's tokenizer can't put words together, or it is not known what the objects are called.
    """
    if not hasattr(run.tokenizer, "decode"):
        raise ConfigError(f"the tokenizer {run.tokenizer.path} can't make a text of tokens; WordPiece can")
    hold: list[list[Constraint]] = []
    if how.search == "constrained":
        unnamed = [name.strip() for name in how.unnamed.split(",")]
        known = _names(run, batch, unnamed) if names is None else names
        asked = [[name for name in dict.fromkeys(own) if name not in unnamed][: how.objects] for own in known]
        hold = [constraints_of(own, run.tokenizer) for own in asked]
    batch = run.prepared(batch)
    batch = replace(batch, images=run.model.see(batch.images))
    (first,) = run.tokenizer.encode([begin])
    written = task.write(run.model, batch, how, keep=keep, begin=first.ids, hold=hold)
    return [[(run.tokenizer.decode(one.tokens), one.score) for one in best] for best in written]


def _names(run: Run, batch: Batch, unnamed: Sequence[str]) -> list[list[str]]:
    """The names of the objects of each pair's image, by the classes of its regions."""
    images = batch.images
    if images.scores is None or images.scores.shape[1] != len(run.class_names):
        raise ConfigError(
            "search=constrained names objects, and the regions of these images have no classes, or others than the data"
            " names; take another search, or name the objects: `vlp predict --tags 'dog, red hat'`"
        )
    parts = list(zip(images.offsets[:-1].tolist(), images.offsets[1:].tolist(), strict=True))
    found = [objects_of(images.scores[a:b], images.boxes[a:b], run.class_names, unnamed) for a, b in parts]
    return [[] if image == NONE else found[image] for image in batch.pairs[:, 1].tolist()]
