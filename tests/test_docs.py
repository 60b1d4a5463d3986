"""The commands and the Python of the documentation, run as a reader types them, but small.

All pages share a folder and are gone through in order: what a page needs an earlier one has made, or `provide` has. The
commands of NOT_RUN need what nobody can ship, or hours; they are read by the commands' own parsers. `pytest -s` lists
what is run and what is not.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import os
import re
import shlex
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
import yaml
from made_up_benchmarks import write_json, write_pictures, write_text
from made_up_coco import MadeUpCoco
from made_up_detectors import SMALL, save_detector
from made_up_encoders import make_folder
from made_up_published import detected, write_bottom_up
from made_up_tars import write_like_img2dataset
from safetensors.torch import save_file
from test_vqa_v2 import annotation, question
from torch import Tensor

import vlp
from vlp import registry
from vlp.checkpoints.key_map import export_state
from vlp.commands.command import Parser
from vlp.commands.compare import read_study
from vlp.commands.import_checkpoint import NAMED, build
from vlp.commands.main import COMMANDS, main
from vlp.config import load_config
from vlp.interfaces import Tokenizer
from vlp.text.choose import open_tokenizer

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("train", "generate", "data", "own-data", "fine-tune", "evaluate", "weights", "python")
    ),
]
PAGES += [f"docs/{name}.md" for name in ("extend", "contracts", "reliability", "learning", "systems")]
PAGES += ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
KINDS = {"sh", "python", "text", "mermaid"}  # of blocks; the first two are run

# beginnings of commands that are not run, and why
FILES = "the benchmark's files can't be shipped; tests/data_pipelines reads made-up ones"
NOT_RUN = {
    "vlp data gqa": FILES,
    "vlp evaluate runs/gqa_uniter_base": "as its data; tests/evaluation/test_gqa_answers.py measures made-up answers",
    "vlp data nlvr2": FILES,
    "vlp data snli_ve": FILES,
    "vlp data karpathy": FILES,
    "vlp data nocaps": FILES,
    "vlp data conceptual_captions": FILES,
    "vlp data vcr": FILES,
    "vlp data refcoco": FILES,
    "vlp data flickr30k_entities": FILES,
    "vlp data visual7w": FILES,
    "vlp data guesswhat": FILES,
    "vlp data visual_genome_qa": FILES,
    "vlp convert-refcoco": "RefCOCO's pickles can't be shipped; tests/test_tools_convert.py converts made-up ones",
    "vlp convert-dvae": "OpenAI's pickles can't be shipped; tests/test_tools_convert_dvae.py converts made-up ones",
    **dict.fromkeys(
        ("vlp import openai_dvae", "vlp import dalle_pytorch", "vlp import dalle_pytorch_vae", "vlp import cogview"),
        "published weights of that size can't be shipped; tests/test_tools_import_drawing.py imports small ones",
    ),
    "vlp import cogview_vqvae": "as the others; tests/test_tools_import_drawing.py",
    "vlp import siglip_transformers": "as the others; tests/checkpoints/test_clip_layouts.py imports a small one",
    "vlp assets get": "downloads; tests/assets fetches made-up files from a server of its own",
    "vlp learn": "takes minutes for each system, or nothing is learned; tests/test_learn.py",
    "vlp compare studies/pretraining_helps": "takes an hour and a half; tests/test_compare.py runs a tiny study",
}
# beginnings of commands that are none of ours
OTHERS = {
    "make ": "a target of the Makefile",
    "source .venv/bin/activate": "opens the environment",
    "pytest ": "the tests themselves",
    "pre-commit ": "of the environment",
}

FOLDERS = ("vlp/", "data_pipelines/", "tests/", "configs/", "docs/", "tools/", "examples/", ".ci/", ".github/")
# files that docs/extend.md speaks of, which its reader would write
PLANNED = ("vlp/objectives/caption_length.py", "data_pipelines/annotations/pairs.py")

SIDES = {"hidden_size": 16, "heads": 2, "mlp_size": 16}
SIZES = {f"{stream}{key}": size for stream in ("", "visual_", "cross_") for key, size in SIDES.items()}
SIZES |= {"layers": 1}
IMAGE_SIZE = "{patch_size: 56, width: 32, layers: 1, head_width: 16}"
TEXT_SIZE = "{width: 32, layers: 1, heads: 2}"
ONCE = ["trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.devices=1", "validation.every=2"]
ONCE += ["optim.warmup_steps=1", "data.workers=0", "data.micro_batch=4"]


@dataclass(frozen=True)
class Block:
    """What a page shows between two fences: its kind, its text, and the line before its first."""

    page: str
    line: int
    kind: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command as the page has it, on one line, and its words."""

    page: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def blocks_of(page: str, text: str) -> list[Block]:
    found, begun, held = [], None, []
    for number, line in enumerate(text.splitlines(), 1):
        if begun is None and line.startswith("```"):
            begun, held = (number, line.removeprefix("```").strip()), []
        elif begun is not None and line.startswith("```"):
            found.append(Block(page, *begun, "".join(f"{one}\n" for one in held)))
            begun = None
        elif begun is not None:
            held.append(line)
    assert begun is None, f"{page}:{begun}: a block that does not end"
    return found


