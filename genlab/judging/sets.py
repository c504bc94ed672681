"""One image set beside another as the subject of scores, by an extractor that was not trained on the scored images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import genlab
from genlab.data.image_sets import ImageSet
from genlab.data.spec import DataSpec
from genlab.data.store import ArrayStore
from genlab.errors import UserError
from genlab.extractors.choice import default_for, shared_network
from genlab.judging.cards import PROTOCOL
from genlab.judging.measure import Settings
from genlab.judging.subject import FEWEST, Subject
from genlab.metrics.features import Extractor
from genlab.seeding import fixed_choice

MOST = 50_000  # images per set at most, as in the published protocol


class SetSubject(Subject):
    """`fake` images against `real` ones; there is no model.

    Attributes:
        judged_rows: Rows of `real` that are scored.
    """

    def __init__(
        self, sets: Mapping[str, ImageSet], rule: str, settings: Settings, options: Mapping[str, Any], wanted: set[str]
    ) -> None:
        """Checks the sets, and loads or trains the extractor.

        Args:
            sets: `real`, `fake` and optionally `train`, at one size.
            rule: How they were resized, for the card.
            settings: The settings of all measures.
            options: Options of `genlab-evaluate`.
            wanted: Needs of the wanted measures.

        Raises:
            UserError: If a set is too small, there is no extractor, or it was trained on all but too few real images.
        """
        for key in ("real", "fake"):
            if len(sets[key].x) < FEWEST:
                raise UserError(
                    f"Scores need {FEWEST} images or more, and {key}={options[key]} holds {len(sets[key].x)}."
                )
        self.sets, self.rule, self.options = sets, rule, options
        self.labelled = LabelledSets(sets["real"], sets.get("train"))
        self.judged_rows = torch.arange(len(sets["real"].x))
        super().__init__(None, self.labelled, "real", settings, self._extractor)  # type: ignore[arg-type]
        self.device = torch.device(options["device"])
        if wanted & {"extractor", "logits", "classes"}:
            self._without_taught()

    def _extractor(self) -> Extractor:
        weights = self.options["inception_weights"]
        chosen = self._chosen_extractor()
        return shared_network(chosen, self.labelled, self.device, weights, self.options["precision"])

    def _chosen_extractor(self) -> str:
        labelled = self.labelled.spec.num_classes is not None
        return self.options["extractor"] or default_for(labelled, self.options["inception_weights"])

    def _without_taught(self) -> None:
        """Excludes the real images that a classifier is trained on."""
        if self._chosen_extractor() != "classifier" or len(self.labelled.judged_rows) == len(self.judged_rows):
            return
        taught, self.judged_rows = len(self.judged_rows) - len(self.labelled.judged_rows), self.labelled.judged_rows
        self.note(
            f"The classifier was trained on {taught} of the real images; scores use only the other "
            f"{len(self.judged_rows)}. To use all of them, set train=LABELLED or another extractor=."
        )
        if len(self.judged_rows) < FEWEST:
            raise UserError(
                f"Scores need {FEWEST} real images or more that the classifier has not seen, got "
                f"{len(self.judged_rows)}."
            )

    def lacks(self, need: str) -> str | None:
        """As in the base; there are pictures and samples, and no model."""
        if need in ("pictures", "samples"):
            return None
        if need == "train":
            return None if "train" in self.sets else "The memorisation ratio needs training images: set train=PATH."
        if need in ("extractor", "logits", "classes"):
            return self._lacks_of_data(need)
        return "There is no model."

    @property
    def common(self) -> dict[str, Any]:
        """The card fields of all scores."""
        return {
            "protocol": PROTOCOL,
            "genlab": genlab.__version__,
            "seed": self.seed,
            "split": "real",
            "data": Path(self.options["real"]).name,
            "fingerprint": self.sets["real"].fingerprint,
            "shape": list(self.labelled.spec.shape),
            "sizes": self.rule,
        }

    def available(self) -> int:
        """Number of images in the larger set."""
        return max(len(self.judged_rows), len(self.sets["fake"].x))

    def real(self, n: int) -> Tensor:
        """At most n real images that the classifier has not seen."""
        return self.sets["real"].x[self.judged_rows[fixed_choice(len(self.judged_rows), n)]]

    def fake(self, n: int) -> Tensor:
        """At most n of the generated images."""
        x = self.sets["fake"].x
        return x[fixed_choice(len(x), n)]

    def train(self) -> Tensor:
        """The training images."""
        return self.sets["train"].x

    def train_fingerprint(self) -> str:
        """Of the training images."""
        return self.sets["train"].fingerprint

    def fingerprint(self) -> str:
        """Of the real images that are scored."""
        return f"{self.sets['real'].fingerprint}/{len(self.judged_rows)}"


def _store(images: ImageSet) -> ArrayStore:
    """Images and their labels, if they have any."""
    return ArrayStore({"x": images.x}).with_column("y", images.y)


class LabelledSets:
    """Labelled images to train a classifier on: `train` if it has labels, else half of `real`.

    The classifier is never trained on images that it scores.

    Attributes:
        name: Name of the data, used for the classifier's name.
        judged_rows: Rows of `real` used for scores.
    """

    mirrors = False

    def __init__(self, real: ImageSet, train: ImageSet | None) -> None:
        """Splits the images.

        Args:
            real: Real images of the scores.
            train: Training images, used if they have labels.
        """
        source, apart = (train, True) if train is not None and train.y is not None else (real, False)
        self.name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source.name).resolve().stem).strip("-") or "images"
        order = torch.randperm(len(source.x), generator=torch.Generator().manual_seed(0))
        held = len(order) // (5 if apart else 2)
        known = {"train": order[held:], "test": order[:held]}
        self.judged_rows = torch.arange(len(real.x)) if apart or real.y is None else known["test"].sort().values
        self._stores = {name: _store(source).subset(rows.sort().values) for name, rows in known.items()} | {
            "val": _store(real).subset(torch.arange(0))
        }
        classes = None if source.y is None else int(source.y.max()) + 1
        self.spec = DataSpec.of("image", tuple(source.x.shape[1:]), classes)

    def split(self, name: str) -> Any:
        """The images that the classifier is trained on ("train") or tested on ("test")."""
        return self._stores[name]

    judged = split
