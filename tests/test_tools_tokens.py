"""Token decoders through the command: trained on the codes of a coder's run, resumed, opened, what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_tools_train import run

import vlp
from data_pipelines.batches import collate
from data_pipelines.scenes.build import build_scenes
from data_pipelines.sources.source import Source
from vlp.build import loads_of
from vlp.writing.searches import greedy

ROOT = Path(__file__).parent.parent
CODER = "{type: discrete_vae, codes: 20, code_size: 8, width: 8, strides: [4, 2]%s}"
SIZES = [
    "model.pixels={size: 32, resize: squash}",
    "data.micro_batch=4",
    "data.micro_batches_per_step=2",
    "data.workers=0",
    "trainer.max_steps=4",
    "trainer.accelerator=cpu",
    "optim.warmup_steps=2",
    "validation={every: 3, micro_batches: 2, split: val}",
    "checkpoint={every: 2, keep: 5}",
]
DECODER = [
    "model.hidden_size=32",
    "model.layers=2",
    "model.heads=2",
    "model.head_size=16",
    "model.mlp_size=64",
    "model.vocab_size=1000",
    "model.max_tokens={caption: 12}",
    "data.tokenizer={vocabulary: scenes/vocabulary.txt, lowercase: true}",
]
OF_SYSTEMS = {
    "dalle_base": ["model.patterns=[previous_row, column]", "model.positions=rotary", "model.token_shift=true"],
    "cogview_base": ["model.windows={size: 4, times: 2, pivots: 16}"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder / "scenes", 20, 6, 0, lambda text: None, processes=1)
    return folder


def train(config: str, root: Path, run_dir: Path, *overrides: str) -> subprocess.CompletedProcess:
    places = [f"data.root={root}", f"run_dir={run_dir}"]
    return run("train.py", str(ROOT / f"configs/{config}.yaml"), *places, *overrides)


@pytest.fixture(scope="module")
def coder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "coder"
    result = train("dvae_small", root, run_dir, *SIZES, f"model.pictures={CODER % ''}")
    assert result.returncode == 0, result.stderr
    return run_dir


@pytest.fixture(scope="module", params=OF_SYSTEMS)
def finished(request: pytest.FixtureRequest, root: Path, coder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / request.param
    own = [f"model.pictures={CODER % f', weights: {coder}'}", *OF_SYSTEMS[request.param]]
    result = train(request.param, root, run_dir, *SIZES, *DECODER, *own)
    assert result.returncode == 0, result.stderr
    assert "words and codes" in result.stdout
    return run_dir


def rows(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "loss" in k or k in ("step", "group")} for row in lines]


def digest(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "model.safetensors").read_bytes()).hexdigest()


def test_the_coder_is_in_the_run_and_stays_as_it_was(finished: Path, coder: Path) -> None:
    own, its = load_file(finished / "model.safetensors"), load_file(coder / "model.safetensors")
    pictures = {name: value for name, value in its.items() if name.startswith("model.pictures.")}
    assert len(pictures) > 5
    assert pictures.keys() == {name for name in own if name.startswith("model.pictures.")}
    assert all(torch.equal(own[name], value) for name, value in pictures.items())


def test_resuming_is_exact(finished: Path) -> None:
    """Pivots and all."""
    before = rows(finished), digest(finished)
    assert [row["step"] for row in before[0]] == [1, 2, 3, 4]
    config = finished.name
    checkpoint = finished / "checkpoints" / "step-00000002.ckpt"
    resumed = run("train.py", str(ROOT / f"configs/{config}.yaml"), f"run_dir={finished}", f"resume={checkpoint}")
    assert resumed.returncode == 0, resumed.stderr
    assert (rows(finished), digest(finished)) == before


def test_a_run_writes_pictures(finished: Path, root: Path) -> None:
    run = vlp.load(finished)
    model = run.model
    source = Source("scenes", root / "scenes", "val", run.tokenizer, loads_of(run.config))
    batch = collate([source.load(number) for number in range(3)], "scenes", 0, 0, [])
    cells = model.template.cells
    texts = greedy(model.writer(batch, "codes"), 3, cells, None, torch.device("cpu"))
    codes = torch.tensor([text.tokens for text in texts])
    assert codes.shape == (3, 16)
    pictures = model.pictures.decode(codes)
    assert (pictures.dtype, pictures.shape) == (torch.uint8, (3, 32, 32, 3))
    # of the batch's own pixels, as in training
    seen = model.see(batch.images).codes
    assert torch.equal(seen, model.pictures.encode(batch.images))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.pictures={type: vq_vae, codes: 20, code_size: 8, width: 8, weights: CODER}"],
            "model.pictures.weights: ",
        ),
        (["model.pictures={type: vq_vae, codes: 20, code_size: 8, width: 8, weights: runs/none}"], "runs/none"),
        (["model.vocab_size=10"], "model.vocab_size is 10, but the vocabulary"),
        (["model.patterns=[rows]"], "patterns has rows; choose from around"),
        (["model.padding=end"], "codes that stand at the same places"),
        (["model.heads=none"], "model: heads must be of type int"),
        (
            ["objectives.0.objectives=[{type: masked_language, probability: 0.1, segments: [caption]}]"],
            "no objective of",
        ),
    ],
)
def test_refused(root: Path, coder: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    own = [f"model.pictures={CODER % ''}", *OF_SYSTEMS["dalle_base"]]
    given = [text.replace("CODER", str(coder)) for text in overrides]
    result = train("dalle_base", root, tmp_path / "run", *SIZES, *DECODER, *own, *given)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert message in " ".join((result.stdout + result.stderr).split())


def test_a_coder_takes_no_weights_of_a_coder(root: Path, coder: Path, tmp_path: Path) -> None:
    own = f"model.pictures={CODER % f', weights: {coder}'}"
    result = train("dvae_small", root, tmp_path / "run", *SIZES, own)
    assert result.returncode == 1
    assert "a coder that is trained begins with the weights of `init`" in " ".join(
        (result.stdout + result.stderr).split()
    )
