"""A WordPiece vocabulary made of texts."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterator, Mapping

from tokenizers import Tokenizer
from tokenizers.models import WordPiece as WordPieceModel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import WordPieceTrainer

from vlp.text.wordpiece import SPECIAL_TOKENS, VocabularyError

LONGEST = 100  # characters; a WordPiece takes no longer word apart
AT_ONCE = 1000  # times that a word is handed over in one text


def make_vocabulary(words: Mapping[str, int], size: int, at_least: int, lowercase: bool) -> list[str]:
    """The tokens of a WordPiece vocabulary: special ones, characters, and the pieces of words that are joined most
    often, as byte pairs are (Sennrich et al. 2016). The same words give the same tokens, in the same order.

    ASCII's letters, digits and signs are in it, whether they occur or not, so that most new words can be spelled; other
    characters if they occur `at_least` times. A word with another character is unknown to it.

    Args:
        words: how often each occurs in texts (`words_of`).
        size: tokens at most. There are fewer where no two pieces stand side by side `at_least` times any more.
        at_least: times that a piece or a character occurs.
        lowercase: the words are in lower case.

    Raises:
        VocabularyError: there are more characters than `size` allows.
    """
    letters = {*string.ascii_lowercase, *string.digits, *("" if lowercase else string.ascii_uppercase)}
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    known = {character for character, count in counts.items() if count >= at_least} | letters
    kept = {word: count for word, count in words.items() if len(word) <= LONGEST and known.issuperset(word)}
    within = letters.union(*(word for word in kept if len(word) > 1))  # signs, and Chinese, are words by themselves
    # the trainer numbers pieces in an order that differs from run to run, and joins by these numbers where counts are
    # equal; it takes special tokens as they are given, so characters are given as such
    first = [f"[{name}]" for name in SPECIAL_TOKENS]
    first += [*sorted(known | {*string.punctuation}), *(f"##{character}" for character in sorted(within))]
    if len(first) > size:
        raise VocabularyError(
            f"special tokens and characters are {len(first):,} tokens already, which is more than {size:,}: ask for a"
            f" larger vocabulary, or for characters that occur more than {at_least} times"
        )
    learned = Tokenizer(WordPieceModel({}, unk_token="[UNK]"))
    learned.pre_tokenizer = WhitespaceSplit()
    trainer = WordPieceTrainer(vocab_size=size, min_frequency=at_least, special_tokens=first, show_progress=False)
    learned.train_from_iterator(_repeated(kept), trainer)
    return sorted(numbers := learned.get_vocab(with_added_tokens=True), key=numbers.__getitem__)


def _repeated(words: Mapping[str, int]) -> Iterator[str]:
    """Texts in which each word occurs as often as it is counted."""
    for word, count in sorted(words.items()):
        for begin in range(0, count, AT_ONCE):
            yield " ".join([word] * min(AT_ONCE, count - begin))
