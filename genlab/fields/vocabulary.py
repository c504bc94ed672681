"""Words of sentences, and their numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

UNKNOWN = "<unk>"  # the word that stands for all that are not in a vocabulary


def vocabulary(sentences: Iterable[Sequence[str]], size: int | None = None) -> tuple[str, ...]:
    """The words of the training sentences, the most frequent first, equally frequent ones in the order of the alphabet.

    Args:
        sentences: Sentences as words.
        size: Largest number of words; None: all.

    Returns:
        The words. The word "<unk>" is among them, first if the sentences do not hold it: it stands for the words that
        are left out, and for those of sentences that come later.
    """
    counts = Counter(word for sentence in sentences for word in sentence)
    own = [] if UNKNOWN in counts else [UNKNOWN]
    words = sorted(counts, key=lambda word: (word != UNKNOWN, -counts[word], word))
    kept = [*own, *words][:size]
    return tuple(kept if own else sorted(kept, key=lambda word: (-counts[word], word)))


def numbered(sentences: Iterable[Sequence[str]], words: Sequence[str]) -> list[Tensor]:
    """Sentences as numbers of words, int32 [T] each; words outside the vocabulary are its "<unk>"."""
    numbers = {word: i for i, word in enumerate(words)}
    unknown = numbers.get(UNKNOWN, 0)
    return [
        torch.tensor([numbers.get(word, unknown) for word in sentence], dtype=torch.int32) for sentence in sentences
    ]


def plain_words(text: str) -> list[str]:
    """A sentence of people as words: in lower case, with punctuation marks apart."""
    return split_words(re.sub(r"\s+", " ", text).strip().lower())


def split_words(text: str) -> list[str]:
    """Words with punctuation marks apart; marks within a word, as in "don't" and "<unk>", stay."""
    return re.findall(r"<\w+>|\w+(?:['’-]\w+)*|[^\w\s]", text)
