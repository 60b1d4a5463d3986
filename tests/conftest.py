"""Options and fixtures for all tests."""

from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        default=str(Path(__file__).parent / "parity" / "golden"),
        help="folder of SYSTEM/CASE.safetensors files to compare with",
    )


def pytest_configure() -> None:
    torch.set_num_threads(1)  # the models are tiny; threads would only fight over the cores


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
