"""Tokens: sentences of words, or other sequences of numbers from a vocabulary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from genlab.batch import Column, Seq
from genlab.errors import UserError
from genlab.fields.base import Field, spread
from genlab.fields.readout import Readout
from genlab.fields.sequences import apart, cut, random_lengths, together
from genlab.fields.vocabulary import numbered, plain_words, split_words, vocabulary
from genlab.files import write_text

RARE, COMMON = 0.01, 0.95  # shares of the training sentences between which a word tells something
QUOTED = re.compile(r'\s*"[^"]*"\s*(\|\s*"[^"]*"\s*)*')


@dataclass(frozen=True)
class Tokens(Field):
    """Numbers of words: int32 in the store, int64 for a model.

    The shape (None,) is that of sentences, a `Seq` [N, T]; a shape (T,) that of sequences of one length, [N, T].
    `size` is the number of words, `names` are the words.

    Attributes:
        separator: Stands between words where they are written: a blank, or nothing where tokens are characters.
    """

    kind: ClassVar[str] = "tokens"

    separator: str = " "

    def __post_init__(self) -> None:
        if len(self.shape) != 1:
            raise UserError(f"Tokens have the shape [null], or [T] if all are T long, got {list(self.shape)}.")
        if self.names is not None and self.size not in (None, len(self.names)):
            raise UserError(f"A vocabulary of {self.size} words needs as many names, got {len(self.names)}.")

    @property
    def _words(self) -> int:
        return self.size or len(self.names or ()) or 1

    def check_stored(self, stored: Tensor) -> None:
        """Refuses what is not int32: all steps joined, [S], or [N, T]."""
        if stored.dtype != torch.int32 or stored.shape[1:] != self.fixed_shape or stored.dim() < 1:
            kept = "[S], all sequences joined" if self.ragged else f"[N, {self.shape[0]}]"
            raise ValueError(f"Tokens must be int32 {kept}, got {stored.dtype} {list(stored.shape)}.")

    def normalise(self, stored: Tensor) -> Tensor:
        """As int64."""
        return stored.long()

    def stored(self, values: Tensor) -> Tensor:
        """As int32."""
        return values.int()

    def random(self, n: int, rng: torch.Generator) -> Column:
        """Words, all equally likely."""
        if not self.ragged:
            return torch.randint(self._words, (n, *self.fixed_shape), generator=rng)
        length = random_lengths(n, self.most, rng)
        return cut(torch.randint(self._words, (n, int(length.max())), generator=rng), length)

    def readout(self, size: tuple[int, int]) -> Readout:
        """The words that occur. Those in few or nearly all training sentences say nothing about one picture."""
        end = self._words

        def ended(values: Column) -> Tensor:
            return values.values.masked_fill(~values.mask, end) if isinstance(values, Seq) else values

        def occur(values: Column) -> Tensor:
            tokens = ended(values)
            return torch.zeros(len(tokens), end + 1, device=tokens.device).scatter_(1, tokens, 1)[:, :end]

        def telling(training: Column) -> Tensor:
            tokens = ended(training) + torch.arange(len(training))[:, None] * (end + 1)
            share = (tokens.unique() % (end + 1)).bincount(minlength=end + 1)[:end] / len(training)
            return ((share >= RARE) & (share <= COMMON)).float()

        return Readout("share of told words found", (end,), lambda out, t: ((out > 0) * t, t), occur, weights=telling)

    def text(self, values: Column) -> list[str]:
        """The words, else their numbers, with `separator` between them."""
        between = self.separator if self.names else " "
        return [between.join(self.names[i] if self.names else str(i) for i in v.tolist()) for v in apart(values)]

    def read(self, texts: Sequence[str], training: Tensor) -> tuple[Field, Column]:
        """Sentences of cells, cut after `most` words, and the field with a vocabulary where it has none.

        The vocabulary is that of the training rows, in lower case and with punctuation marks apart; `size` is the
        largest number of words. Characters are taken as they are.
        """
        sentences = [plain_words(text) if self.separator else list(text) for text in texts]
        sentences = [sentence[: self.most] for sentence in sentences]
        empty = [i for i, sentence in enumerate(sentences) if not sentence]
        if empty:
            raise UserError(f"a sentence has at least one word, and row {empty[0] + 1} has none")
        words = self.names or vocabulary((sentences[i] for i in training.tolist()), self.size)
        field = replace(self, size=len(words), names=words, most=self.most or max(map(len, sentences)))
        numbers = [sentence.long() for sentence in numbered(sentences, words)]
        if self.ragged:
            return field, together(numbers)
        wrong = [i for i, sentence in enumerate(numbers) if len(sentence) != self.shape[0]]
        if wrong:
            raise UserError(
                f"a sequence has {self.shape[0]} words, and row {wrong[0] + 1} has {len(numbers[wrong[0]])}"
            )
        return field, torch.stack(numbers)

    def parse(self, text: str, n: int) -> Column:
        """Sentences [n] of words with blanks between them; of several, each in quotes, with "|" between them."""
        if QUOTED.fullmatch(text):
            typed = re.findall(r'"([^"]*)"', text)
        else:
            typed = [text] if "|" in (self.names or ()) else text.split("|")
        sentences = [self._parsed(sentence) for sentence in typed]
        rows = spread(len(sentences), n)
        return together(sentences).rows(rows) if self.ragged else torch.stack(sentences)[rows]

    def _parsed(self, text: str) -> Tensor:
        if self.names is None:
            numbers = {str(i): i for i in range(self._words)}
        else:
            numbers = {name: i for i, name in enumerate(self.names)}
            if all(name == name.lower() for name in self.names):
                text = text.lower()
        words = text.split() if self.separator or self.names is None else list(text)
        if self.separator and any(word not in numbers for word in words):
            words = split_words(text)  # "dog." may be known as "dog" and "."
        for word in words:
            if word not in numbers:
                among = f" from 0 to {self._words - 1}" if self.names is None else ""
                raise UserError(f"{word!r} is not in the vocabulary of {self._words} words{among}")
        if not words:
            raise UserError("a sentence has at least one word, got none")
        if not self.ragged and len(words) != self.shape[0]:
            raise UserError(f"a sequence has {self.shape[0]} words, got {len(words)}")
        if self.most is not None and len(words) > self.most:
            raise UserError(f"a sentence has at most {self.most} words, got {len(words)}")
        return torch.tensor([numbers[word] for word in words])

    def write(self, values: Column, path: Path) -> Path:
        """A text file, one line a value."""
        return write_text(path.with_name(f"{path.name}.txt"), "".join(f"{line}\n" for line in self.text(values)))
