"""What a file of weights, or one beside it, says of the model that no shape tells: activations and heads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPENAI = ("input_resolution", "context_length", "vocab_size")  # keys that OpenAI's files have beside the weights
IMAGE, TEXT, WHOLE = "model.image", "model.text", "model"
# activations as they are called in configurations; those that are missing are not compared
_ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

Settings = dict[str, Any]  # `activation`, `heads`; what isn't known is left out


@dataclass(frozen=True)
class Declared:
    """`source`: what says so, in words. `parts`: settings of parts of the model, by name."""

    source: str
    parts: dict[str, Settings]


def declared(path: Path, names: Iterable[str]) -> list[Declared]:
    """What is said of the weights of a file with tensors of these names, by their names and by `open_clip_config.json`
    and Hugging Face's `config.json` in its folder.

    Sources: openai/CLIP, clip/model.py (build_model); open_clip, model.py (CLIPVisionCfg, CLIPTextCfg); transformers,
    models/clip/configuration_clip.py, models/siglip/configuration_siglip.py.

    Raises:
        ValueError: such a file is there and can't be read.
    """
    found = []
    if set(OPENAI) <= set(names):
        own = {"activation": "quick_gelu"}
        found.append(Declared(f"{path} (its keys {', '.join(OPENAI)} are OpenAI's)", {IMAGE: own, TEXT: own}))
    for name, read in (("open_clip_config.json", _open_clip), ("config.json", _transformers)):
        beside = path.parent / name
        if not beside.is_file():
            continue
        try:
            said = json.loads(beside.read_text(encoding="utf-8"))
            parts = read(said) if isinstance(said, dict) else {}
        except (ValueError, TypeError, AttributeError, KeyError, ZeroDivisionError) as error:
            raise ValueError(
                f"{beside} lies beside the weights and can't be read ({type(error).__name__}: {error}); mend it, or"
                " move it away if it is not of these weights"
            ) from error
        found.append(Declared(f"{beside} (move it away if it is not of these weights)", parts))
    return found


def _open_clip(said: dict[str, Any]) -> dict[str, Settings]:
    model = said.get("model_cfg", {})
    image, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    parts: dict[str, Settings] = {}
    if "width" in image and isinstance(image.get("layers"), int) and "timm_model_name" not in image:
        parts[IMAGE] = {"heads": image["width"] // image.get("head_width", 64)}
    if "width" in text and "hf_model_name" not in text:
        parts[TEXT] = {"heads": text.get("heads", 8)}
    for own, part in ((image, IMAGE), (text, TEXT)):
        if part in parts:
            exact = (own.get("act_kwargs") or {}).get("approximate", "none") == "none"
            plain = "gelu" if exact else "gelu_tanh"
            parts[part]["activation"] = "quick_gelu" if model.get("quick_gelu") else plain
    return parts


def _transformers(said: dict[str, Any]) -> dict[str, Settings]:
    if "vision_config" not in said and "text_config" not in said:
        return {WHOLE: _of_transformer(said, {})}
    # older files leave out what is the default
    defaults: dict[str, Settings] = {IMAGE: {}, TEXT: {}}
    usual = {"clip": {"hidden_act": "quick_gelu"}, "siglip": {"hidden_act": "gelu_pytorch_tanh"}}
    if said.get("model_type") in usual:
        own = usual[said["model_type"]]
        defaults = {IMAGE: own, TEXT: own}
    return {
        part: _of_transformer(said.get(key) or {}, defaults[part])
        for part, key in ((IMAGE, "vision_config"), (TEXT, "text_config"))
    }


def _of_transformer(said: dict[str, Any], defaults: Settings) -> Settings:
    said = {**defaults, **said}
    own = {"activation": _ACTIVATIONS.get(said.get("hidden_act", "")), "heads": said.get("num_attention_heads")}
    return {key: value for key, value in own.items() if value is not None}
