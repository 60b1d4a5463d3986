"""Fonts for the texts of pages."""

from __future__ import annotations

import pytest
from matplotlib import font_manager

from vlp.evaluation.lettering import OWN, families


def test_fonts_have_the_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A letter that matplotlib's own font lacks is looked for in the others that are installed."""
    only_stix = "\ue000"  # of those that come with matplotlib
    bundled = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", bundled)
    assert families(["a red circle", "caf\u00e9"]) == [OWN]
    assert families(["a", only_stix]) == [OWN, "STIXNonUnicode"]
    assert families(["\u7ea2"]) is None  # though a font of boxes has it
