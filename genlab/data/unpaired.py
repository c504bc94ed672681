"""Data of several domains without pairs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from genlab.data.module import SPLITS, ArrayData
from genlab.data.spec import DataSpec
from genlab.data.store import ArrayStore
from genlab.data.stream import MergedStreams, Stream
from genlab.errors import UserError
from genlab.fields.base import Field


class Unpaired(ArrayData):
    """Two or more data sets as the columns of one: for CycleGAN, domain adaptation, corpora in two styles.

    The samples of the domain `a` are the column `a`, its labels are `a.y`, its other columns `a.NAME`. Each domain has
    an order of its own in training. One domain is the target: its columns have their plain names, `x`, `y`, as well,
    so that whatever draws or judges samples means those of the target. For validation and tests, row i of the target
    stands beside row i mod n of another domain with n rows.

    Args:
        domains: Data sets by name. Their `batch_size` is not used.
        batch_size: Samples of each domain per iteration, over all processes.
        gives: The target; None: the last domain.
        seed: Seed of the orders; flips and such are those of each domain.
        root: A folder that a config names once for all domains; not used here.
        background: A colour under transparent pixels that a config names once for all domains; not used here.
        columns: What a config says of the domains' columns before data are read; not used here.

    The other arguments are those of `ArrayData` as a config states them for the target.

    Raises:
        UserError: If there are fewer than two domains, or the target is none of them.
    """

    name = "unpaired"

    def __init__(
        self,
        *,
        domains: Mapping[str, ArrayData],
        batch_size: int,
        gives: str | None = None,
        seed: int = 0,
        kind: str | None = None,
        shape: Any = None,
        num_classes: int | None = None,
        root: str | None = None,
        background: str | None = None,
        columns: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if len(domains) < 2:
            raise UserError(f"data=unpaired needs two domains, got {', '.join(domains) or 'none'}.")
        gives = gives or list(domains)[-1]
        if gives not in domains:
            raise UserError(f"data.gives must be one of the domains {', '.join(domains)}, got {gives!r}.")
        self.domains, self.gives = dict(domains), gives
        self.target = self.domains[gives]
        self.kind, self.class_names = self.target.kind, self.target.class_names
        super().__init__(
            batch_size=batch_size,
            shape=[*self.target.spec.x.shape],
            kind=kind,
            num_classes=self.target.spec.num_classes,
            seed=seed,
            labels=self.target.labels,
        )
        self._spec = self._merged_spec()

    def _full_name(self) -> str:
        return "-".join([self.name, *(domain.name for domain in self.domains.values())])

    def _merged_spec(self) -> DataSpec:
        fields: dict[str, Field] = dict(self.target.spec.fields)
        for name, domain in self.domains.items():
            fields |= {_inside(name, column): field for column, field in domain.spec.fields.items()}
        return DataSpec(fields)

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        for domain in self.domains.values():
            domain.trainer = self.trainer
            if download or self.trainer is None:
                domain.prepare_data()
            domain.setup()
        self._spec = self._merged_spec()
        self.class_names = self.target.class_names
        stores = {}
        for split in SPLITS:
            store = self.target.judged(split) if split != "train" else self.target.training_store()
            rows = torch.arange(len(store))
            for name, domain in self.domains.items():
                other = domain.split(split)
                for column, values in other.columns.items():
                    beside = values if domain is self.target else values.subset(rows % len(other))
                    store = store.with_column(_inside(name, column), beside)
            stores[split] = store
        return stores

    def _tell_classes(self, stores: Mapping[str, ArrayStore]) -> None:
        """Each domain has told its own."""

    def prepare_data(self) -> None:
        """Downloads and decodes all domains, in one process per machine."""
        for domain in self.domains.values():
            domain.prepare_data()
        super().prepare_data()

    def training_store(self) -> ArrayStore:
        """The target's training split, with other domains beside it; see the class."""
        return self.split("train")

    def judged(self, name: str) -> ArrayStore:
        """See `ArrayData.judged`; of the target."""
        store = self.split(name)
        return store.with_column("x", self.target.judged(name).columns["x"]) if name == "train" else store

    def stream(  # type: ignore[override]
        self, start: int = 0, rank: int = 0, world_size: int = 1, device: torch.device | str | None = None
    ) -> MergedStreams:
        """The training batches from number `start` on: each domain in an order of its own."""
        where = {"start": start, "rank": rank, "world_size": world_size, "device": device}
        streams = {}
        for name, domain in self.domains.items():
            domain.batch_size, domain.seed = self.batch_size, self.seed
            made = partial(Stream, name=f"train {name}")
            streams[name] = domain._made(made, domain.training_store(), batches_per_step=self.batches_per_step, **where)
        return MergedStreams(streams, self.gives, self.derive)


def _inside(domain: str, column: str) -> str:
    """The name of a domain's column among those of all domains."""
    return domain if column == "x" else f"{domain}.{column}"
