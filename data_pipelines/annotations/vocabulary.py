"""The answers that a model chooses from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from data_pipelines.annotations.files import AnnotationError


def answer_vocabulary(answers: Iterable[str], at_least: int) -> list[str]:
    """Answers that occur `at_least` times, the most frequent first, those equally frequent by the alphabet. The empty
    answer, which is what is left of some ("the", "."), is one of them, as in the published list of 3,129.

    Raises:
        AnnotationError: there is none.
    """
    ordered = sorted(Counter(answers).items(), key=lambda item: (-item[1], item[0]))
    kept = [answer for answer, count in ordered if count >= at_least]
    if not kept:
        raise AnnotationError(f"no answer occurs {at_least} times; lower --at-least, or name more files")
    return kept
