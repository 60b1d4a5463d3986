"""Plain text as samples without an image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.annotations.files import AnnotationError, LeftOut
from data_pipelines.shards.format import Sample


class TextReader:
    """The passages of plain text files (UTF-8), in order. Read it once.

    Documents are separated by empty lines, however their lines are broken. The words of each are cut into passages of
    `words`; the last one of a document may be shorter.

    Args:
        files: in the order in which they are read.
        words: of a passage.

    Attributes:
        left_out: lines that could not be used, as they are met.

    Raises:
        AnnotationError: a file is missing.
    """

    def __init__(self, files: list[Path], words: int):
        missing = [str(path) for path in files if not path.is_file()]
        if missing:
            raise AnnotationError(f"there is no file {missing[0]}")
        self.files, self.words = files, words
        self.left_out: list[LeftOut] = []

    def __iter__(self) -> Iterator[Sample]:
        number = 0
        for path in self.files:
            for line, passage in self._passages(path):
                yield Sample(f"text-{number:09d}", [passage], facts={"file": path.name, "line": line})
                number += 1

    def _passages(self, path: Path) -> Iterator[tuple[int, str]]:
        """The passages of a file, each with the line (from 1) where it begins."""
        waiting: list[str] = []
        begins = 1
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    words = line.decode("utf-8-sig" if number == 1 else "utf-8").split()
                except UnicodeDecodeError:
                    self.left_out.append(LeftOut(f"{path.name}:{number}", "line is not UTF-8"))
                    continue
                if not words and waiting:
                    yield begins, " ".join(waiting)
                    waiting = []
                for word in words:
                    if not waiting:
                        begins = number
                    waiting.append(word)
                    if len(waiting) == self.words:
                        yield begins, " ".join(waiting)
                        waiting = []
        if waiting:
            yield begins, " ".join(waiting)
