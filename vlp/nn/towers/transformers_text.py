"""Encoders of Hugging Face's transformers as text towers; nothing of them is written anew.

Only this file of the package imports transformers, which is an extra.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlp.contracts import Start

INSTALL = "pip install 'vlp[transformers]'"
CODE = ("auto_map", "custom_pipelines", "quantization_config")  # keys that ask for code of other files or packages
# of a config.json what is not read: where it was, what wrote it, and names of kernels, which may be on a hub
NOT_READ = ("_name_or_path", "transformers_version", "_implementation", "_implementation_internal")


def transformers() -> Any:
    """The package.

    Raises:
        ValueError: it is not installed, or a package that it needs is of an older version than it asks for.
    """
    try:
        import transformers as package  # only here, since it is an extra, and takes seconds
    except ImportError as error:
        raise ValueError(f"a text tower of transformers needs that package: {INSTALL} ({error})") from error
    return package


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and tables that transformers prints; what is in them is said by others."""
    logging = transformers().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_config(folder: str) -> dict[str, Any]:
    """The `config.json` of a folder, as it is.

    Raises:
        ValueError: there is none, or it can't be read.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"folder: there is no {path}; it is a folder with config.json, tokenizer.json and weights, on this"
            " machine, as save_pretrained of transformers writes it: nothing is downloaded"
        )
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} can't be read: it is no mapping")
    return said


def whole_config(folder: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` says with the keys of `config` set otherwise; one with `model_type` is whole by itself.

    Raises:
        ValueError: see `read_config`; or there is neither; or it asks for code that is not of transformers.
    """
    if "model_type" not in config and folder is None:
        raise ValueError("folder is missing: that of an encoder; or config, with a model_type, for one at random")
    said = {} if "model_type" in config else read_config(str(folder))
    whole = {key: value for key, value in {**said, **config}.items() if not key.endswith(NOT_READ)}
    asked = [key for key in CODE if whole.get(key)]
    if asked:
        raise ValueError(
            f"the config.json of {folder} has {asked[0]}: it needs code that is not of transformers, and none is run"
        )
    return whole


def build_encoder(whole: Mapping[str, Any]) -> Any:
    """An encoder of that configuration without the pooler, weights random.

    Raises:
        ValueError: transformers has no such model, or can't build it so, or it is no encoder of texts alone.
    """
    package, kind = transformers(), whole.get("model_type")
    if kind not in package.CONFIG_MAPPING:
        raise ValueError(f"model_type: transformers {package.__version__} has no model {kind!r}")
    try:
        config = package.CONFIG_MAPPING[kind].from_dict(dict(whole))
        if config.is_encoder_decoder:
            raise ValueError("it has an encoder and a decoder, and a text tower is an encoder alone")
        if type(config) not in package.MODEL_FOR_MASKED_LM_MAPPING and (
            type(config) not in package.MODEL_FOR_TEXT_ENCODING_MAPPING
        ):
            raise ValueError("it is no model of texts that reads them in both directions")
        # those of newer models have no pooler, and no such argument
        has = "add_pooling_layer" in inspect.signature(package.MODEL_MAPPING[type(config)].__init__).parameters
        with quiet():
            encoder = package.AutoModel.from_config(
                config, trust_remote_code=False, dtype=torch.float32, **({"add_pooling_layer": False} if has else {})
            )
        if not isinstance(encoder.get_input_embeddings(), nn.Embedding):
            raise ValueError("it has no table of words")
    except Exception as error:  # what doesn't fit fails in many ways
        raise ValueError(f"transformers can't build a text encoder {kind}: {error}") from error
    return encoder


