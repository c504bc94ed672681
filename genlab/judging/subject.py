"""Scores of a trained model on one split of its data."""

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

    from genlab.batch import Batch
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
    """Scores one model on one split; the capabilities of the model, not its name, decide which scores apply."""

    def __init__(
        self, model: GenerativeModel, data: ArrayData, options: dict[str, Any], make_sampler: Callable[[], Sampler]
    ) -> None:
        """Sets up the scoring and chooses the real samples.

        Args:
            model: Loaded model.
            data: Data of its training run.
            options: Options of `genlab-evaluate`.
            make_sampler: Makes the sampler named in `options`, ready to draw.
        """
        from genlab.seeding import fixed_choice

        self.model, self.data, self.options, self.make_sampler = model, data, options, make_sampler
        self.sampler = options["sampler"] or "prior"
        self.split, self.seed = options["split"], options["seed"]
        self.store = data.judged(self.split)
        self.pictures = data.spec.images
        most = options["n"] or (IMAGES if self.pictures else POINTS)
        self.n = most if not self.pictures else min(most, len(self.store))
        self.rows = fixed_choice(len(self.store), self.n)
        self.extractor: Any = None
        self.extractor_name = "none" if self.pictures else data.spec.x.kind
        self.groups: dict[str, Scores] = {}
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}

    def wants(self, *groups: str) -> bool:
        """Whether one of these groups is requested; all are if `scores` is not set."""
        return self.options["scores"] is None or bool(set(groups) & set(self.options["scores"]))

    def work(self) -> None:
        """Computes all requested scores that apply to the model and its data."""
        from genlab.metrics.features import full_float32

        if len(self.rows) < FEWEST:
            raise UserError(
                f"Scores need {FEWEST} samples or more, and the {self.split} split of {self.data.name} holds "
                f"{len(self.store)}. Try another split=."
            )
        can = self.model.can
        draws = can("sample") or self.sampler != "prior"  # other samplers check their own needs
        if self.pictures and (draws or can("reconstruct")):
            with self.clock("extractor"):
                self.extractor = self.find_extractor()
            if self.extractor is not None:
                self.extractor_name = self.extractor.name
        if not draws and self.wants("fid", "is", "kid", "pr", "ms_ssim", "nn", "points"):
            self.notes.append(f"{type(self.model).__name__} draws no samples: it has no `sample`.")
        elif self.pictures and self.wants("fid", "is", "kid", "pr", "ms_ssim", "nn"):
            self.images()
        elif not self.data.spec.x.pictorial and self.wants("points"):
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
            asked = f" among {', '.join(self.options['scores'])}" if self.options["scores"] else ""
            able = ", ".join(name for name in ("sample", "reconstruct", "log_joint") if can(name)) or "nothing"
            reason = f" {self.notes[0]}" if self.notes else ""
            raise UserError(
                f"No score{asked} applies: {type(self.model).__name__} on {self.data.spec.x.kind} data offers "
                f"{able}.{reason}"
            )

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Records the seconds of a block under a name."""
        started = time.monotonic()
        yield
        self.seconds[what] = round(time.monotonic() - started, 2)

    def find_extractor(self) -> Any:
        """The feature extractor; None if no score needs it or, with a note, if the default one is unavailable."""
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
            self.notes.append(f"Scores from features are left out: {error}")
            return None

    def real(self, rows: Tensor) -> Tensor:
        """The real samples at these rows, normalised as in training."""
        return self.data.spec.x.normalise(self.store.gather(rows))

    def told(self, rows: Tensor) -> Any:
        """The model under the conditions of these rows."""
        from genlab.telling import telling

        return telling(self.model, self.data.rows(self.split, self.model.given, rows) if self.model.given else None)

    def draw(self, n: int, at_a_time: int = 256) -> Tensor:
        """Generated samples on the CPU, images as uint8; one seed gives the same latents for every model."""
        import torch
        from rich.progress import track

        from genlab.judging.judge import sample_batches, wanted
        from genlab.sharing import first_then_others, is_first, shared

        sampler = first_then_others(self.make_sampler)

        def draw(size: int, given: Batch | None, rng: torch.Generator) -> Tensor:
            return sampler.sample(self.model, size, given=given, rng=rng)

        def kept(batch: Callable[[], Tensor]) -> Tensor:
            x = batch()
            return (self.data.spec.render(x) if self.pictures else x).cpu()

        given = wanted(self.model, self.data, self.split, n, self.seed)
        batches = sample_batches(draw, n, self.seed, given, at_a_time)
        bar = track(batches, description="drawing", transient=True, disable=len(batches) < 8 or not is_first())
        # A sampler that learns while it draws must learn on every process: each draws all, and only scoring is shared.
        return torch.cat([kept(batch) for batch in bar] if sampler.grows else list(shared(bar, kept)))

    @property
    def drawn(self) -> dict[str, Any]:
        """Additional card fields of scores on generated samples."""
        from genlab.config.samplers import sampler_text
        from genlab.judging.judge import given_text

        card = {"sampler": sampler_text(self.sampler, self.options["sampler_settings"])}
        return {**card, "given": given_text(self.model)}

    def images(self) -> None:
        """Scores FID, IS, KID, precision and recall, diversity and memorisation."""
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
                "The classifier was trained on these images. Try split=test, whose images it has not seen."
            )

    def points(self) -> None:
        """Scores modes, high-quality share, KL of the histogram and energy distance, each with a reference.

        The reference is a perfect generator: as many points of the true distribution, from another split.
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
        """Scores MSE, PSNR and SSIM of images and, with an extractor, FID and lost features; only MSE of other data."""
        import torch

        from genlab.judging.judge import real_stats
        from genlab.judging.suite import slices
        from genlab.metrics.features import features_of
        from genlab.metrics.reconstruction import feature_error, reconstruction_scores
        from genlab.metrics.scores import Scores, fid
        from genlab.sharing import shared

        device, parts = self.model.device, self.rows.split(self.options["batch_size"])
        recons = shared(parts, lambda rows: self.told(rows).reconstruct(self.real(rows).to(device)).cpu())
        pairs = ((self.real(rows), recon) for rows, recon in zip(parts, recons, strict=True))
        if not self.pictures:
            errors = torch.cat([(a - b).double().square().flatten(1).mean(dim=1) for a, b in pairs])
            self.groups["reconstruction"] = Scores({"recon_mse": errors.mean().item()}, {"n_real": len(errors)})
            return
        rendered: list[Tensor] = []

        def keep(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # uint8: floats take 4x the memory
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
        """Scores the error rate of the model's own classes or clusters."""
        from genlab.judging.classification import classification_scores

        scores = classification_scores(self.model, self.data, self.split, self.n, self.options["batch_size"])
        self.groups |= {"classification": scores} if scores else {}

    def factors(self) -> None:
        """Scores the correlations of single latents with the data's known factors."""
        from genlab.metrics.factors import coded, factor_scores

        names = self.data.spec.factor_names or ()
        codes, factor = coded(self.model, self.data.batches(self.split, self.options["batch_size"], limit=self.n))
        units = getattr(self.model, "factor_units", None)
        self.groups["factors"] = factor_scores(codes, factor, names, units)

    def likelihood(self) -> None:
        """Scores ELBO and its terms, importance-weighted bound, active units; bits/dim if images have a likelihood."""
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
        chosen = fixed_choice(len(self.store), min(most, self.n))
        x = self.real(chosen)
        valid = is_likelihood(x, support)
        noisy = self.pictures and support == "real"
        if noisy:
            x = dequantise(x, torch.Generator().manual_seed(self.seed))
        parts = x.split(32)
        bar = track(parts, description="likelihood", transient=True, disable=len(parts) < 8 or not is_first())
        given = self.given_parts(chosen)
        bounds = importance_bounds(self.model, bar, self.options["iwae_samples"], self.seed, given=given)
        scores = likelihood_scores(bounds, valid)
        scores.card |= {"support": support, "dequantised": "uniform" if noisy else "no"}
        if valid and self.pictures:
            name, dims = f"iwae_{bounds.samples}", x[0].numel() * self.model.modelled_share
            scores |= Scores({"bits_per_dim": bits_per_dim(scores[name], dims, support)})
        if not valid:
            self.notes.append(
                "Grey pixels have no likelihood under a Bernoulli: its terms are reported as the training objective. "
                "For a likelihood, train on data.binarize=static or dynamic."
            )
        elif scores["ess"] < 5 <= bounds.samples:
            self.notes.append(
                f"The IWAE bound is loose: a median of {scores['ess']:.1f} of {bounds.samples} draws are effective. "
                f"Try iwae_samples={10 * bounds.samples}."
            )
        if self.options["ais_steps"]:
            scores |= self.annealed(parts, valid, given)
        self.groups["likelihood"] = scores

    def given_parts(self, rows: Tensor) -> list[Batch] | None:
        """The conditions of these rows, 32 at a time; None for a model that is given no column."""
        if not self.model.given:
            return None
        return [self.data.rows(self.split, self.model.given, part) for part in rows.split(32)]

    def annealed(self, parts: Sequence[Tensor], valid: bool, given: list[Batch] | None) -> Scores:
        """Annealed importance sampling of log p(x); empty, with a note, if the model or the data do not allow it."""
        from genlab.metrics.ais import ais, ais_scores, can_anneal
        from genlab.metrics.scores import Scores

        if not valid or not can_anneal(self.model):
            why = "it draws no continuous latents from a prior" if valid else "these data have no likelihood under it"
            self.notes.append(f"ais_steps is ignored for {type(self.model).__name__}: {why}.")
            return Scores()
        steps, chains = self.options["ais_steps"], self.options["ais_samples"]
        return ais_scores(ais(self.model, parts, steps, chains, self.seed, given=given))

    def record(self) -> dict[str, Any]:
        """Scores, groups and complete cards."""
        ema = self.model.has_averages
        common = common_card(self.data.describe(), self.split, self.seed, ema)
        return record_of(self.groups, common, self.notes, self.seconds)


def record_of(
    groups: dict[str, Scores], common: dict[str, Any], notes: list[str], seconds: dict[str, float]
) -> dict[str, Any]:
    """The results in a score file: scores by name, the group of each score, a card per group, notes and seconds."""
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
    """Shortens the training keys in error messages (`metrics.num_samples`) to those of `genlab-evaluate` (`n`)."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("metrics.num_samples", "n").replace("metrics.", "")
        raise UserError(text) from error


# --- Extractors -----------------------------------------------------------------------------------------------------


def find_extractor(asked: str, options: dict[str, Any], data: Pictures) -> Any:
    """The feature extractor named `asked`: one of `EXTRACTORS`, or a classifier file.

    Args:
        asked: Its name or file.
        options: Options of the scoring, with device, precision and Inception's weights.
        data: Images to score.

    Raises:
        UserError: If the extractor is unknown or cannot be loaded.
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
        raise UserError(f"extractor must be one of {', '.join(EXTRACTORS)}, or a classifier file, got {asked!r}.")
    try:
        return load_classifier(asked).to(device)
    except ValueError as error:
        raise UserError(str(error)) from error


def judge_notes(extractor: Any, groups: dict[str, Scores]) -> list[str]:
    """Caveats about the extractor for the reader of its scores."""
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
    """Raises a `UserError` if the extractor takes images of another shape than this one (C, H, W)."""
    own = getattr(extractor, "shape", None)
    if own is not None and tuple(own) != tuple(shape):
        raise UserError(f"{extractor.name} judges images of shape {list(own)}, got {list(shape)}.")


def tells_classes(extractor: Any, num_classes: int | None) -> bool:
    """Whether the extractor's logits are over the classes of these data."""
    from genlab.metrics.classifier import ClassifierExtractor

    return isinstance(extractor, ClassifierExtractor) and num_classes in (None, extractor.num_classes)
