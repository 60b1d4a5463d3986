"""Golden files: reading, and the book-keeping that leaves no recorded tensor unread."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

# absolute on states and logits, relative on losses, relative + absolute on gradient norms
STATES = {"atol": 2e-5, "rtol": 0.0}
LOSSES = {"atol": 1e-7, "rtol": 1e-5}
GRADIENTS = {"atol": 1e-5, "rtol": 1e-4}


@dataclass
class Golden:
    """One golden file. Tensors under `outputs` and `grads` must all be read or excused."""

    path: Path
    weights: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    grads: dict[str, Tensor] = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)
    differences: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Golden:
        """Read a file: tensors by group (the fields of this class) and name; its configuration is in the metadata."""
        golden = cls(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            golden.config = json.loads(metadata["config"])
            golden.ties = json.loads(metadata.get("tied_weights", "{}"))
            for key in file.keys():  # noqa: SIM118, not a dict
                group, name = key.split("/", 1)
                getattr(golden, group)[name] = file.get_tensor(key)
        for tied, original in golden.ties.items():
            golden.weights[tied] = golden.weights[original]
        return golden

    def check(self, name: str, actual: Tensor, rows: Tensor | None = None, **tolerance: float) -> None:
        """Compare `outputs/name`, or its chosen `rows` (bool mask), and note it as read."""
        expected = self.outputs[name] if rows is None else self.outputs[name][rows]
        self._compare(f"outputs/{name}", actual, expected, tolerance)

    def check_gradient(self, name: str, norm: Tensor) -> None:
        """Compare the norm of a gradient with `grads/name`."""
        self._compare(f"grads/{name}", norm, self.grads[name], GRADIENTS)

    def excuse(self, name: str, reason: str) -> None:
        """Leave a recorded tensor unread, for a stated reason."""
        assert reason
        self.checked.add(name)

    def assert_all_read(self) -> None:
        """Fail if a recorded output or gradient was neither compared nor excused."""
        recorded = {f"outputs/{name}" for name in self.outputs} | {f"grads/{name}" for name in self.grads}
        assert recorded, f"{self.path} records nothing"
        assert not recorded - self.checked, f"never compared: {sorted(recorded - self.checked)}"
        worst = sorted(self.differences.items(), key=lambda item: -item[1])[:3]
        print(f"\n{self.path.parent.name}/{self.path.stem}: largest differences", worst)

    def _compare(self, key: str, actual: Tensor, expected: Tensor, tolerance: dict[str, float]) -> None:
        actual = actual.detach()
        assert actual.shape == expected.shape, f"{key}: {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        self.differences[key] = float((actual - expected).abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(actual, expected, msg=lambda text: f"{key}: {text}", **tolerance)
        self.checked.add(key)


def golden_cases(folder: str, system: str, case: str) -> list[Path]:
    """Files of the system whose name is `case` or begins with it and an underscore, anywhere below the folder."""
    return sorted(
        path
        for path in Path(folder).rglob("*.safetensors")
        if path.parent.name == system and (path.stem == case or path.stem.startswith(case + "_"))
    )


def single_stream_sizes(c: dict[str, Any]) -> dict[str, Any]:
    """What the `model` blocks of all single-stream systems have in common, given BERT's configuration."""
    return {
        "type": "single_stream",
        "hidden_size": c["hidden_size"],
        "layers": c.get("num_hidden_layers", 0),
        "heads": c["num_attention_heads"],
        "mlp_size": c["intermediate_size"],
        "dropout": c["hidden_dropout_prob"],
        "attention_dropout": c["attention_probs_dropout_prob"],
        "norm_eps": 1e-12,
        "initial_std": c["initializer_range"],
    }


def text_tables(c: dict[str, Any]) -> dict[str, int]:
    """The sizes of BERT's three tables, as an embedder has them."""
    return {
        "vocab_size": c["vocab_size"],
        "positions": c["max_position_embeddings"],
        "types": c["type_vocab_size"],
    }
