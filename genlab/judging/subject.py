"""Scores of a model on a split of its data. It asks for capabilities, never for names of methods."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError
from genlab.judging.cards import SEEN, common_card

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genlab.data.module import ArrayData
    from genlab.judging.judge import Pictures
    from genlab.metrics.scores import Scores
    from genlab.models.base import GenerativeModel
    from genlab.sampling.base import Sampler

SCORES = (
    "fid",
    "is",
    "kid",
    "pr",
    "ms_ssim",
    "nn",
    "points",
    "likelihood",
    "reconstruction",
    "factors",
    "classification",
)
IMAGES, POINTS, FEWEST = 10_000, 2_500, 20


class Scoring:
    """Scores one model on one split: asks what the model can, never what it is called."""

    def __init__(
        self, model: GenerativeModel, data: ArrayData, options: dict[str, Any], make_sampler: Callable[[], Sampler]
    ) -> None:
        """Takes the model and what it is scored by.

        Args:
            model: Loaded.
            data: Those that it was trained on.
            options: See `genlab-evaluate`.
            make_sampler: Makes the sampler that `options` name, ready to draw.
        """
        from genlab.seeding import fixed_choice

        self.model, self.data, self.options, self.make_sampler = model, data, options, make_sampler
        self.sampler = options["sampler"] or "prior"
        self.kind, self.split, self.seed = data.spec.kind, options["split"], options["seed"]
        self.store = data.judged(self.split)
        most = options["n"] or (IMAGES if self.kind == "image" else POINTS)
        self.n = most if self.kind != "image" else min(most, len(self.store))
        self.rows = fixed_choice(len(self.store), self.n)
        self.extractor: Any = None
        self.extractor_name = "none" if self.kind == "image" else self.kind
        self.groups: dict[str, Scores] = {}
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}

    def wants(self, *groups: str) -> bool:
        """Whether one of these was asked for (or nothing in particular)."""
        return self.options["scores"] is None or bool(set(groups) & set(self.options["scores"]))

    def work(self) -> None:
        """Takes all scores that were asked for and apply."""
        from genlab.metrics.features import full_float32

        if len(self.rows) < FEWEST:
            raise UserError(
                f"Scores need {FEWEST} samples or more, and the {self.split} split of {self.data.name} holds "
                f"{len(self.store)}. Try another split=."
            )
        can = self.model.can
        draws = can("sample") or self.sampler != "prior"  # which says itself what it lacks
        if self.kind == "image" and (draws or can("reconstruct")):
            with self.clock("extractor"):
                self.extractor = self.find_extractor()
            if self.extractor is not None:
                self.extractor_name = self.extractor.name
        if not draws and self.wants("fid", "is", "kid", "pr", "ms_ssim", "nn", "points"):
            self.notes.append(f"{type(self.model).__name__} draws no samples: it has no `sample`.")
        elif self.kind == "image" and self.wants("fid", "is", "kid", "pr", "ms_ssim", "nn"):
            self.images()
        elif self.kind == "points" and self.wants("points"):
            with self.clock("points"):
                self.points()
        with full_float32(self.model.device):
            if can("reconstruct") and self.wants("reconstruction"):
                with self.clock("reconstruction"):
                    self.reconstruction()
            if (can("classify") or can("cluster")) and self.wants("classification"):
                with self.clock("classification"):
                    self.classification()
            if can("encode") and self.data.spec.factor_names and self.wants("factors"):
                with self.clock("factors"):
                    self.factors()
            bounded = can("log_joint") and can("log_prior") and can("sample_posterior")
            if bounded and self.wants("likelihood"):
                with self.clock("likelihood"):
                    self.likelihood()
        if not self.groups:
            asked = f" of {', '.join(self.options['scores'])}" if self.options["scores"] else ""
            able = ", ".join(name for name in ("sample", "reconstruct", "log_joint") if can(name)) or "nothing"
            reason = f" {self.notes[0]}" if self.notes else ""
            raise UserError(
                f"None{asked} can be taken: {type(self.model).__name__} on {self.kind} data offers {able}.{reason}"
            )

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Notes how long something takes."""
        started = time.monotonic()
        yield
        self.seconds[what] = round(time.monotonic() - started, 2)

    def find_extractor(self) -> Any:
        """The network that judges; None, with a note, where none is to be had and none was asked for."""
        if not self.wants("fid", "is", "kid", "pr", "ms_ssim", "reconstruction"):
            return None
        asked = self.options["extractor"]
        default = (self.model.run_config.get("metrics") or {}).get("extractor") or "classifier"
        try:
            kind = asked or default
            extractor = find_extractor(kind, self.options, self.data)
            check_shape(extractor, self.data.spec.shape)
            return extractor
        except UserError as error:
            if asked is not None or self.options["precision"] != "float32":
                raise
            self.notes.append(f"No scores of features: {error}")
            return None

    def real(self, rows: Tensor) -> Tensor:
        """Some of the real samples, as the model knows them."""
        from genlab.data.stream import normalise

        return normalise(self.store.gather(rows))

    def draw(self, n: int, at_a_time: int = 256) -> Tensor:
        """The generated samples on the CPU, images as uint8; the latents of one seed are the same for every model."""
        import torch
        from rich.progress import track

        from genlab.judging.judge import sample_batches, wanted_classes
        from genlab.sharing import first_then_others, is_first, shared

        sampler = first_then_others(self.make_sampler)

        def draw(size: int, y: Tensor | None, rng: torch.Generator) -> Tensor:
            return sampler.sample(self.model, size, y=y, rng=rng)

        def kept(batch: Callable[[], Tensor]) -> Tensor:
            x = batch()
            return (self.data.spec.render(x) if self.kind == "image" else x).cpu()

        y = wanted_classes(self.model, self.store.y, n, self.seed)
        batches = sample_batches(draw, n, self.seed, y, at_a_time)
        bar = track(batches, description="drawing", transient=True, disable=len(batches) < 8 or not is_first())
        # What a sampler learns on the way every process must learn: then each draws all, and only judging is shared.
        return torch.cat([kept(batch) for batch in bar] if sampler.grows else list(shared(bar, kept)))

    @property
    def drawn(self) -> dict[str, Any]:
        """Further fields on the cards of generated samples."""
        from genlab.config.samplers import sampler_text
        from genlab.judging.judge import FROM_LABELS

        card = {"sampler": sampler_text(self.sampler, self.options["sampler_settings"])}
        return {**card, "y": FROM_LABELS} if getattr(self.model, "conditional", False) else card

    def images(self) -> None:
        """FID and friends, diversity, memorisation."""
        import torch

        from genlab.judging.judge import real_stats
        from genlab.judging.suite import GROUPS, image_scores, slices
        from genlab.metrics.features import features_of
        from genlab.sharing import by_first

        wanted = [g for g in GROUPS if self.wants(g)]
        with self.clock("samples"):
            fake = self.draw(len(self.rows))
        real = self.store.gather(self.rows)
        of_real = of_fake = None
        if self.extractor is not None and self.wants("fid", "is", "kid", "pr", "ms_ssim"):
            with self.clock("real features"):
                of_real = real_stats(self.extractor, self.data, self.split, self.n)
            with self.clock("features"):
                of_fake = features_of(self.extractor, slices(fake))

        def scores() -> dict[str, Scores]:
            train = None
            if self.wants("nn") and self.split != "train":
                store = self.data.judged("train")
                train = store.gather(torch.arange(len(store)))
            return image_scores(
                real,
                fake,
                of_real,
                of_fake,
                wanted,
                seed=self.seed,
                train=train,
                labels_by_logits=tells_classes(self.extractor, self.data.spec.num_classes),
            )

        with self.clock("scores"):
            groups = by_first(scores)
        for group in groups.values():
            group.card |= self.drawn
        if "nn" in groups:
            groups["nn"].card["train_fingerprint"] = self.data.judged("train").fingerprint()
        self.groups |= groups
        self.notes += judge_notes(self.extractor, groups)
        if self.extractor is not None and self.split == "train" and tells_classes(self.extractor, None):
            self.notes.append(
                "The judge has learned from these images themselves: split=test has those it has not seen."
            )

    def points(self) -> None:
        """Modes, high-quality share, KL of the histogram and the energy distance, each beside a perfect generator's.

        The perfect generator's figures are those of fresh points of the true distribution: another split, equal n.
        """
        from genlab.metrics.scores import Scores
        from genlab.metrics.toy import energy_distance, mode_coverage
        from genlab.seeding import fixed_choice

        x = self.draw(self.n, at_a_time=self.n)
        real = self.store.gather(self.rows)
        other = self.data.split("val" if self.split != "val" else "test")
        perfect = other.gather(fixed_choice(len(other), self.n))
        scores = Scores(energy_distance(x, real), energy_distance(x, real).card)
        scores |= Scores({"energy_real": energy_distance(perfect, real)["energy"]})
        if self.data.modes is not None:
            scores |= mode_coverage(x, *self.data.modes)
            scores |= Scores({f"{k}_real": v for k, v in mode_coverage(perfect, *self.data.modes).items()})
        scores.card |= self.drawn
        self.groups["points"] = scores

    def reconstruction(self) -> None:
        """MSE, PSNR and SSIM of images, and how they look to the judge: FID, lost features. MSE of all else."""
        import torch

        from genlab.judging.judge import real_stats
        from genlab.judging.suite import slices
        from genlab.metrics.features import features_of
        from genlab.metrics.reconstruction import feature_error, reconstruction_scores
        from genlab.metrics.scores import Scores, fid
        from genlab.sharing import shared

        device, parts = self.model.device, self.rows.split(self.options["batch_size"])
        recons = shared(parts, lambda rows: self.model.reconstruct(self.real(rows).to(device)).cpu())
        pairs = ((self.real(rows), recon) for rows, recon in zip(parts, recons, strict=True))
        if self.kind != "image":
            errors = torch.cat([(a - b).double().square().flatten(1).mean(dim=1) for a, b in pairs])
            self.groups["reconstruction"] = Scores({"recon_mse": errors.mean().item()}, {"n_real": len(errors)})
            return
        rendered: list[Tensor] = []

        def keep(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # bytes: floats of all would be fourfold
            rendered.append(self.data.spec.render(pair[1]))
            return pair

        self.groups["reconstruction"] = reconstruction_scores(keep(pair) for pair in pairs)
        if self.extractor is not None:
            real = real_stats(self.extractor, self.data, self.split, self.n)
            recon = features_of(self.extractor, slices(torch.cat(rendered)))
            values = fid(real, recon)
            scores = Scores({"rfid": values["fid"], "recon_features": feature_error(real, recon)}, values.card)
            self.groups["rfid"] = scores.named(self.extractor.name)

    def classification(self) -> None:
        """How often the model's own classes are wrong."""
        from genlab.judging.classification import classification_scores

        scores = classification_scores(self.model, self.data, self.split, self.n, self.options["batch_size"])
        self.groups |= {"classification": scores} if scores else {}

    def factors(self) -> None:
        """Correlations of single latents with the data's known factors."""
        from genlab.metrics.factors import coded, factor_scores

        names = self.data.spec.factor_names or ()
        codes, factor = coded(self.model, self.data.batches(self.split, self.options["batch_size"], limit=self.n))
        units = getattr(self.model, "factor_units", None)
        self.groups["factors"] = factor_scores(codes, factor, names, units)

    def likelihood(self) -> None:
        """The ELBO with its parts, the importance-weighted bound, active units; bits/dim where they mean something."""
        import torch
        from rich.progress import track

        from genlab.metrics.likelihood import (
            bits_per_dim,
            dequantise,
            importance_bounds,
            is_likelihood,
            likelihood_scores,
        )
        from genlab.metrics.scores import Scores
        from genlab.seeding import fixed_choice
        from genlab.sharing import is_first

        support = getattr(getattr(self.model, "likelihood", None), "support", "real")
        most = self.options["likelihood_images"] or self.n
        x = self.real(fixed_choice(len(self.store), min(most, self.n)))
        valid = is_likelihood(x, support)
        noisy = self.kind == "image" and support == "real"
        if noisy:
            x = dequantise(x, torch.Generator().manual_seed(self.seed))
        parts = x.split(32)
        bar = track(parts, description="likelihood", transient=True, disable=len(parts) < 8 or not is_first())
        bounds = importance_bounds(self.model, bar, self.options["iwae_samples"], self.seed)
        scores = likelihood_scores(bounds, valid)
        scores.card |= {"support": support, "dequantised": "uniform" if noisy else "no"}
        if valid and self.kind == "image":
            name, dims = f"iwae_{bounds.samples}", x[0].numel()
            scores |= Scores({"bits_per_dim": bits_per_dim(scores[name], dims, support)})
        if not valid:
            self.notes.append(
                "Grey pixels under a Bernoulli have no likelihood: its terms are given as the objective that they are. "
                "For one, train on data.binarize=static or dynamic."
            )
        elif scores["ess"] < 5 <= bounds.samples:
            self.notes.append(
                f"The IWAE bound hangs on {scores['ess']:.1f} of {bounds.samples} draws (median): it is loose. "
                f"Try iwae_samples={10 * bounds.samples}."
            )
        if self.options["ais_steps"]:
            scores |= self.annealed(parts, valid)
        self.groups["likelihood"] = scores

    def annealed(self, parts: Sequence[Tensor], valid: bool) -> Scores:
        """Annealed importance sampling of log p(x), where the model allows it."""
        from genlab.metrics.ais import ais, ais_scores, can_anneal
        from genlab.metrics.scores import Scores

        if not valid or not can_anneal(self.model):
            why = "it draws no continuous latents from a prior" if valid else "these data have no likelihood under it"
            self.notes.append(f"ais_steps is passed over: {type(self.model).__name__}: {why}.")
            return Scores()
        return ais_scores(ais(self.model, parts, self.options["ais_steps"], self.options["ais_samples"], self.seed))

    def record(self) -> dict[str, Any]:
        """Scores, groups and complete cards."""
        ema = self.model.has_averages
        common = common_card(self.data.describe(), self.split, self.seed, ema)
        return record_of(self.groups, common, self.notes, self.seconds)


def record_of(
    groups: dict[str, Scores], common: dict[str, Any], notes: list[str], seconds: dict[str, float]
) -> dict[str, Any]:
    """The part of a score file that says what was found: scores by name, the group of each, a card per group."""
    return {
        "scored": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "scores": {name: value for scores in groups.values() for name, value in scores.items()},
        "group": {name: group for group, scores in groups.items() for name in scores},
        "cards": {group: {**common, **scores.card} for group, scores in groups.items()},
        "notes": notes,
        "seconds": seconds,
    }


@contextmanager
def our_keys() -> Iterator[None]:
    """The metrics name the overrides of a training; here their keys are shorter."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("metrics.num_samples", "n").replace("metrics.", "")
        raise UserError(text) from error


# --- Extractors -----------------------------------------------------------------------------------------------------


def find_extractor(asked: str, options: dict[str, Any], data: Pictures) -> Any:
    """The network that `asked` names: one of the judge's, or a classifier's file.

    Args:
        asked: Its name.
        options: Of the scoring: device, precision, Inception's weights.
        data: What is judged.

    Raises:
        UserError: If there is no such network.
    """
    import torch

    from genlab.judging.judge import EXTRACTORS, check_precision, network_for
    from genlab.sharing import first_then_others

    with our_keys():
        check_precision(asked, options["precision"])
    device = torch.device(options["device"])
    if asked in EXTRACTORS:
        with our_keys():
            weights, precision = options["inception_weights"], options["precision"]
            return first_then_others(lambda: network_for(asked, data, device, weights, precision))
    from genlab.metrics.classifier import load_classifier

    if not Path(asked).is_file():
        raise UserError(f"extractor must be one of {', '.join(EXTRACTORS)}, or a file of a classifier, got {asked!r}.")
    try:
        return load_classifier(asked).to(device)
    except ValueError as error:
        raise UserError(str(error)) from error


def judge_notes(extractor: Any, groups: dict[str, Scores]) -> list[str]:
    """Notes on the judge, for the reader of its scores."""
    from genlab.judging.judge import UNTRAINED

    if extractor is None:
        return []
    notes = [] if extractor.num_classes else [UNTRAINED.replace("metrics.", "")]
    values: dict[str, float] = groups.get("is") or {}
    own, real = (values.get(f"{name}/{extractor.name}", math.nan) for name in ("is", "is_real"))
    if tells_classes(extractor, None) and own > real:
        notes.append(f"The Inception score is {SEEN}.")
    return notes


def check_shape(extractor: Any, shape: tuple[int, ...]) -> None:
    """Raises a UserError where the extractor judges images of another shape (C, H, W)."""
    own = getattr(extractor, "shape", None)
    if own is not None and tuple(own) != tuple(shape):
        raise UserError(f"{extractor.name} judges images of shape {list(own)}, got {list(shape)}.")


def tells_classes(extractor: Any, num_classes: int | None) -> bool:
    """Whether the extractor's logits are over the classes of these data."""
    from genlab.metrics.classifier import ClassifierExtractor

    return isinstance(extractor, ClassifierExtractor) and num_classes in (None, extractor.num_classes)
