"""At their published sizes: the shipped configs give checkpoints with the official numbers of entries and parameters.

The numbers are those of the official modules, built with random weights: BertForMultiModalPreTraining (6 layers, 6
co-attention layers) has 533 entries and 250,044,029 parameters, LXRTPretraining (9/5/5, 9500 answers) 473 and
228,051,752, a tied decoder counting as an entry but not as parameters.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vlp.build import build_model
from vlp.checkpoints.importers.volta import sublayers
from vlp.checkpoints.key_map import export_state
from vlp.config import load_config
from vlp.needs import FeatureFacts
from vlp.objectives.answering import Answering
from vlp.objectives.masked_language import MaskedLanguage
from vlp.objectives.masked_region import MaskedRegionDistribution
from vlp.objectives.matching import Matching
from vlp.objectives.region_prediction import RegionPrediction
from vlp.registry import IMPORTERS

CONFIGS = Path(__file__).parent.parent.parent / "configs"
CLASSES = 1601  # the detector's 1600 and the background


def exported(name: str, importer: str) -> tuple[int, int]:
    """Entries and parameters of the official file that the shipped config's model would be written to."""
    with torch.device("meta"):
        facts = FeatureFacts(2048, CLASSES)
        model = build_model(load_config(CONFIGS / f"{name}.yaml").model, {"CLS": 101, "SEP": 102}, facts)
        objectives = {"masked_language": MaskedLanguage(model, 103, [], 0.15, ["caption"])}
        objectives["matching"] = Matching(model, 0.5)
        if importer == "vilbert":
            objectives["masked_region_distribution"] = MaskedRegionDistribution(model, CLASSES, 0.15)
        else:
            predict = ["feature", "class", "attribute"]
            objectives["region_prediction"] = RegionPrediction(model, CLASSES, 0.15, predict, 400)
            objectives["answering"] = Answering(model, 9500)
    whole = nn.ModuleDict({"model": model, "objectives": nn.ModuleDict(objectives)})
    state = export_state(dict(whole.named_parameters()), IMPORTERS[importer])
    return len(state), sum(value.numel() for value in whole.parameters())


def test_vilbert() -> None:
    unused = 1024 * 1024 + 1024 + 768 * 1024 + 768  # two layers of each of the six co-attention layers
    assert exported("vilbert_base", "vilbert") == (533 - 6 * 4, 250_044_029 - 6 * unused)


def test_lxmert() -> None:
    assert exported("lxmert_base", "lxmert") == (473, 228_051_752)


def test_volta_numbers_its_sublayers_as_the_published_configurations() -> None:
    """config/ctrl_vilbert_base.json and config/ctrl_lxmert.json: the attention sublayers of each kind."""
    schedule = ["text"] * 6 + ["cross", "text", "visual"] * 6
    first = {kind: [f for k, _, f in sublayers(schedule, False) if k == kind] for kind in ("text", "visual", "cross")}
    assert first["text"] == [0, 2, 4, 6, 8, 10, 14, 18, 22, 26, 30, 34]
    assert first["visual"] == [14, 18, 22, 26, 30, 34]
    assert first["cross"] == [12, 16, 20, 24, 28, 32]
    schedule = ["text", "visual"] * 5 + ["text"] * 4 + ["cross"] * 5
    first = {kind: [f for k, _, f in sublayers(schedule, True) if k == kind] for kind in ("text", "visual", "cross")}
    assert first["text"] == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert first["visual"] == [0, 2, 4, 6, 8]
    assert first["cross"] == [18, 21, 24, 27, 30]