def commands_of(block: Block) -> list[Command]:
    found, first, waiting = [], 0, ""
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        first = first if waiting else number
        waiting += line.strip()
        if waiting.endswith("\\"):
            waiting = waiting.removesuffix("\\")
        elif waiting:
            found.append(Command(block.page, first, waiting))
            waiting = ""
    return [command for command in found if command.words]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    """A page with its blocks left blank, so that lines keep their numbers."""
    inside, lines = False, []
    for line in text_of(page).splitlines():
        fence = line.startswith("```")
        lines.append("" if inside or fence else line)
        inside ^= fence
    return "\n".join(lines)


def spans_of(page: str) -> list[tuple[str, str]]:
    """What a page sets as code within its prose, and where."""
    prose = prose_of(page)
    found = re.finditer(r"`([^`]+)`", prose)
    return [(f"{page}:{prose.count(chr(10), 0, m.start()) + 1}", " ".join(m[1].split())) for m in found]


BLOCKS = [block for page in PAGES for block in blocks_of(page, text_of(page))]
ALL = [command for block in BLOCKS if block.kind == "sh" for command in commands_of(block)]
OURS = [command for command in ALL if command.words[0] == "vlp"]


def begins(command: Command, table: dict[str, str]) -> str | None:
    return next((beginning for beginning in table if f"{command.text} ".startswith(f"{beginning.rstrip()} ")), None)


RUN = [command for command in OURS if begins(command, NOT_RUN) is None]


# what makes them small


def small(words: list[str]) -> list[str]:
    """What is typed besides, so that a command takes a second."""
    command, *rest = words
    if command == "train":
        overrides = [word for word in rest[1:] if "=" in word and not word.startswith("-")]
        return ["trainer.max_steps=3"] if "--resume" in rest else small_run(rest[0], overrides)
    if command == "import":
        return small_model(rest[rest.index("--config") + 1], [])
    return ["--train", "20", "--val", "8"] if rest[:1] == ["scenes"] else []


def small_run(name: str, overrides: list[str]) -> list[str]:
    config = load_config(name, overrides)
    sources = list(enumerate(config.data.sources))
    scenes = [f"data.sources.{n}.scenes.{key}" for n, s in sources if s.scenes for key in ("train=20", "val=8")]
    own = [f"data.sources.{n}.micro_batch=4" for n, source in sources if source.micro_batch]
    return [*small_model(name, overrides), *ONCE, *scenes, *own, f"validation.micro_batches={len(sources)}"]


def small_model(name: str, overrides: list[str]) -> list[str]:
    model = load_config(name, overrides).model
    sizes = [f"model.{key}={size}" for key, size in SIZES.items() if key in model]
    if "schedule" in model:
        sizes.append("model.schedule=[text, visual, cross]")
    if model["type"] == "dual_encoder" and "settings" not in model["image"]:
        sizes += [f"model.image.settings={IMAGE_SIZE}", f"model.text.settings={TEXT_SIZE}"]
    return sizes


# what a reader has


def write_words(path: Path, count: int, letter: str = "w") -> Path:
    """A vocabulary of BERT's size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"{letter}{number}" for number in range(5, count))]
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


def published(layout: str, config: str, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Random weights in a layout, as small as those that `small` asks for."""
    names = {kind: ["one", "two", "three"] for kind in NAMED}
    model = build(load_config(config, small_model(config, [])), tokenizer, names)
    return export_state(model.state_dict(), registry.IMPORTERS[layout])


