"""The tokenizer of models that read no text."""

from __future__ import annotations

from pathlib import Path

from vlp.interfaces import Tokens


class NoText:
    """A tokenizer without any token (`vlp.interfaces.Tokenizer`). It has no file, and a run that has it keeps none."""

    path = Path("(none)")
    file_name = ""
    tokens: list[str] = []  # noqa: RUF012, nothing is ever in it
    lowercase = False
    special: dict[str, int] = {}  # noqa: RUF012
    word_ids: list[int] = []  # noqa: RUF012

    def __len__(self) -> int:
        return 0

    def file(self) -> bytes:
        """Nothing."""
        return b""

    def encode(self, texts: list[str]) -> list[Tokens]:
        """No token of any text."""
        return [Tokens([], []) for _ in texts]
