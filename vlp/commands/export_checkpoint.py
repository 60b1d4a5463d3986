"""Write the weights of a run in another layout.

`hf` is the layout of Hugging Face's transformers, for systems that it has: DIR opens with `from_pretrained` of the
class that is printed. `open_clip` (and `open_clip_custom_text` for models to which open_clip gives a text tower of
their own, as SigLIP): open_clip opens DIR as `local-dir:DIR`. Any layout that `vlp import` reads is written too, as
DIR/model.safetensors. Nothing is overwritten.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import save
from torch import Tensor

import vlp
from vlp.checkpoints.importers import dalle, lxmert, visualbert
from vlp.checkpoints.key_map import KeyMismatchError, export_state
from vlp.checkpoints.load import write_atomically
from vlp.commands.command import open_console, options_of, run_command
from vlp.config import ConfigError
from vlp.inference import TrainedModel
from vlp.nn.towers.open_clip import open_clip_config
from vlp.registry import IMPORTERS
from vlp.run_folder import RunFolder
from vlp.text.choose import CLIP

OPEN_CLIP = ["open_clip", "open_clip_custom_text"]
MOST_SHOWN = 600  # characters of what is wrong with a layout
OF_MODEL = ["dalle_pytorch", "dalle_pytorch_shared"]  # layouts that say more of the model than its weights do
# layouts without objectives, as the queues of momentum_contrast
MODEL_ALONE = [*OPEN_CLIP, "open_clip_transformers_text", "clip_transformers", "siglip_transformers"]
# the layouts of transformers: from our `model` block and their weights to config.json, and what a user should know
HF: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], tuple[dict[str, Any], str]]] = {
    "lxmert_transformers": lxmert.hf_config,
    "visualbert_hf": visualbert.hf_config,
}


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = options_of(
        "export", __doc__, ["export runs/lxmert --to hf --out lxmert-hf", "export runs/clip --to open_clip --out clip"]
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or one of its weight files")
    parser.add_argument(
        "--to", required=True, choices=["hf", *IMPORTERS], metavar="LAYOUT", help=f"one of: hf, {', '.join(IMPORTERS)}"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    return parser.read(arguments)


def exported(trained: TrainedModel, to: str) -> tuple[str, dict[str, Tensor]]:
    """The layout and the weights in it; for `hf` the first of transformers' layouts that the run fits.

    Raises:
        KeyMismatchError: the run has other tensors than the layout; for `hf`, than each of them.
        ConfigError: `hf` for a dual encoder.
    """
    if to == "hf" and trained.dual:
        raise ConfigError("--to hf writes LXMERT and VisualBERT; for a dual encoder take --to open_clip")
    faults: list[str] = []
    for layout in HF if to == "hf" else [to]:
        try:
            return layout, _translated(trained, layout)
        except KeyMismatchError as error:
            faults.append(f"{layout}: {error}")
    told = "transformers has no class for this run" if to == "hf" else f"the run has other tensors than {to}"
    fitting = [layout for layout in IMPORTERS if _fits(trained, layout)]
    raise KeyMismatchError(
        f"{told}; layouts that it can be written in: {', '.join(fitting) or 'none, since all want other heads'}"
        + "".join(f"\n{fault}" for fault in faults if len(fault) < MOST_SHOWN)  # a few tensors are worth naming
    )


def _translated(trained: TrainedModel, layout: str) -> dict[str, Tensor]:
    state = trained.state_dict()
    if layout in MODEL_ALONE:
        state = {name: value for name, value in state.items() if name.startswith("model.")}
    theirs = export_state(state, IMPORTERS[layout])
    if layout in OF_MODEL:
        model = trained.model
        return dalle.as_saved(theirs, model.reversible, model.shape.token_shift, model.angles)
    return theirs


def _fits(trained: TrainedModel, layout: str) -> bool:
    try:
        _translated(trained, layout)
    except KeyMismatchError:
        return False
    return True


def export_checkpoint(options: argparse.Namespace, console: Console) -> None:
    """Load, translate, write."""
    RunFolder(options.out).refuse_if_used()
    trained = vlp.load(options.run)
    settings = {}
    if options.to in OPEN_CLIP:
        if not trained.dual:
            raise ConfigError(f"--to {options.to} writes dual encoders, and this run is none")
        settings = open_clip_config(trained.config.model, trained.tokenizer.special)
        if bool(settings["model_cfg"].get("custom_text")) != (options.to == "open_clip_custom_text"):
            fitting = OPEN_CLIP[1 - OPEN_CLIP.index(options.to)]
            raise ConfigError(f"open_clip has another class for {trained.config.model['text']['name']}: --to {fitting}")
    layout, weights = exported(trained, options.to)
    files = {}
    if layout in HF:
        settings, note = HF[layout](trained.config.model, weights)
        weights = {name: value for name, value in weights.items() if name not in IMPORTERS[layout].ties}
        lowercase = trained.tokenizer.lowercase
        files = {
            "config.json": json.dumps(settings, indent=1),
            "vocab.txt": "\n".join(trained.tokenizer.tokens) + "\n",
            "tokenizer_config.json": json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}),
        }
        console.print(f"opens with transformers.{settings['architectures'][0]}.from_pretrained({str(options.out)!r})")
        if note:
            console.print(f"note: {note}", markup=False, soft_wrap=True)
    weights_file = "model.safetensors"
    if layout in OPEN_CLIP:
        files, weights_file = {"open_clip_config.json": json.dumps(settings, indent=1)}, "open_clip_model.safetensors"
        console.print(f"opens with open_clip.create_model_and_transforms('local-dir:{options.out}')", soft_wrap=True)
        listed = trained.config.data.tokenizer
        if listed is None or listed.vocabulary != CLIP:
            console.print("note: open_clip has no tokenizer of this vocabulary; give it ids", soft_wrap=True)
    partial = options.out.with_name(f".{options.out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a command that was killed
    partial.mkdir(parents=True)
    for name, text in files.items():
        write_atomically(partial / name, text.encode())
    plain = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    write_atomically(partial / weights_file, save(plain, {"format": "pt"}))
    partial.rename(options.out)
    console.print(
        f"written: {options.out}, {len(weights)} tensors in the layout {layout}", markup=False, soft_wrap=True
    )


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    return run_command(lambda given: export_checkpoint(read_arguments(given), open_console()), arguments)