def provide() -> None:
    """Files of the reader's own, in the working directory."""
    here = Path()
    write_pictures(here, "photo.jpg", width=120, height=90)
    write_pictures(here / "photos", "red_ring/0.jpg", "red_ring/1.jpg", "blue_bar/0.jpg")
    write_text(here / "templates.txt", "a photo of a {}.\na drawing of a {}.\n")
    write_text(here / "captions.tsv", "red_ring/0.jpg\ta red ring\nblue_bar/0.jpg\ta blue bar\nblue_bar/0.jpg\t\n")
    drawn = [f"drawn/{number}.jpg" for number in range(40)]
    write_pictures(here / "photos", *drawn)
    rows = "".join(f'{name},"a picture, the {name[6]}th"\n{name},drawn\n' for name in drawn)
    write_text(here / "captions.csv", f"filename,caption\n{rows}red_ring/0.jpg,a red ring\nblue_bar/0.jpg,a blue bar\n")
    for name in ("a.txt", "b.txt"):
        write_text(here / name, "one two three.\n\nfour five.\n")
    coco = MadeUpCoco(here / "coco", list(range(1, 9)))
    coco.images.rename("coco/train2017")
    (here / "coco/annotations").mkdir()
    coco.captions_path.rename("coco/annotations/captions_train2017.json")
    coco.instances_path.rename("coco/annotations/instances_train2017.json")
    for part in ("train2014", "val2014"):
        write_pictures(here / "coco" / part, *(f"COCO_{part}_{number:012d}.jpg" for number in range(1, 5)))
        numbers = [1000 * image + number for image in range(1, 5) for number in range(3)]
        asked, known = [question(number) for number in numbers], [annotation(number) for number in numbers]
        shared = {"data_type": "mscoco", "data_subtype": part}
        write_json(here / f"v2_OpenEnded_mscoco_{part}_questions.json", {**shared, "questions": asked})
        write_json(here / f"v2_mscoco_{part}_annotations.json", {**shared, "annotations": known})
    write_bottom_up(here / "coco/train2014_obj36.tsv", [detected(n, 36, (40, 20)) for n in range(1, 9)])
    easy = here / "easy_vqa/data"
    write_pictures(easy / "train/images", *(f"{number}.png" for number in range(40)), width=64, height=64)
    write_json(easy / "train/questions.json", [["is it?", ("yes", "no")[n % 2], n] for n in range(40)])
    write_text(easy / "answers.txt", "yes\nno")
    write_like_img2dataset(here / "data/cc3m", 0, 8)
    trunk = timm.create_model("mobilenetv2_100", pretrained=False)
    save_file(trunk.state_dict(), "mobilenetv2_100.safetensors")
    save_detector(here / f"{SMALL}.pth", classes=91)
    make_folder(here / "roberta-base", max_position_embeddings=64)
    cased = open_tokenizer(write_words(here / "bert-base-cased/vocab.txt", 28996, "W"), False)
    write_words(here / "data/bert-base-uncased/vocab.txt", 30522)
    uncased = open_tokenizer(write_words(here / "bert-base-uncased/vocab.txt", 30522), True)
    uniter = published("uniter", "uniter_base", cased)
    torch.save(uniter, "uniter-base.pt")
    of_bert = ("uniter.embeddings.", "uniter.encoder.", "uniter.pooler.", "cls.predictions.")
    bert = {key: value.clone() for key, value in uniter.items() if key.startswith(of_bert)}
    save_file({key.replace("uniter.", "bert."): value for key, value in bert.items()}, "bert.safetensors")
    torch.save(published("lxmert", "lxmert_base", uncased), "lxmert.pth")
    clip = published("open_clip", "clip_vit_b32", open_tokenizer("clip", True))
    save_file({key: value.contiguous() for key, value in clip.items()}, "clip.safetensors")


# running


def run_command(command: Command) -> str | None:
    """None, or what went wrong."""
    words, printed = command.words[1:], io.StringIO()
    try:
        words += small(words)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = main(words)
    except Exception:
        code, told = -1, traceback.format_exc()
    else:
        told = printed.getvalue()
    return None if code == 0 else f"{command}\n  as: vlp {shlex.join(words)}\n  exit code {code}\n{told[-2000:]}"


