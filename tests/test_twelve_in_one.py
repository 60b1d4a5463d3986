"""12-in-1's configuration beside its official table of tasks (vilbert_tasks.yml of vilbert-multi-task)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vlp.commands import data as make_shards
from vlp.config import load_config, ratio_for

ROOT = Path(__file__).parent.parent
# number, batch, tokens with CLS and SEP, rate x 1e5
OFFICIAL = {
    "vqa": (1, 128, 23, 4),
    "genome_qa": (2, 128, 26, 4),
    "visual7w": (4, 256, 20, 2),
    "coco": (7, 128, 30, 2),
    "flickr30k": (8, 128, 30, 2),
    "refcoco": (9, 256, 20, 2),
    "refcoco_plus": (10, 256, 20, 2),
    "refcocog": (11, 256, 20, 2),
    "nlvr2": (12, 64, 40, 2),
    "entailment": (13, 256, 56, 2),
    "gqa": (15, 128, 26, 4),
    "guesswhat": (17, 64, 256, 2),
}
# the mean over two or three answers, which is what the original takes of these, as a share of their sum
MEANS = {"nlvr2": 1 / 2, "entailment": 1 / 3}
CONFIG = load_config("twelve_in_one")


def recipe() -> dict[str, Any]:
    """The block of the paper's data, which stands there as comments."""
    lines = (ROOT / "configs" / "twelve_in_one.yaml").read_text().splitlines()
    first = lines.index("  # tokenizer: {vocabulary: bert-base-uncased/vocab.txt, lowercase: true}")
    until = next(n for n in range(first, len(lines)) if "and under trainer" in lines[n])
    block: dict[str, Any] = yaml.safe_load("\n".join(line.removeprefix("  # ") for line in lines[first:until]))
    return block


@pytest.mark.parametrize("task", OFFICIAL)
def test_each_task_is_as_in_the_table(task: str) -> None:
    number, batch, tokens, rate = OFFICIAL[task]
    block = recipe()
    (official,) = [source for source in block["sources"] if source["name"] == task]
    (there,) = [source for source in CONFIG.data.sources if source.name == task]
    assert official["micro_batch"] * block["micro_batches_per_step"] == batch
    assert [*official["max_tokens"].values()] == [tokens - 2]
    assert there.max_tokens == official["max_tokens"]
    (segment,) = official["max_tokens"]
    assert CONFIG.model["max_tokens"][segment] >= tokens - 2
    assert CONFIG.model["embedder"]["task_tokens"][task] == number
    (group,) = [group for group in CONFIG.objectives if ratio_for(group.sampling_ratio, task)]
    (objective,) = group.objectives
    weight = objective.get("loss_weight", 1) / MEANS.get(task, 1)
    assert CONFIG.optim.lr * weight == pytest.approx(rate * 1e-5, rel=1e-3)


def test_there_is_no_other() -> None:
    names = [source.name for source in CONFIG.data.sources]
    assert sorted(names) == sorted(OFFICIAL)
    assert [source["name"] for source in recipe()["sources"]] == names


def test_every_data_set_has_a_reader() -> None:
    """By the name of its folder, or as another file's split or form."""
    others = {"coco": "karpathy", "flickr30k": "karpathy", "refcoco_plus": "refcoco", "refcocog": "refcoco"}
    for source in recipe()["sources"]:
        assert others.get(source["path"], source["path"]) in make_shards.BENCHMARKS
