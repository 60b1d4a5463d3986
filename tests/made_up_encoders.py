"""Small encoders of transformers in folders, as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from torch import nn

LETTERS = "abcdefghijklmnopqrstuvwxyz<>/"
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *LETTERS, *(f"\u2581{word}" for word in ("a", "red", "circle"))]
WORDS = len(PIECES)
SPECIAL = {"CLS": 0, "PAD": 1, "SEP": 2}
TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
SIZES = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 20, **TOKENS}
# what each is called by transformers, with heads, and how many tokens its texts may have
KINDS = {
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", 18),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaForMaskedLM", 18),
    "modernbert": ("ModernBertConfig", "ModernBertForMaskedLM", 20),
    "bert": ("BertConfig", "BertForPreTraining", 20),
}


def make_folder(path: Path, kind: str = "roberta", **more: Any) -> nn.Module:
    """A folder of a small encoder with heads, weights random, and a tokenizer; the model."""
    config, with_heads, _ = KINDS[kind]
    torch.manual_seed(3)
    model = getattr(transformers, with_heads)(getattr(transformers, config)(**{**SIZES, **more})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, mean=float("norm" in name.lower() and "weight" in name), std=0.3)
    model.save_pretrained(path)
    made = Tokenizer(Unigram([(piece, -float(len(piece) > 1 or 3)) for piece in PIECES], unk_id=3))
    made.pre_tokenizer = Metaspace()
    made.add_special_tokens([AddedToken(piece, special=True) for piece in PIECES[:4]])
    made.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    made.save(str(path / "tokenizer.json"))
    return model