def run_python(block: Block, names: dict[str, object]) -> str | None:
    """None, or what went wrong; lines of the traceback are those of the page. Functions `test_...` are called."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            exec(compile("\n" * block.line + block.text, block.page, "exec"), names)
            for node in ast.parse(block.text).body:
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    names[node.name]()  # type: ignore[operator]
    except Exception:
        return f"{block.page}:{block.line}: a block of Python\n{printed.getvalue()[-1000:]}{traceback.format_exc()}"
    return None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where everything is typed; what a page adds to tables is taken out again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    before = dict(registry.OBJECTIVES)
    yield tmp_path
    registry.OBJECTIVES.clear()
    registry.OBJECTIVES.update(before)


def test_what_is_shown_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provide()
    failures, done = [], 0
    for page in PAGES:
        module = types.ModuleType(re.sub(r"\W", "_", page))
        monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses, and pickle, look for it
        names: dict[str, object] = vars(module)
        for block in [block for block in BLOCKS if block.page == page]:
            began = time.perf_counter()
            if block.kind == "python":
                failures.append(run_python(block, names))
                print(f"{time.perf_counter() - began:5.1f} s  {page}:{block.line}: a block of Python")
                done += 1
            for command in commands_of(block) if block.kind == "sh" else []:
                if command not in RUN:
                    continue
                began = time.perf_counter()
                failures.append(run_command(command))
                print(f"{time.perf_counter() - began:5.1f} s  {command}")
                done += 1
    told = [failure for failure in failures if failure is not None]
    assert done > 50, "the pages' commands are not found"
    assert not told, f"{len(told)} of {done} don't run as the pages show them:\n\n" + "\n\n".join(told)


# the others


class Parsed(BaseException):
    """The parser has taken the options."""


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """None, or what the command's own parser says of the options."""
    module = importlib.import_module(f"vlp.commands.{COMMANDS[words[0]][0]}")
    read: Callable[..., object] = Parser.read

    def parsed(parser: Parser, arguments: list[str]) -> None:
        read(parser, arguments)
        raise Parsed

    printed = io.StringIO()
    try:
        if hasattr(module, "read_arguments"):
            module.read_arguments(words[1:])
            return None
        monkeypatch.setattr(Parser, "read", parsed)
        with contextlib.redirect_stderr(printed):
            main(words)
    except Parsed:
        return None
    except (ValueError, SystemExit) as error:
        return str(error)
    return printed.getvalue() or "its options were not read"


