"""A run takes no more memory in its thirtieth epoch than in its twelfth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.scenes.build import build_scenes

ROOT = Path(__file__).parent.parent.parent
PAIRS, BATCH, STEPS = 200, 8, 750  # 40 scenes with five captions each: 30 epochs
OVERRIDES = ["model.hidden_size=32", "model.mlp_size=64", "model.layers=2", "model.heads=2"]
OVERRIDES += ["model.embedder.vocab_size=300", "trainer.accelerator=cpu", "optim.warmup_steps=2"]
OVERRIDES += [f"trainer.max_steps={STEPS}", f"data.micro_batch={BATCH}", "validation.every=100"]
OVERRIDES += ["validation.micro_batches=2", "checkpoint.every=100", "logging=[csv]"]


def family(process: int) -> list[int]:
    """A process and those that it started, and they."""
    own = Path(f"/proc/{process}/task").glob("*/children")
    return [process, *(one for path in own for child in path.read_text().split() for one in family(int(child)))]


def memory(process: int) -> int:
    """Bytes that a process and those that it started hold, but for files, which they share with others."""
    told = [Path(f"/proc/{one}/status").read_text() for one in family(process)]
    return sum(int(text.split(f"\n{kind}:")[1].split()[0]) for text in told for kind in ("RssAnon", "RssShmem")) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which tells a process's memory")
def test_memory_stays_as_it_is_over_epochs(tmp_path: Path) -> None:
    """With a loader process, validation, checkpoints and a table of the losses. 400 steps may not take 16 MB: 40 KB
    that were kept in each would show, and a batch has 260.
    """
    build_scenes(tmp_path / "data" / "scenes", PAIRS // 5, 12, 0, lambda text: None, processes=1)
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "vlp", "train", "uniter_small", f"data.root={tmp_path}/data", f"run_dir={run_dir}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    seen: dict[int, int] = {}
    with open(tmp_path / "told", "w") as told:
        running = subprocess.Popen([*command, *OVERRIDES], cwd=ROOT, env=environment, stdout=told, stderr=told)
        while running.poll() is None:
            try:
                step = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
                seen[step] = memory(running.pid)
            except (OSError, IndexError, ValueError):  # not begun yet, in the midst of a line, or over
                pass
            time.sleep(0.1)
    assert running.returncode == 0, (tmp_path / "told").read_text()
    early, late = ([seen[step] for step in seen if low <= step < low + 100] for low in (250, 650))
    assert min(len(early), len(late)) >= 3
    assert sorted(late)[len(late) // 2] - sorted(early)[len(early) // 2] < 16 << 20
