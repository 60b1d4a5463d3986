"""What other programs make of inputs drawn by a seed, as data: python tests/official/make.py FOLDER.

FOLDER has the unpacked wheels of salesforce-lavis 1.0.2 (which carries VQA's own program), pycocoevalcap 1.2 and
clip_benchmark 1.6.2, each in a folder of its name. Their code is no part of this project.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
WORDS = (
    "a an the cat dogs two 2 three ten none isnt dont youre o'clock it's well-known 1,000 3.5 u.s. yes/no left-right"
)
PIECES = [
    *WORDS.split(),
    "Cat",
    "NO",
    ".",
    ",",
    "?",
    "!",
    "-",
    "_",
    "(",
    ")",
    '"',
    "'",
    ";",
    "/",
    "é",
    "猫",
    "@",
    "5:30",
    "$5",
]
PIECES += [
    "wouldve",
    "he'd",
    "lets",
    "yall",
    "oclock",
    "4,",
    ",5",
    "..",
    "mr.",
    "+1",
    "#1",
    "%",
    "\\",
    "=",
    "<",
    ">",
    "`",
]
TALK = "a an the red blue big small dog cat sits on under near table mat with of and is two white old"


def load(path: Path, name: str) -> types.ModuleType:
    """A module by its file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def answers(folder: Path) -> list[list[str]]:
    """Answers, and how VQA's program spells them."""
    program = load(folder / "salesforce_lavis/lavis/common/vqa_tools/vqa_eval.py", "vqa_eval").VQAEval()
    draw, made = random.Random(0), []
    for _ in range(600):
        glue = draw.choice(["", " ", " ", " "])
        text = glue.join(draw.choice(PIECES) for _ in range(draw.randint(1, 4))).strip()
        made.append([text, program.processDigitArticle(program.processPunctuation(text))])
    return made


def captions(folder: Path) -> dict[str, Any]:
    """Captions by people and by a model, with CIDEr and BLEU of COCO's program."""
    sys.path.insert(0, str(folder / "pycocoevalcap"))
    from pycocoevalcap.bleu.bleu import Bleu  # type: ignore[import-not-found]
    from pycocoevalcap.cider.cider import Cider  # type: ignore[import-not-found]

    draw = random.Random(1)
    text = lambda: " ".join(draw.choice(TALK.split()) for _ in range(draw.randint(1, 12)))  # noqa: E731
    people = {str(n): [text() for _ in range(draw.randint(1, 6))] for n in range(60)}
    written = {}
    for name, own in people.items():
        words = draw.choice(own).split()
        kept = [word if draw.random() < 0.8 else draw.choice(TALK.split()) for word in words]
        written[name] = [" ".join(kept)] if draw.random() < 0.8 else [text()]
    score, each = Cider().compute_score(people, written)
    bleu, _ = Bleu(4).compute_score(people, written, verbose=0)
    return {"people": people, "written": written, "CIDEr": float(score), "each": [float(x) for x in each], "BLEU": bleu}


def retrieval(folder: Path) -> dict[str, Any]:
    """Scores of images and their captions, and CLIP_benchmark's recall in both directions."""
    program = load(folder / "clip_benchmark/clip_benchmark/metrics/zeroshot_retrieval.py", "zeroshot_retrieval")
    draw = random.Random(2)
    image_of_text = [image for image in range(30) for _ in range(draw.randint(1, 5))]
    scores = [[round(draw.gauss(1.5 * (image == own), 1), 6) for image in range(30)] for own in image_of_text]
    matrix = torch.tensor(scores, dtype=torch.float64)
    positive = torch.zeros(matrix.shape, dtype=torch.bool)
    positive[torch.arange(len(image_of_text)), torch.tensor(image_of_text)] = True
    found = {"image_of_text": image_of_text, "scores": scores}
    for name, own, right in (("image", matrix, positive), ("text", matrix.T, positive.T)):
        for k in (1, 5, 10):
            shares = program.recall_at_k(own, right, k)
            found[f"{name}_retrieval_recall@{k}"] = (shares > 0).double().mean().item()  # as its `evaluate` has it
            found[f"{name}_retrieval_true_recall@{k}"] = shares.double().mean().item()
    return found


if __name__ == "__main__":
    for name, make in (("answers", answers), ("captions", captions), ("retrieval", retrieval)):
        (HERE / f"{name}.json").write_text(json.dumps(make(Path(sys.argv[1])), ensure_ascii=False) + "\n")