@pytest.mark.parametrize("beginning", NOT_RUN)
def test_what_is_not_run_is_read(beginning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    such = [command for command in OURS if begins(command, NOT_RUN) == beginning]
    assert such, f"no page has a command that begins with `{beginning}`: take it out of NOT_RUN"
    for command in such:
        fault = parse(command.words[1:], monkeypatch)
        assert fault is None, f"{command}: {fault}"
        print(f"\nnot run: {command}\n  {NOT_RUN[beginning]}")


def test_studies_can_be_read() -> None:
    """Those that take too long to be run."""
    for command in OURS:
        if command.words[1] == "compare":
            assert read_study(command.words[2], [])[1], command


def test_other_commands_are_known() -> None:
    """A line of a block is a command of ours, or of a kind that is listed; the Makefile has its targets."""
    targets = set(re.findall(r"^([a-z][\w-]*):", text_of("Makefile"), re.MULTILINE))
    others = [command for command in ALL if command not in OURS]
    for command in others:
        assert begins(command, OTHERS), f"{command}: neither a command of ours nor one of OTHERS"
        for word in command.words[1:]:
            assert not word.startswith("tests/") or (ROOT / word).exists(), f"{command}: there is no {word}"
    unused = [beginning for beginning in OTHERS if not any(begins(command, {beginning: ""}) for command in others)]
    assert not unused, f"no page has commands that begin so: {unused}"
    made = [(str(command), command.words) for command in others]
    made += [(f"{place}: `{span}`", span.split()) for page in PAGES for place, span in spans_of(page)]
    for told, words in made:
        missing = {word for word in words[1:] if "=" not in word} - targets if words[0] == "make" else set()
        assert not missing, f"{told}: the Makefile has no {missing}, but {sorted(targets)}"


def test_commands_in_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    """`vlp COMMAND --option`: there is such a command, with such an option."""
    helps: dict[str, str] = {}
    for page in PAGES:
        for place, span in spans_of(page):
            words = span.split()
            if words[0] != "vlp" or words[1:2] in ([], ["COMMAND"]):
                continue
            assert words[1] in COMMANDS, f"{place}: `{span}`: there is no command {words[1]}"
            name = " ".join(words[1:3] if words[1:2] == ["data"] else words[1:2]).replace("SOURCE", "gqa")  # any source
            if name not in helps:
                assert main([*name.split(), "--help"]) == 0, f"{place}: `{span}`"
                helps[name] = capsys.readouterr().out
            for option in re.findall(r"--[a-z-]+", span):
                assert re.search(rf"{option}(?![\w-])", helps[name]), f"{place}: `{span}`: vlp {name} has no {option}"


def anchors_of(page: str) -> set[str]:
    """What its headings are called in links."""
    heads = [line.lstrip("#").strip() for line in prose_of(page).splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for number, line in enumerate(prose_of(page).splitlines(), 1):
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            place = ((ROOT / page).parent / name).resolve() if name else ROOT / page
            assert place.exists(), f"{page}:{number}: there is no {target}"
            if anchor:
                heads = anchors_of(place.relative_to(ROOT).as_posix())
                assert anchor in heads, f"{page}:{number}: no heading {target}, but {sorted(heads)}"


@pytest.mark.parametrize("page", PAGES)
def test_files_and_configurations_that_are_named_exist(page: str) -> None:
    folders = {name.partition("/")[0] for name in vlp.list_configs() if "/" in name}
    for place, span in spans_of(page):
        for word in (word.partition("::")[0].rstrip(",") for word in span.split()):
            if word.startswith(FOLDERS) and not re.search(r"[*{<]|[A-Z]{3}", word) and word not in PLANNED:
                assert (ROOT / word).exists(), f"{place}: there is no {word}"
        if re.fullmatch(r"\w+/\w+", span) and span.partition("/")[0] in folders:
            assert span in vlp.list_configs(), f"{place}: there is no configuration {span}"


@pytest.mark.parametrize("page", ["README.md", "docs/extend.md"])
def test_maps(page: str) -> None:
    """What they name is there, and every folder of the two packages is named."""
    (shown,) = (block for block in BLOCKS if block.page == page and block.text.startswith("vlp/"))
    for number, line in enumerate(shown.text.splitlines(), shown.line + 1):
        first, *others = re.split(r",\s+", re.split(r"\s{2,}", line)[0])
        for name in (first, *(f"{first.partition('/')[0]}/{other}" for other in others)):
            assert (ROOT / name).exists(), f"{page}:{number}: there is no {name}"
    for folder in (path for top in ("vlp", "data_pipelines") for path in sorted((ROOT / top).iterdir())):
        if (folder / "__init__.py").is_file():
            assert f"{folder.name}/" in shown.text, f"the map of {page} lacks {folder.relative_to(ROOT)}/"


def test_pages() -> None:
    """All pages are among those that are looked at; blocks are of known kinds; lines, and README, are not too long."""
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= set(PAGES)
    assert len(text_of("README.md").splitlines()) <= 150
    for block in BLOCKS:
        assert block.kind in KINDS, f"{block.page}:{block.line}: a block of kind {block.kind!r}, not {sorted(KINDS)}"
    for page in set(PAGES) - {"docs/systems.md"}:  # which a command writes
        for number, line in enumerate(prose_of(page).splitlines(), 1):
            assert len(line) <= 120 or line.startswith("|"), f"{page}:{number}: {len(line)} characters"


def test_files_for_services() -> None:
    """What others read is what they expect, and of this version."""
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == vlp.__version__
    assert f"## [{vlp.__version__}]" in text_of("CHANGELOG.md")
    (job,) = yaml.safe_load(text_of(".github/workflows/ci.yml"))["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_collector() -> None:
    """Continued lines, comments, and blocks of other kinds."""
    page = "a\n```sh\nvlp train a \\\n    b=1  # c\n\n# d\nmake x\n```\n```python\nx = 1\n```\n"
    shown, python = blocks_of("p", page)
    assert [(c.line, c.words) for c in commands_of(shown)] == [(3, ["vlp", "train", "a", "b=1"]), (7, ["make", "x"])]
    assert (python.kind, python.line, python.text) == ("python", 9, "x = 1\n")
    with pytest.raises(AssertionError, match="does not end"):
        blocks_of("p", "```sh\nvlp\n")


def test_failures_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page, line, command and what it printed; and options that there are not."""
    told = run_command(Command("page.md", 7, "vlp evaluate runs/none"))
    assert told is not None
    assert told.startswith("page.md:7: vlp evaluate runs/none\n")
    assert "there is no run" in told
    told = run_python(Block("page.md", 7, "python", "x = 1\nx.y\n"), {})
    assert told is not None
    assert 'File "page.md", line 9' in told
    for words in (["evaluate"], ["train", "unitersmall"], ["learn", "--what"], ["data", "gqa", "--questions", "q"]):
        assert parse(words, monkeypatch), words
