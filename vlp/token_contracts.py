"""What token decoders return, and what is asked of them; beside `vlp.contracts`.

Letters: P pairs of a text and an image, T tokens of a text, n codes of an image, H hidden size, V logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from vlp.contracts import AnyModel
from vlp.interfaces import Batch
from vlp.picture_contracts import PictureCodes
from vlp.writing.writer import Writer


@dataclass(frozen=True)
class Decoded:
    """What a token decoder returns for P pairs of a text and the codes of an image, which are one sequence.

    A state predicts the token after its own. `text_states` [P, T, H] and `code_states` [P, n, H]; `text` int64 [P, T]
    and `codes` int64 [P, n]: the tokens that they predict, numbered as the logits of their part are. `text_weight`
    float [P, T]: 0 where that is padding. `rows`: tokens of all sequences; `computed_rows`: with padding, for its share
    in the log.
    """

    text_states: Tensor
    code_states: Tensor
    text: Tensor
    codes: Tensor
    text_weight: Tensor
    rows: int
    computed_rows: int


class TokenModel(AnyModel, Protocol):
    """What objectives and writing may ask of a token decoder, besides."""

    pictures: PictureCodes  # frozen

    def __call__(self, batch: Batch, planned: Any = None) -> Decoded:
        """Read every pair; images without codes are coded first."""

    def logits(self, states: Tensor, part: Literal["text", "codes"]) -> Tensor:
        """What states [..., H] of a part predict, float [..., V]."""

    def writer(self, batch: Batch, part: Literal["text", "codes"]) -> Writer:
        """Begin to write the texts or the codes of pairs, in a model in evaluation mode; what is written is numbered as
        the tokenizer, or the coder, numbers it.
        """
