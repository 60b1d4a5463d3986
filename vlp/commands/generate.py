"""Draw pictures of texts.

RUN is the folder of a run of a token decoder (as dalle_small trains), or one of its weight files. Each text gets
--count pictures, the likeliest first; they are drawn at random by --seed, and the same command gives the same pictures.
FILE becomes a page with a row for each text; the folder of that name without its ending gets each picture, and
pictures.json with the texts, scores and seed.

--rerank-by orders them by how well they fit their text: as a dual encoder finds (clip_small), or by the caption loss of
a token decoder that reads pictures before texts (captioning/cogview_small). --guidance
above 1 makes the text count more, for a run that was trained with `empty_share`. --begin gives the upper --rows rows of
codes, those of a photograph.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

import vlp
from vlp.checkpoints.load import write_atomically
from vlp.commands.command import open_console, options_of, run_command, whole_number
from vlp.config import ConfigError
from vlp.evaluation.lettering import NO_FONT, families
from vlp.inference import TrainedModel
from vlp.use.fitting import require_judge
from vlp.use.pictures import Drawn, codes_of, draw, require_drawing, reranked
from vlp.writing.settings import Writing


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The run, the texts and how they are drawn."""
    parser = options_of(
        "generate",
        __doc__,
        [
            'generate runs/dalle_small --text "a red circle" --count 8 --out red.png',
            "generate runs/dalle_small --texts captions.txt --rerank-by runs/clip_small --keep 2 --out page.png",
        ],
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or one of its weight files")
    parser.add_argument("--text", action="append", default=[], help="what is to be seen; may be given several times")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="a text a line")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page, a .png that isn't there yet")
    parser.add_argument("--count", type=whole_number, default=4, metavar="N", help="pictures of each text")
    parser.add_argument("--keep", type=whole_number, metavar="N", help="of them, the best (default: all)")
    parser.add_argument("--rerank-by", type=Path, metavar="RUN", help="a run that says which fit best")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--temperature", type=float, help="below 1 likely codes become likelier")
    parser.add_argument("--top-k", type=int, metavar="N", help="only the N likeliest codes")
    parser.add_argument(
        "--top-p", type=float, metavar="SHARE", help="only the likeliest codes with so much probability"
    )
    parser.add_argument("--greedy", action="store_true", help="take the likeliest code each time; one picture a text")
    parser.add_argument("--guidance", type=float, help="how much the text counts; 1 is as learned")
    parser.add_argument("--begin", type=Path, metavar="PHOTO", help="a picture whose upper rows are given")
    parser.add_argument("--rows", type=whole_number, default=1, metavar="N", help="of codes that --begin gives")
    return parser.read(arguments)


def texts_of(options: argparse.Namespace) -> list[str]:
    """The texts of the options.

    Raises:
        ConfigError: there are none, or one is empty.
    """
    texts = [*options.text]
    if options.texts is not None:
        texts += options.texts.read_text(encoding="utf-8").splitlines()
    if not texts:
        raise ConfigError('give what is to be seen: --text "a red circle", or --texts FILE')
    empty = [number for number, text in enumerate(texts, 1) if not text.strip()]
    if empty:
        raise ConfigError(f"text {empty[0]} is empty; say what is to be seen")
    return texts


def check_texts(run: TrainedModel, texts: list[str], console: Console) -> None:
    """Say which texts are cut, or have words that the run doesn't know."""
    most, unknown = run.segments["caption"], run.tokenizer.special.get("UNK")
    for text, tokens in zip(texts, run.tokenizer.encode(texts), strict=True):
        if len(tokens.ids) > most:
            told = f"{len(tokens.ids)} tokens, of which the run reads the first {most}"
        elif unknown is not None and unknown in tokens.ids:
            told = f"{tokens.ids.count(unknown)} of {len(tokens.ids)} tokens are unknown to the run"
        else:
            continue
        console.print(f"{text!r}: {told}", style="yellow", soft_wrap=True, markup=False)