class TransformersText(nn.Module):
    """A text's embedding: of an encoder's states the first, the mean or the greatest, projected.

    The encoders that transformers' AutoModel has, as BERT, RoBERTa, XLM-R, ModernBERT. Source of pooling and
    projection: open_clip, hf_model.py (HFTextEncoder). Code of a folder is never run, nothing is downloaded.

    Args:
        special: ids of special tokens by name.
        folder: with `config.json` and weights, `model.safetensors` or `pytorch_model.bin`, which it begins with.
        config: keys of `config.json` to set otherwise. One with `model_type` is whole by itself, and the folder's is
            not read: so it stands in the configuration of a run, which needs no folder.
        pooling: `first` (the state of CLS), `mean` or `max` of all tokens, special ones too.
        embedding_size: D, by the projection; None: as the encoder, without it.
        projection: `linear`, or `mlp`: two layers with a GELU between them; without biases.

    Attributes:
        context_length: most tokens of a text, special ones included.
        full_length: whether texts are padded to that length.

    Raises:
        ValueError: see `whole_config` and `build_encoder`; or transformers is not installed; or the tokenizer lacks the
            token that `pooling` reads, or pads with another token than the encoder.
    """

    def __init__(
        self,
        special: dict[str, int],
        folder: str | None = None,
        config: dict[str, Any] | None = None,
        pooling: Literal["first", "mean", "max"] = "mean",
        embedding_size: int | None = None,
        projection: Literal["linear", "mlp"] = "linear",
    ):
        super().__init__()
        if pooling == "first" and "CLS" not in special:
            raise ValueError("pooling is first, but the tokenizer puts no token before a text; take mean")
        self.folder, self.pooling, self.full_length = folder, pooling, False
        self.backbone = build_encoder(whole_config(folder, config or {}))
        padding = self.backbone.config.pad_token_id
        if padding is not None and padding != special["PAD"]:
            raise ValueError(
                f"the encoder's padding is token {padding}, that of the vocabulary {special['PAD']}: set"
                f" data.tokenizer.vocabulary to the encoder's own{f', {folder}' if folder else ''}, or, for one at"
                " random, config.pad_token_id"
            )
        self.context_length = _longest(self.backbone)
        width: int = self.backbone.config.hidden_size
        self.embedding_size = width if embedding_size is None else embedding_size
        self.projection = None if embedding_size is None else _projection(width, embedding_size, projection)

    @classmethod
    def standing_alone(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a tower with all that its folder's `config.json` says, as a run keeps them.

        Raises:
            ValueError: see `whole_config`.
        """
        return {**settings, "config": whole_config(settings.get("folder"), settings.get("config") or {})}

    def start_weights(self) -> Start | None:
        """What the encoder begins with, if a folder is named."""
        if self.folder is None:
            return None
        return Start(self.backbone, self.folder, frozenset(), translate=self.own_tensors, vocabulary=self.folder)

    def own_tensors(self, theirs: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """The encoder's of the tensors of a file, by its names, and what has to be known of others, a line each.

        A file may be of a model with heads, or have names of older versions; transformers knows how it reads them.

        Raises:
            ValueError: a tensor of the encoder is missing, or has another shape, or the file has more layers.
        """
        kind, config = type(self.backbone), self.backbone.config
        built = {"config": config, "state_dict": theirs, "dtype": torch.float32, "ignore_mismatched_sizes": True}
        has = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
        with quiet(), torch.device("cpu"):
            model, info = kind.from_pretrained(
                None, output_loading_info=True, **built, **({"add_pooling_layer": False} if has else {})
            )
        missing, other = sorted(info["missing_keys"]), sorted(str(one[0]) for one in info["mismatched_keys"])
        begin, roots = f"{kind.base_model_prefix}.", {name for name, _ in model.named_children()}
        rest = sorted(info["unexpected_keys"])
        # of the encoder, as blocks that config.json doesn't count; its own numbers of positions are no weights
        more = [
            name
            for name in rest
            if name.removeprefix(begin).split(".")[0] in roots and not name.endswith(".position_ids")
        ]
        faults = {"missing": missing, "of another shape": other, "not known": more}
        told = "; ".join(f"{what}: {_few(names)}" for what, names in faults.items() if names)
        if told:
            raise ValueError(f"the weights are not those of {config.model_type} as config.json says: {told}")
        lines = [f"{len(rest)} tensors of heads are left out: {_few(rest)}"] if rest else []
        return model.state_dict(), lines

    @property
    def word_embeddings(self) -> Tensor:
        """The table of words [vocabulary, width]."""
        table: Tensor = self.backbone.get_input_embeddings().weight
        return table

    def layer_order(self) -> list[list[str]]:
        """The tables with their norm, then the blocks, as `vlp.contracts.AnyModel.layer_order`.

        Raises:
            ValueError: they are not known.
        """
        for name, blocks in self.backbone.named_modules():
            if isinstance(blocks, nn.ModuleList) and len(blocks) == self.backbone.config.num_hidden_layers:
                numbered = [[f"backbone.{name}.{n}"] for n in range(len(blocks))]
                return [["backbone.embeddings"], *numbered]
        raise ValueError(f"the layers of transformers' {type(self.backbone).__name__} are not known here")

    @staticmethod
    def plan(lengths: Tensor, width: int) -> None:
        """Nothing: padding goes through the encoder, which is told of it.

        Raises:
            ValueError: a text is empty.
        """
        if len(lengths) and int(lengths.min()) < 1:
            raise ValueError(f"text number {int(lengths.argmin())} of the batch has nothing")

    def forward(self, ids: Tensor, lengths: Tensor, planned: None = None) -> Tensor:
        """Embeddings [T, D], not normalised; ids int64 [T, L] padded at the end, lengths int64 [T]."""
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        states: Tensor = self.backbone(input_ids=ids, attention_mask=real.long(), return_dict=True).last_hidden_state
        if self.pooling == "first":
            pooled = states[:, 0]
        elif self.pooling == "mean":
            pooled = (states * real[:, :, None]).sum(1) / lengths[:, None]
        else:
            pooled = states.masked_fill(~real[:, :, None], -torch.inf).amax(1)
        return pooled if self.projection is None else self.projection(pooled)


def _projection(width: int, size: int, kind: str) -> nn.Module:
    """From the encoder's width to the embedding's."""
    if kind == "linear":
        return nn.Linear(width, size, bias=False)
    middle = (width + size) // 2
    return nn.Sequential(nn.Linear(width, middle, bias=False), nn.GELU(), nn.Linear(middle, size, bias=False))


def _longest(encoder: Any) -> int:
    """Most tokens of a text. RoBERTa's and others' tables of positions have rows for padding first."""
    for name, part in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            first = 0 if part.padding_idx is None else part.padding_idx + 1
            return part.num_embeddings - first
    return int(getattr(encoder.config, "max_position_embeddings", None) or sys.maxsize)


def _few(names: list[str]) -> str:
    """The first names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
