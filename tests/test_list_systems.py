"""The page of all systems is what its command writes, and what it says is in the configs and the parity tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import list_systems

ROOT = Path(__file__).parent.parent


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "list_systems.py")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout == (ROOT / "docs" / "systems.md").read_text(), (
        "run: python tools/list_systems.py > docs/systems.md"
    )


def test_every_config_is_there_once() -> None:
    page = list_systems.page()
    for path in (ROOT / "configs").glob("*.yaml"):
        assert page.count(f"](../configs/{path.name})") == 1
        assert (f"| [{path.stem}]" in page) == ("et al." in list_systems.aim(path) or " and " in list_systems.aim(path))


def test_a_row_by_hand() -> None:
    row = (
        "| LXMERT | two_stream | two_stream | masked_language + region_prediction + matching + answering |"
        " [lxmert_base](../configs/lxmert_base.yaml) | lxmert/nlvr2, lxmert/pretraining, lxmert/vqa |"
        " VQA test-dev 72.42, GQA test-dev 60.00, NLVR2 test-P 74.45 (Tan and Bansal 2019) |"
    )
    assert row in list_systems.page().splitlines()


@pytest.mark.parametrize(
    ("text", "name", "results"),
    [
        ("Oscar+ base, VinVL features, VQA 1.2", "Oscar+ base", "VinVL features, VQA 1.2"),
        ("V (six layers, CC): VQA 70.55", "V (six layers, CC)", "VQA 70.55"),
        ("V-B/32 after 200,000 steps: VQA 71.26", "V-B/32 after 200,000 steps", "VQA 71.26"),
        ("VQA 67.52, NLVR2 71.09 (X 2021)", "file", "VQA 67.52, NLVR2 71.09 (X 2021)"),
    ],
)
def test_names(text: str, name: str, results: str) -> None:
    assert list_systems.name_and_results(text, "file") == (name, results)


def test_the_aim_ends_with_its_citation(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for top, expected in (
        (
            "# c\n# Two cores. Aims at: A: b 1.0 (c),\n# d (E et al. 2019). More: f (G 2020).\n",
            "A: b 1.0 (c), d (E et al. 2019)",
        ),
        (
            "# Aims at, fine-tuned: b 1.0\n# (controlled A, C et al. 2021; of D).\n",
            "b 1.0 (controlled A, C et al. 2021; of D)",
        ),
        ("# Aims at: R@1 of 50 %.\n", ""),
        ("# Nothing (A 2020).\n", ""),
    ):
        path.write_text(top + "seed: 1\n# Aims at: Z: 1 (Z 2000)\n")
        assert list_systems.aim(path) == expected


def test_cases_that_no_test_names_do_not_count() -> None:
    cases = list_systems.parity_cases()
    tasks = {"beta_vl_tasks", "vl_tasks", "vl_tasks_task_token_dynamic"}
    assert cases["vilbert"] == {*tasks, *(f"pretraining_visual_target{n}" for n in range(3))}
    assert cases["vilt"] == {"optimal_transport", "pretrain"}
    assert list_systems.parity_of("b2t2_large", cases) == []
    made_up = {"volta": {"ctrl_lxmert", "ctrl_vilbert"}, "oscar": {"a", "b"}}
    assert list_systems.parity_of("volta_lxmert_base", made_up) == ["volta/ctrl_lxmert"]
    assert list_systems.parity_of("oscar_plus_base", made_up) == ["oscar/a", "oscar/b"]
    assert list_systems.parity_of("oscars_base", made_up) == []
