"""The training objective on held-out data, and bounds on the log-likelihood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from genlab.judging.measure import About, Measure

if TYPE_CHECKING:
    from torch import Tensor

    from genlab.batch import Batch
    from genlab.judging.subject import Subject
    from genlab.metrics.scores import Scores

GREY = (
    "Grey pixels have no likelihood under a Bernoulli: its terms are reported as the training objective. "
    "For a likelihood, train on data.binarize=static or dynamic."
)


class Objective(Measure):
    """The terms of the training objective, weighted as in training (KL weight at this iteration).

    `elbo`, `relaxed` and `bound` are bounds on log p(x). If the likelihood is none of the data (a Bernoulli on grey
    pixels), `elbo` is named `objective`, without `bound`.
    """

    name, place, section = "objective", 40, "training objective"
    needs = ("objective",)
    about: Mapping[str, About] = {
        "bound": About("bound of the training objective, nats", "higher"),
        "elbo": About("ELBO, nats", "higher"),
        "relaxed": About("relaxed ELBO, nats", "higher"),
        "objective": About("training objective, nats", "higher"),
        "perplexity": About("perplexity of the codebook"),
        "loss": About("training loss", "lower"),
        "ess": About("effective draws", chosen="higher"),
    }
    # The loss comes last: under a schedule of the KL weight it may grow while the bound on log p(x) improves.
    monitor = ("bound", "elbo", "objective", "loss")
    most = 1000

    def take(self, subject: Subject) -> Iterable[Scores]:
        """The terms by name, means over the samples."""
        from genlab.metrics.scores import Scores
        from genlab.sharing import shared, stream
        from genlab.telling import telling

        model, batches = subject.model, subject.batches(likelihood_count(self, subject))
        valid, support = _likelihood(subject, batches)

        def work(piece: tuple[int, Batch]) -> tuple[int, dict[str, float]]:
            number, batch = piece
            with model.inference():
                found = telling(model, batch).objective(batch.x.to(model.device), stream(subject.seed, number))
            return len(batch), {name: float(value) for name, value in found.items()}

        parts = list(shared(enumerate(batches), work))
        total = sum(n for n, _ in parts)
        terms = {name: sum(n * values[name] for n, values in parts) / total for name in parts[0][1]}
        if not valid:
            terms = {name.replace("elbo", "objective"): value for name, value in terms.items() if name != "bound"}
        card = {"n_real": total, "support": support, "is_likelihood": valid, "given": subject.told_text}
        return [Scores(terms, card)]

    def direction(self, score: str) -> str | None:
        """Higher for any perplexity of a codebook; lower for terms without a title, as parts of a loss."""
        return "higher" if score.endswith("perplexity") else super().direction(score)


class Likelihood(Measure):
    """ELBO and its terms, importance-weighted bound, active units; bits/dim if images have a likelihood."""

    name, place, section = "likelihood", 41, "likelihood"
    needs = ("log_joint", "log_prior", "sample_posterior")
    about: Mapping[str, About] = {
        "elbo": About("ELBO, nats", "higher"),
        "elbo_recon": About("its E log p(x|z)"),
        "elbo_kl": About("its KL(q|p)"),
        "objective": About("training objective, nats", "higher"),
        "objective_recon": About("its reconstruction term"),
        "objective_kl": About("its KL term"),
        "iwae": About("IWAE bound, nats", "higher"),
        "ess": About("effective draws", chosen="higher"),
        "bits_per_dim": About("bits/dim", "lower"),
        "active_units": About("active units", chosen="higher"),
    }
    cheap = False
    most = 1000

    def take(self, subject: Subject) -> Iterable[Scores]:
        """Cards differ: an ELBO is the same on average for any number of draws, an IWAE bound is not."""
        from genlab.metrics.likelihood import bits_per_dim, importance_bounds, likelihood_scores
        from genlab.metrics.scores import Scores

        batches = subject.batches(likelihood_count(self, subject))
        valid, support = _likelihood(subject, batches)
        x, given, noisy = inputs(subject, batches, support)
        bounds = importance_bounds(
            subject.model, bar(x, "likelihood"), subject.settings.iwae_samples, subject.seed, given=given
        )
        found = likelihood_scores(bounds, valid)
        if valid and subject.pictures:
            dims = x[0][0].numel() * subject.model.modelled_share
            found |= Scores({"bits_per_dim": bits_per_dim(found[f"iwae_{bounds.samples}"], dims, support)})
        if not valid:
            subject.note(GREY)
        elif found["ess"] < 5 <= bounds.samples:
            subject.note(
                f"The IWAE bound is loose: a median of {found['ess']:.1f} of {bounds.samples} draws are effective. "
                f"Try iwae_samples={10 * bounds.samples}."
            )
        found.card |= {"support": support, "dequantised": "uniform" if noisy else "no", "given": subject.told_text}
        return parted(found)

    def title(self, score: str) -> str:
        """With k of the bound."""
        k = score.partition("_")[2]
        return super().title(score) + (f", k = {k}" if self.kind(score) == "iwae" else "")

    def beside(self, score: str, scores: Mapping[str, float], card: Mapping[str, Any]) -> list[str]:
        """The number of draws, and that of latent units."""
        of = {"ess": "iwae_samples", "active_units": "latent_dim"}.get(score)
        return [] if of is None else [f"of {card[of]}"]


class PriorLikelihood(Measure):
    """log p(x) of a model that is given columns, by draws from the prior. Sohn, Lee & Yan (2015), Eq. 7."""

    name, place, section = "prior_likelihood", 43, "likelihood"
    needs = ("log_joint", "log_prior", "sample_prior")
    about: Mapping[str, About] = {"prior": About("log p(x) by draws from the prior, nats", "higher")}
    cheap = False
    most = 1000

    def missing(self, subject: Subject) -> str | None:
        """Needs conditions, without which few draws come near a sample, and data with a likelihood."""
        why = super().missing(subject)
        if why is None and not subject.model.given:
            why = f"{type(subject.model).__name__} is given no columns."
        if why is None and not _likelihood(subject, subject.batches(likelihood_count(self, subject)))[0]:
            why = "These data have no likelihood under it."
        return why

    def take(self, subject: Subject) -> Iterable[Scores]:
        """{"prior_<k>", "prior_<k>_se"}, k the draws of the importance-weighted bound."""
        from genlab.metrics.likelihood import prior_bounds
        from genlab.metrics.scores import Scores

        batches, k = subject.batches(likelihood_count(self, subject)), subject.settings.iwae_samples
        support = _likelihood(subject, batches)[1]
        x, given, noisy = inputs(subject, batches, support)
        found = prior_bounds(subject.model, bar(x, "likelihood"), k, subject.seed, given=given)
        error = (found.std() / len(found) ** 0.5).item() if len(found) > 1 else 0.0
        card = {
            "n_real": len(found),
            "iwae_samples": k,
            "support": support,
            "dequantised": "uniform" if noisy else "no",
        }
        yield Scores({f"prior_{k}": found.mean().item(), f"prior_{k}_se": error}, {**card, "given": subject.told_text})

    def title(self, score: str) -> str:
        """With the number of draws."""
        k = score.partition("_")[2]
        return super().title(score) + (f", k = {k}" if self.kind(score) == "prior" else "")


class Annealed(Measure):
    """log p(x) by annealed importance sampling; of energy-based models log Z. Taken if `ais_steps` is not 0."""

    name, place, part_of, section = "ais", 42, "likelihood", "likelihood"
    about: Mapping[str, About] = {
        "ais": About("annealed estimate, nats", "higher"),
        "ais_ess": About("its effective chains"),
        "ais_acceptance": About("its acceptance"),
        "log_z": About("log Z, annealed"),
    }
    cheap = False
    most = 1000

    def missing(self, subject: Subject) -> str | None:
        """Needs temperatures, and a model whose latents can be annealed or whose log Z can be estimated."""
        if not subject.settings.ais_steps:
            return "ais_steps is 0."
        from genlab.metrics.ais import can_anneal

        able = can_anneal(subject.model) or callable(getattr(subject.model, "log_partition", None))
        why = None if able else "it draws no continuous latents from a prior"
        batches = [] if why or subject.lacks("objective") else subject.batches(likelihood_count(self, subject))
        if batches and not _likelihood(subject, batches)[0]:
            why = "these data have no likelihood under it"
        if why:
            subject.note(f"ais_steps is ignored for {type(subject.model).__name__}: {why}.")
        return why

    def take(self, subject: Subject) -> Iterable[Scores]:
        """{"ais_<steps>", ...} and, of energy-based models, {"log_z", "log_z_se"}."""
        import torch

        from genlab.metrics.ais import ais, ais_scores, partition_scores
        from genlab.sharing import stream

        model, settings = subject.model, subject.settings
        batches = subject.batches(likelihood_count(self, subject))
        if callable(getattr(model, "log_partition", None)):
            log_w = model.log_partition(settings.ais_steps, settings.ais_samples, stream(subject.seed, 0))
            log_p = torch.cat([model.log_unnormalised(b.x.to(model.device)) for b in batches])
            return [partition_scores(log_w, log_p, settings.ais_steps)]
        support = _likelihood(subject, batches)[1]
        x, given, noisy = inputs(subject, batches, support)
        found = ais_scores(ais(model, x, settings.ais_steps, settings.ais_samples, subject.seed, given=given))
        found.card |= {"support": support, "dequantised": "uniform" if noisy else "no", "given": subject.told_text}
        return [found]

    def title(self, score: str) -> str:
        """With the number of temperatures."""
        steps = score.partition("_")[2]
        return super().title(score) + (f", {steps} temperatures" if self.kind(score) == "ais" else "")

    def beside(self, score: str, scores: Mapping[str, float], card: Mapping[str, Any]) -> list[str]:
        """The number of chains."""
        return [f"of {card['ais_samples']}"] if score == "ais_ess" else []


def likelihood_count(measure: Measure, subject: Subject) -> int:
    """Number of samples of bounds and objectives."""
    n = measure.number(subject)
    return min(n, subject.settings.likelihood_images or n)


def _likelihood(subject: Subject, batches: list[Batch]) -> tuple[bool, str]:
    """Whether p(x | z) is a distribution over these data, and its support."""
    from genlab.metrics.likelihood import is_likelihood

    support = getattr(getattr(subject.model, "likelihood", None), "support", "real")
    return all(is_likelihood(batch.x, support) for batch in batches), support


def inputs(subject: Subject, batches: list[Batch], support: str) -> tuple[list[Tensor], list[Batch] | None, bool]:
    """Samples with noise where the likelihood is a density, their conditions, and whether there is noise."""
    import torch

    from genlab.metrics.likelihood import dequantise

    noisy, rng = subject.pictures and support == "real", torch.Generator().manual_seed(subject.seed)
    x = [dequantise(batch.x, rng) if noisy else batch.x for batch in batches]
    return x, batches if subject.model.given else None, noisy


def bar(parts: list[Tensor], text: str) -> Iterable[Tensor]:
    """The parts with a progress bar in the first process, if there are many."""
    from rich.progress import track

    from genlab.sharing import is_first

    return track(parts, description=text, transient=True, disable=len(parts) < 8 or not is_first())


def parted(found: Scores) -> Iterator[Scores]:
    """The scores of bounds, each part with the fields of the card that concern it."""
    from genlab.metrics.scores import Scores

    of_units = ("active_threshold", "latent_dim")
    units = [name for name in found if name == "active_units"]
    of_draws = [name for name in found if name.startswith(("iwae", "ess", "bits"))]
    rest = [name for name in found if name not in (*units, *of_draws)]
    for names, left_out in ((rest, (*of_units, "iwae_samples")), (of_draws, of_units), (units, ())):
        yield Scores({n: found[n] for n in names}, {k: v for k, v in found.card.items() if k not in left_out})