def how_of(options: argparse.Namespace) -> Writing:
    """How codes are chosen.

    Raises:
        ConfigError: options that don't go together.
    """
    chosen = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    if options.greedy:
        given = [name for name, value in chosen.items() if value is not None]
        if given:
            raise ConfigError(f"--greedy takes the likeliest code: leave --{given[0].replace('_', '-')} out")
        return Writing()
    return Writing(options.count, "sample", seed=options.seed, **chosen)


def upper_codes(run: TrainedModel, photo: Path | None, rows: int) -> list[int]:
    """The codes of the upper rows of a photograph; none without one.

    Raises:
        ConfigError: these are all rows, or the run draws no pictures.
    """
    if photo is None:
        return []
    height, width = run.model.pictures.grid
    if rows >= height:
        raise ConfigError(f"--rows {rows}: a picture has {height} rows of codes; give fewer, so that some are drawn")
    codes: list[int] = codes_of(run, run.make_images([photo])[0])[: rows * width].tolist()
    return codes


def draw_page(texts: list[str], rows: list[list[Drawn]], path: Path) -> bool:
    """A row of pictures for each text, under it. Returns whether there are fonts for the texts; they are numbered
    otherwise.
    """
    fonts = families(texts)
    if fonts is None:
        texts = [f"text {number}" for number in range(1, len(texts) + 1)]
    across = max(map(len, rows))
    figure = Figure(figsize=(1.9 * across + 0.2, 2.25 * len(rows)), layout="constrained")
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for text, row, part in zip(texts, rows, parts, strict=True):
        title = textwrap.fill(text, max(24 * across, 24))
        part.suptitle(title, fontsize=9, family=fonts, parse_math=False)  # a dollar sign is no formula
        for axes, one in zip(part.subplots(1, across, squeeze=False)[0], [*row, *[None] * across], strict=False):
            axes.axis("off")
            if one is not None:
                axes.imshow(one.pixels.numpy())
    figure.savefig(path, dpi=110)
    return fonts is not None


def generate(options: argparse.Namespace, console: Console) -> None:
    """Draw, order, write."""
    folder = options.out.with_suffix("")
    if options.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {options.out}: the page is a picture; name a file *.png")
    there = [path for path in (options.out, folder) if path.exists()]
    if there:
        raise ConfigError(f"{there[0]} exists already; choose another --out")
    if options.keep is not None and options.keep > options.count:
        raise ConfigError(f"--keep {options.keep} is more than --count {options.count}")
    texts, how = texts_of(options), how_of(options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = vlp.load(options.run, device)
    run.make_images.say = partial(console.print, style="yellow", soft_wrap=True)
    require_drawing(run)
    by = None if options.rerank_by is None else vlp.load(options.rerank_by, device)
    if by is not None:
        require_judge(by, f"--rerank-by {options.rerank_by}")
    check_texts(run, texts, console)
    if options.guidance is not None and not run.able("guidance"):
        console.print("the run was trained without empty captions (empty_share): guidance may do harm", style="yellow")
    begin = upper_codes(run, options.begin, options.rows)
    drawn = draw(run, texts, how, options.guidance, begin)
    ranked = [[(one.score, one) for one in own] for own in drawn] if by is None else reranked(by, texts, drawn)
    kept = [own[: options.keep] for own in ranked]
    folder.mkdir(parents=True)
    listed: list[dict[str, Any]] = []
    for number, (text, own) in enumerate(zip(texts, kept, strict=True)):
        for place, (score, one) in enumerate(own):
            name = f"{number}-{place}.png"
            Image.fromarray(one.pixels.numpy()).save(folder / name)
            listed.append({"file": name, "text": text, "score": score, "log_probability": one.score})
    about = {"run": str(options.run), "seed": options.seed, "count": options.count, "pictures": listed}
    write_atomically(folder / "pictures.json", json.dumps(about, indent=1, ensure_ascii=False).encode())
    if not draw_page(texts, [[one for _, one in own] for own in kept], options.out):
        console.print(NO_FONT, style="yellow", soft_wrap=True)
    console.print(f"written: {options.out}, and {len(listed)} pictures in {folder}", soft_wrap=True, markup=False)


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    return run_command(lambda given: generate(read_arguments(given), open_console()), arguments)
