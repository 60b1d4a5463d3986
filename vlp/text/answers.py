"""Short answers to questions about images: one spelling for each, and how right an answer is that some people gave."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

# lower case, since words are lowered before they are looked up
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905


def _one_apostrophe_less(word: str) -> list[str]:
    return [word[:k] + word[k + 1 :] for k, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {short: word for word in _CONTRACTIONS for short in _one_apostrophe_less(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the official table has this one the wrong way round
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # neither apostrophe nor colon, which belong to words and times


def normalise_answer(answer: str) -> str:
    """An answer in the spelling in which the VQA benchmark compares answers.

    Lower case; no articles; number words to ten as digits; the apostrophes of contractions put in; no full stop but in
    a decimal. A punctuation mark that touches a blank, and every mark of an answer with a comma between digits, is
    taken out; any other becomes a blank.
    Source: the evaluation page of visualqa.org, and the published program (GT-Vision-Lab/VQA, vqaEval.py), whose order
    of steps and whose table of contractions decide the unclear cases.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    thousands = re.search(r"\d,\d", text) is not None
    kept = text
    for mark in PUNCTUATION:
        touches_blank = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if touches_blank or thousands else " ")
    kept = re.sub(r"\.(?!\d)", "", kept)
    words = [NUMBERS.get(word, word) for word in kept.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def answer_scores(answers: Sequence[str]) -> dict[str, float]:
    """How right each normalised answer is, given what people answered: min(1, 0.3 n) where n of them gave it.

    A single answer, which is not one of several opinions, is right: 1.
    Source: the soft scores of the bottom-up attention models (Teney et al. 2018), which all systems were trained with.
    Their program (compute_softscore.py) counts the ten answers as they were typed; here they are normalised first, so
    that "Two" counts as "2", which is how predictions are compared.
    """
    counts = Counter(normalise_answer(answer) for answer in answers)
    if len(answers) == 1:
        return dict.fromkeys(counts, 1.0)
    return {answer: min(1.0, round(0.3 * count, 1)) for answer, count in counts.items()}
