"""What a process is loading, noted where its trainer can read it even if the process hangs.

Each process notes for itself; a trainer that can't go on tells what its loader processes noted last.
"""

from __future__ import annotations

import os
from multiprocessing.sharedctypes import RawArray
from typing import Any

LONGEST = 1000  # bytes of a note

_note: Any = None  # of this process: shared with its trainer
_place = ""


class Notes:
    """Room for the notes of some processes, made before they are.

    Args:
        count: of processes.
    """

    def __init__(self, count: int):
        self.notes = [RawArray("c", LONGEST) for _ in range(count)]

    def of_this_process(self, number: int) -> None:
        """From here on this process notes what it does in the note of that number."""
        global _note
        _note = self.notes[number]
        at("nothing yet")

    def read(self) -> dict[int, str]:
        """By process id what was noted last; what is still being written may be cut."""
        told = [bytes(note.value).decode(errors="replace").partition(" ") for note in self.notes]
        return {int(pid): text for pid, _, text in told if pid.isdigit()}


def at(place: str) -> None:
    """Note what is worked on."""
    global _place
    _place = place
    _write(place)


def reading(what: str) -> None:
    """Note what is read for it."""
    _write(f"{_place}, {what}")


def _write(text: str) -> None:
    if _note is not None:
        _note.value = f"{os.getpid()} {text}".encode()[: LONGEST - 1]
