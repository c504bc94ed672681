"""The base of the data sets of sequences in files: the place of the files, the longest sequence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from genlab.data.columns import Ragged
from genlab.data.folders import named_after
from genlab.data.module import ArrayData, log
from genlab.data.store import ArrayStore
from genlab.errors import UserError


class SequenceSet(ArrayData):
    """Data sets whose samples are sequences, read from files.

    Sequences without a step are left out, and so are those of more than `columns.x.most` steps. If that is null, the
    longest sequence of all splits becomes it.
    """

    source: ClassVar[str]  # description of `root`, for messages
    nouns: ClassVar[tuple[str, str]]  # plurals of sequence and step, for messages

    def _full_name(self) -> str:
        return named_after(self.name, self.root)

    def _given(self, download: bool) -> Path:
        """`root`.

        Raises:
            UserError: If it is not set or not there, or a download is asked for.
        """
        if download:
            raise UserError(f"{self.name} cannot be downloaded; set data.root=PATH to {self.source}.")
        if self.root is None:
            raise UserError(f"{self.name} needs its files: set data.root=PATH to {self.source}.")
        if not self.root.exists():
            raise UserError(f"data.root={self.root} does not exist; set it to {self.source}.")
        return self.root

    def _bounded(self, stores: Mapping[str, ArrayStore]) -> dict[str, ArrayStore]:
        """The stores without empty and too long sequences; finds the longest if the config states none.

        Raises:
            UserError: If a split has no sequence left.
        """
        most = self.spec.x.most
        lengths = {split: sequences(store).lengths for split, store in stores.items()}
        total = sum(map(len, lengths.values()))
        empty = sum(int((found == 0).sum()) for found in lengths.values())
        longer = 0 if most is None else sum(int((found > most).sum()) for found in lengths.values())
        several, steps = self.nouns
        if empty:
            log.info("%d of the %d %s of %s are empty and left out.", empty, total, several, self.name)
        if longer:
            log.warning(
                "%d of the %d %s of %s have more than data.columns.x.most=%d %s and are left out.",
                longer, total, several, self.name, most, steps,
            )  # fmt: skip
        kept = {}
        for split, found in lengths.items():
            fits = found > 0 if most is None else (found > 0) & (found <= most)
            if not fits.any():
                short = "" if most is None else f" of at most {most} {steps}; try data.columns.x.most=null"
                where = "" if split == "all" else f" for {split}"
                raise UserError(f"{self.name} in {self.root} has no {several}{where}{short}.")
            kept[split] = stores[split] if fits.all() else stores[split].subset(fits.nonzero().squeeze(1))
        if most is None:
            self._found("x", most=max(int(sequences(store).lengths.max()) for store in kept.values()))
        return kept


def sequences(store: ArrayStore) -> Ragged:
    """The samples of a store."""
    column = store.columns["x"]
    assert isinstance(column, Ragged)
    return column
