"""Scores of one image set against another, by an extractor that was not trained on the scored images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError
from genlab.judging.subject import FEWEST, IMAGES, check_shape, find_extractor, judge_notes, tells_classes

if TYPE_CHECKING:
    from torch import Tensor

    from genlab.data.store import ArrayStore
    from genlab.judging.image_sets import ImageSet
    from genlab.metrics.features import FeatureStats
    from genlab.metrics.scores import Scores

MOST = max(IMAGES, 50_000)  # images per set at most, as in the published protocol


class SetScoring:
    """Scores of `fake` images against `real` ones.

    Attributes:
        extractor: Feature extractor; None before it is loaded, or if no score needs it.
        notes: Caveats for the reader of the scores.
        seconds: Duration of each part.
        shape: Shape (C, H, W) of an image.
    """

    def __init__(self, sets: Mapping[str, ImageSet], options: Mapping[str, Any]) -> None:
        """Checks the sets and the requested scores.

        Args:
            sets: `real`, `fake` and optionally `train`, at one size.
            options: Options of `genlab-evaluate`.

        Raises:
            UserError: If a set is too small, or no requested score applies to image sets.
        """
        import torch

        from genlab.judging.suite import GROUPS

        for key in ("real", "fake"):
            if len(sets[key].x) < FEWEST:
                raise UserError(
                    f"Scores need {FEWEST} images or more, and {key}={options[key]} holds {len(sets[key].x)}."
                )
        self.sets, self.options = sets, options
        self.wanted = [g for g in GROUPS if options["scores"] is None or g in options["scores"]]
        if not self.wanted:
            raise UserError(f"No requested score applies to image sets; choose from {', '.join(GROUPS)}.")
        self.shape = tuple(sets["real"].x.shape[1:])
        self.rows = torch.arange(len(sets["real"].x))  # of the real images used for scores
        self.extractor: Any = None
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}

    def groups(self) -> dict[str, Scores]:
        """The scores by group.

        Raises:
            UserError: If there is no extractor, or it was trained on all but too few of the real images.
        """
        from genlab.judging.suite import image_scores
        from genlab.sharing import by_first

        started = time.monotonic()
        if set(self.wanted) & {"fid", "is", "kid", "pr"}:
            self._find_extractor()
        real, fake = self._chosen("real", self.rows), self._chosen("fake")
        of_real, of_fake = self._statistics(real, fake)
        self.seconds["features"] = round(time.monotonic() - started, 2)
        train = self.sets["train"].x if "train" in self.sets else None
        scores = partial(image_scores, real, fake, of_real, of_fake, self.wanted, seed=self.options["seed"])
        groups = by_first(partial(scores, train=train, labels_by_logits=tells_classes(self.extractor, None)))
        self._note(groups, len(real), len(fake))
        self.seconds["all"] = round(time.monotonic() - started, 2)
        return groups

    def _find_extractor(self) -> None:
        """Loads or trains the extractor, and excludes the real images that it was trained on."""
        data = LabelledSets(self.sets["real"], self.sets.get("train"))
        chosen = self.options["extractor"] or default_extractor(data, self.options["inception_weights"])
        self.extractor = find_extractor(chosen, dict(self.options), data)
        check_shape(self.extractor, self.shape)
        if chosen != "classifier" or len(data.judged_rows) == len(self.rows):
            return
        taught, self.rows = len(self.rows) - len(data.judged_rows), data.judged_rows
        self.notes.append(
            f"The classifier was trained on {taught} of the real images; scores use only the other {len(self.rows)}. "
            "To use all of them, set train=LABELLED or another extractor=."
        )
        if len(self.rows) < FEWEST:
            raise UserError(
                f"Scores need {FEWEST} real images or more that the classifier has not seen, got {len(self.rows)}."
            )

    def _chosen(self, key: str, rows: Tensor | None = None) -> Tensor:
        """A fixed choice of at most `n` images of a set."""
        from genlab.seeding import fixed_choice

        x = self.sets[key].x
        chosen = fixed_choice(len(x) if rows is None else len(rows), self.options["n"] or MOST)
        return x[chosen if rows is None else rows[chosen]]

    def _statistics(self, real: Tensor, fake: Tensor) -> tuple[FeatureStats | None, FeatureStats | None]:
        """The extractor's statistics of both sets; those of the real images are cached."""
        from genlab.judging.suite import slices
        from genlab.metrics.cache import cached_stats
        from genlab.metrics.features import features_of

        judge = self.extractor
        if judge is None:
            return None, None
        key = f"{self.sets['real'].fingerprint}/{len(self.rows)}/{len(real)}"
        return cached_stats(key, judge.card(), lambda: features_of(judge, slices(real))), features_of(
            judge, slices(fake)
        )

    def _note(self, groups: dict[str, Scores], n_real: int, n_fake: int) -> None:
        """Adds notes on missing and uninformative scores."""
        self.notes += judge_notes(self.extractor, groups)
        if "is" in groups and n_real < n_fake:
            self.notes.append(f"No Inception score of real images: there are {n_real} real, {n_fake} generated images.")
        if "nn" in groups:
            groups["nn"].card["train_fingerprint"] = self.sets["train"].fingerprint
            if groups["nn"]["nn_test"] == 0:
                self.notes.append("Most images of real= are also in train=, so the ratio measures nothing.")
        elif "nn" in self.wanted:
            self.notes.append("The memorisation ratio needs the training images: set train=PATH.")


def default_extractor(data: LabelledSets, weights: str | None) -> str:
    """The default extractor: a classifier if there are labels, else Inception if its weights are found, else random."""
    from genlab.metrics.inception import find_inception_weights

    if data.spec.num_classes is not None:
        return "classifier"
    if weights is not None:
        return "inception"
    try:
        find_inception_weights(None, False)
    except UserError:
        return "random"
    return "inception"


def _store(images: ImageSet) -> ArrayStore:
    """Images and their labels, if they have any."""
    from genlab.data.store import ArrayStore

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
        import re

        import torch

        from genlab.data.spec import DataSpec

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
