"""What the systems were made for: the tasks that their papers fine-tune or try them on, with the figures to aim at.

The figures are those that papers report of their own data and features, in percent where nothing else is said; of
retrieval R@1. They are goals, and were not reached here. A task without a figure was tried in the paper, and no figure
could be checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlp.config import load_config
from vlp.fine_tuning import load_for_system


@dataclass(frozen=True)
class Downstream:
    """A task. `about`: in words. `recipe`: the configuration that fine-tunes on its official files; None: a pretrained
    run is tried as it is. `scenes`: the one on embedded scenes, or None. `measure`: the command that measures RUN, the
    run's folder, and writes the benchmark's own file, where it has one.
    """

    about: str
    recipe: str | None
    scenes: str | None
    measure: str


@dataclass(frozen=True)
class Cell:
    """A system on a task: the system's configuration, the task's name in `TASKS`, the published figure, the recipe of
    its own, if it has one, what of the recipe has to be changed, and of one that trains on many tasks the group.
    """

    system: str
    task: str
    figure: str = ""
    own: str | None = None
    changed: str = ""
    group: str | None = None

    def commands(self) -> list[str]:
        """What trains and measures it."""
        task = TASKS[self.task]
        recipe = self.own or task.recipe
        if recipe is None:
            train, config = f"vlp train {self.system}", load_config(self.system)
        elif self.own is not None or recipe.endswith(f"_{self.system}"):
            train, config = f"vlp train {recipe}", load_config(recipe)
        else:
            train, config = f"vlp train {recipe} --system {self.system}", load_for_system(recipe, self.system)
        measure = task.measure.replace("RUN", config.run_dir) + (f" --task {self.group}" if self.group else "")
        return [f"{train} {self.changed}".strip(), measure]


TASKS = {
    "VQA": Downstream("questions, VQA v2", "vqa/vqa_v2_uniter_base", "vqa/uniter_small", "vlp evaluate RUN"),
    "GQA": Downstream(
        "questions made of scene graphs", "vqa/gqa_uniter_base", "vqa/uniter_small", "vlp evaluate RUN --form gqa"
    ),
    "VCR": Downstream(
        "answers and rationales to choose", "vcr/vcr_uniter_base", "vcr/uniter_small", "vlp evaluate RUN"
    ),
    "NLVR2": Downstream(
        "statements about two images", "nlvr2/nlvr2_uniter_base", "nlvr2/uniter_small", "vlp evaluate RUN --form csv"
    ),
    "VE": Downstream(
        "entailment, SNLI-VE", "entailment/snli_ve_uniter_base", "entailment/uniter_small", "vlp evaluate RUN"
    ),
    "GRE": Downstream(
        "the region of an expression, RefCOCO+",
        "refcoco/refcoco_plus_uniter_base",
        "refcoco/uniter_small",
        "vlp evaluate RUN",
    ),
    "phrases": Downstream(
        "the region of a phrase, Flickr30k Entities",
        "grounding/flickr30k_visualbert_base",
        "grounding/visualbert_small",
        "vlp evaluate RUN",
    ),
    "ITIR": Downstream(
        "retrieval after fine-tuning, Flickr30k",
        "retrieval/flickr30k_uniter_base",
        "retrieval/uniter_small",
        "vlp retrieve RUN --split test",
    ),
    "ZSIR": Downstream(
        "zero-shot retrieval, Flickr30k", None, None, "vlp retrieve RUN --data data/flickr30k --split test"
    ),
    "IC": Downstream(
        "captions, COCO",
        "captioning/coco_oscar_base",
        "captioning/oscar_small",
        "vlp evaluate RUN --split test --beams 5",
    ),
    "NOC": Downstream(
        "captions that name new objects, nocaps",
        "captioning/coco_oscar_base",
        "captioning/oscar_small",
        "vlp evaluate RUN --data data/nocaps --search constrained --beams 5",
    ),
    "pictures": Downstream(
        "pictures of texts, COCO", None, None, 'vlp generate RUN --text "a red circle" --count 8 --out drawn.png'
    ),
}
# objectives of systems that the recipes' own don't fit: without attention over both images; without masked words
PAIRS = "objectives.0.objectives=[{type: paired_images, shown: own}]"
WRITES = "objectives.0.objectives=[{type: captioning}]"
CELLS = [
    Cell("vilbert_base", "VQA", "test-dev 70.55, test-std 70.92"),
    Cell("vilbert_base", "VCR", "test 73.30 (Q->A), 74.60 (QA->R), 54.80 (Q->AR)"),
    Cell("vilbert_base", "GRE", "on detected regions 72.34 (val), 78.52 (A), 62.61 (B)"),
    Cell("vilbert_base", "ITIR", "58.20 for images"),
    Cell("vilbert_base", "ZSIR", "31.86 for images"),
    Cell("twelve_in_one", "VQA", "test-dev 73.15, test-std 73.4", "twelve_in_one", group="vqa"),
    Cell("twelve_in_one", "GQA", "test-std 60.65", "twelve_in_one", group="gqa"),
    Cell("twelve_in_one", "NLVR2", "test-P 78.87", "twelve_in_one", group="nlvr2"),
    Cell("twelve_in_one", "VE", "test 76.95", "twelve_in_one", group="entailment"),
    Cell("twelve_in_one", "GRE", "RefCOCOg on detected regions 76.35", "twelve_in_one", group="refcocog"),
    Cell("twelve_in_one", "ITIR", "67.9 for images; COCO 1K 65.2", "twelve_in_one", group="retrieval"),
    Cell("lxmert_base", "VQA", "test-dev 72.42, test-std 72.54"),
    Cell("lxmert_base", "GQA", "test-dev 60.00, test-std 60.33"),
    Cell("lxmert_base", "NLVR2", "dev 74.95, test-P 74.45", changed=f"'{PAIRS}'"),
    Cell("visualbert_base", "VQA", "test-dev 70.80, test-std 71.00"),
    Cell("visualbert_base", "VCR", "test 71.6 (Q->A), 73.2 (QA->R), 52.4 (Q->AR)"),
    Cell("visualbert_base", "NLVR2", "dev 67.4, test-P 67.0"),
    Cell("visualbert_base", "phrases", "test R@1 71.33"),
    Cell("unicoder_vl_base", "ITIR", "71.5 for images, 86.2 for texts"),
    Cell("unicoder_vl_base", "ZSIR", "48.4 for images, 64.3 for texts"),
    Cell("unicoder_vl_base", "VCR", "test 73.4 (Q->A), 74.4 (QA->R), 54.9 (Q->AR)"),
    Cell("vlbert_base", "VQA", "test-dev 71.16"),
    Cell("vlbert_base", "VCR", "val 73.8 (Q->A), 74.4 (QA->R), 55.2 (Q->AR)"),
    Cell("vlbert_base", "GRE", "on detected regions 71.60 (val), 77.72 (A), 60.99 (B)"),
    Cell("b2t2_large", "VCR", "test 72.6 (Q->A), 75.7 (QA->R), 55.0 (Q->AR)"),
    Cell("vlp_base", "IC", "BLEU-4 36.5, METEOR 28.4, CIDEr 116.9, SPICE 21.2", "captioning/vlp_base"),
    Cell("vlp_base", "VQA", "test-dev 70.5, test-std 70.7", "vqa/vlp_base"),
    Cell("uniter_base", "VQA", "test-dev 72.70, test-std 72.91"),
    Cell("uniter_base", "VCR", "test 75.00 (Q->A), 77.20 (QA->R), 58.20 (Q->AR)"),
    Cell("uniter_base", "NLVR2", "dev 77.18, test-P 77.85"),
    Cell("uniter_base", "VE", "val 78.59, test 78.28"),
    Cell("uniter_base", "GRE", "83.66 (val), 86.19 (A), 78.89 (B); on detected regions 75.31, 81.30, 65.58"),
    Cell("uniter_base", "ITIR", "72.52 for images, 85.90 for texts"),
    Cell("uniter_base", "ZSIR", "66.16 for images, 80.7 for texts"),
    Cell("imagebert_base", "ITIR", "73.1 for images, 87.0 for texts"),
    Cell("imagebert_base", "ZSIR", "54.3 for images, 70.7 for texts"),
    Cell("xgpt_base", "IC", "BLEU-4 37.2, CIDEr 120.1, as others report it", changed=f"'{WRITES}'"),
    Cell("xgpt_base", "ITIR"),
    Cell("oscar_base", "VQA", "test-dev 73.16, test-std 73.44"),
    Cell("oscar_base", "GQA", "test-dev 61.58, test-std 61.62"),
    Cell("oscar_base", "NLVR2", "dev 78.07, test-P 78.36"),
    Cell("oscar_base", "ITIR", "COCO 5K 54.0 for images, 70.0 for texts"),
    Cell("oscar_base", "IC", "BLEU-4 36.5, CIDEr 123.7", "captioning/oscar_base"),
    Cell("oscar_base", "NOC"),
    Cell("clip_vit_b32", "ZSIR", "58.8 for images, 78.9 for texts"),
    Cell("wenlan_base", "ZSIR"),
    Cell("dalle_base", "pictures"),
    Cell("cogview_base", "pictures"),
]
