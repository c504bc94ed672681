"""Images that anything made, scored against others: sets of them, and a judge that has not seen what it judges."""

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

    from genlab.judging.image_sets import ImageSet
    from genlab.metrics.features import FeatureStats
    from genlab.metrics.scores import Scores

MOST = max(IMAGES, 50_000)  # images of each kind, as many as the published protocol uses


class SetScoring:
    """Scores of `fake` images against `real` ones.

    Attributes:
        extractor: The network that judges; None before it is made, or where no score asks for one.
        notes: What must be said beside the scores.
        seconds: How long the parts took.
        shape: Of a picture.
    """

    def __init__(self, sets: Mapping[str, ImageSet], options: Mapping[str, Any]) -> None:
        """Takes the sets.

        Args:
            sets: `real`, `fake` and perhaps `train`, at one size.
            options: See `genlab-evaluate`.

        Raises:
            UserError: If a set is too small, or nothing that was asked for can be had of sets.
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
            raise UserError(f"Of two sets of images there are the scores {', '.join(GROUPS)}.")
        self.shape = tuple(sets["real"].x.shape[1:])
        self.rows = torch.arange(len(sets["real"].x))  # of the real images that may be judged
        self.extractor: Any = None
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}

    def groups(self) -> dict[str, Scores]:
        """The scores, by group.

        Raises:
            UserError: If there is no extractor, or too few real images that it has not seen.
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
        """Makes the network that judges, and leaves out the real images that it has learned from."""
        data = LabelledSets(self.sets["real"], self.sets.get("train"))
        kind = self.options["extractor"] or default_extractor(data, self.options["inception_weights"])
        self.extractor = find_extractor(kind, dict(self.options), data)
        check_shape(self.extractor, self.shape)
        if kind != "classifier" or len(data.judged_rows) == len(self.rows):
            return
        taught, self.rows = len(self.rows) - len(data.judged_rows), data.judged_rows
        self.notes.append(
            f"The judge has learned from {taught} of the real images, so that the other {len(self.rows)} alone are "
            "compared with. All are, with train=LABELLED or another extractor=."
        )
        if len(self.rows) < FEWEST:
            raise UserError(
                f"Scores need {FEWEST} real images or more that the judge has not seen, got {len(self.rows)}."
            )

    def _chosen(self, key: str, rows: Tensor | None = None) -> Tensor:
        """At most `n` images of a set, always the same."""
        from genlab.seeding import fixed_choice

        x = self.sets[key].x
        chosen = fixed_choice(len(x) if rows is None else len(rows), self.options["n"] or MOST)
        return x[chosen if rows is None else rows[chosen]]

    def _statistics(self, real: Tensor, fake: Tensor) -> tuple[FeatureStats | None, FeatureStats | None]:
        """The extractor's statistics of both, those of the real images from the cache where they are."""
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
        """Says what is missing or means little."""
        self.notes += judge_notes(self.extractor, groups)
        if "is" in groups and n_real < n_fake:
            self.notes.append(f"No Inception score of real images: there are {n_real}, and {n_fake} generated ones.")
        if "nn" in groups:
            groups["nn"].card["train_fingerprint"] = self.sets["train"].fingerprint
            if groups["nn"]["nn_test"] == 0:
                self.notes.append("Most images of real= are in train= too, so that the ratio measures nothing.")
        elif "nn" in self.wanted:
            self.notes.append("The memorisation ratio needs the images that were trained on: train=PATH.")


def default_extractor(data: LabelledSets, weights: str | None) -> str:
    """The network where none was named: learned from labels; without any, Inception if its weights are at hand."""
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


class LabelledSets:
    """Labelled images for training a judge: `train` if it has labels, else half of `real`.

    No image that is judged has taught the judge.

    Attributes:
        name: For the classifier's name.
        judged_rows: Rows of `real` that may be judged.
    """

    mirrors = False

    def __init__(self, real: ImageSet, train: ImageSet | None) -> None:
        """Divides the images.

        Args:
            real: The images that are judged against.
            train: Others, with labels at best.
        """
        import re

        import torch

        from genlab.data.spec import DataSpec
        from genlab.data.store import ArrayStore

        source, apart = (train, True) if train is not None and train.y is not None else (real, False)
        self.name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source.name).resolve().stem).strip("-") or "images"
        order = torch.randperm(len(source.x), generator=torch.Generator().manual_seed(0))
        held = len(order) // (5 if apart else 2)
        known = {"train": order[held:], "test": order[:held]}
        self.judged_rows = torch.arange(len(real.x)) if apart or real.y is None else known["test"].sort().values
        self._stores = {
            name: ArrayStore(source.x, source.y).subset(rows.sort().values) for name, rows in known.items()
        } | {"val": ArrayStore(real.x[:0], None if real.y is None else real.y[:0])}
        classes = None if source.y is None else int(source.y.max()) + 1
        self.spec = DataSpec("image", tuple(source.x.shape[1:]), classes)

    def split(self, name: str) -> Any:
        """The images that the judge learns from ("train") and is tested on ("test")."""
        return self._stores[name]

    judged = split
