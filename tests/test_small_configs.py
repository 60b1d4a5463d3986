"""The small configurations read the texts of the embedded scenes whole."""

from __future__ import annotations

from pathlib import Path

import pytest

import vlp
from data_pipelines.scenes.build import build_scenes
from data_pipelines.sources.vocabulary_fit import vocabulary_fit
from vlp.commands.train import open_data
from vlp.config import load_config
from vlp.run_folder import tokenizer_of

ROOT = Path(vlp.__file__).parent.parent / "configs"
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.rglob("*_small*.yaml")}
NAMES = sorted(name for name, text in TEXTS.items() if "scenes: {" in text and "max_tokens: {}" not in text)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("name", NAMES)
def test_texts_of_the_scenes_are_read_whole(name: str, root: Path) -> None:
    """Chinese captions were cut once, which hid the second object of most, and showed in no loss."""
    config = load_config(ROOT / name, [f"data.root={root}"])
    for listed in config.data.sources:
        s, folder = listed.scenes, root / listed.path
        if s is not None and not folder.is_dir():
            build_scenes(folder, 120, 12, 0, lambda line: None, 0, s.asks, s.objects, s.language)
    sources, _ = open_data(config, tokenizer_of(config), "train")
    for source in sources:
        fit = vocabulary_fit(source)
        assert (fit.cut, fit.unusable, fit.unknown) == (0, 0, 0), str(fit)
        assert fit.texts >= 100
