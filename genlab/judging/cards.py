"""Protocol cards: the conditions of each score, and whether two scores are comparable. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import genlab

PROTOCOL = 2  # part of every card: raise it when a score is computed differently than before
SEEN = "above the real images: the classifier was trained on the training images, and is surest of samples like them"
NAMED = 2  # differing fields named in a sentence at most
# Fields that may differ under one protocol: random seeds, and releases that compute the same scores.
REPEATED = ("seed", "genlab")
# Prefixes of score names.
PR = ("precision", "recall", "density", "coverage")
TOY = ("modes", "hq", "kl_modes", "energy")
DRAWN = ("fid", "is", "kid", *PR, "rarest_class", "ms_ssim", "nn_ratio", "nn_copies", *TOY)  # of generated samples
# Prefix of a field -> the scores that depend on it; every score depends on all other fields.
CONCERNS = {
    "is_splits": ("is",),
    "is_seed": ("is",),
    "kid_": ("kid",),
    "pr_": PR,
    "ms_ssim_": ("ms_ssim",),
    "nn_": ("nn_",),
    "ais_": ("ais", "log_z"),
    "rarest_": ("rarest_class",),
    "active_threshold": ("active_units",),
    "latent_dim": ("active_units",),
    "iwae_samples": ("iwae", "ess", "bits_per_dim", "active_units"),  # an ELBO is the same on average for any number
    "sampler": DRAWN,
    "given": DRAWN,
}
OF_SAMPLES_ALONE = ("is", "rarest_class", "modes", "hq", "kl_modes")  # real samples serve only as reference
# Score name up to "/" or "_<k>" -> its better direction. Scores that are not listed are never ranked.
BETTER = {
    "fid": "lower",
    "kid": "lower",
    "rfid": "lower",
    "recon_features": "lower",
    "is": "higher",
    "precision": "higher",
    "recall": "higher",
    "coverage": "higher",
    "elbo": "higher",
    "iwae": "higher",
    "ais": "higher",
    "bits_per_dim": "lower",
    "recon_mse": "lower",
    "recon_psnr": "higher",
    "recon_ssim": "higher",
    "modes": "higher",
    "kl_modes": "lower",
    "energy": "lower",
    "factor_corr": "higher",
    "factor_gap": "higher",
    "factor_r2": "higher",
    "factor_unit": "higher",
    "factor_leak": "lower",
    "classifier_error": "lower",
}
TITLES = {  # in the order of tables
    "fid": "FID",
    "is": "Inception score",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "rarest_class": "share of the rarest class",
    "rfid": "FID of reconstructions",
    "recon_features": "share of features lost in reconstruction",
    "ms_ssim": "diversity, 1 - MS-SSIM",
    "ms_ssim_within": "diversity within classes",
    "nn_ratio": "nearest-neighbour ratio",
    "nn_copies": "share of copies of training images",
    "elbo": "ELBO, nats",
    "elbo_recon": "its E log p(x|z)",
    "elbo_kl": "its KL(q|p)",
    "objective": "training objective, nats",
    "objective_recon": "its reconstruction term",
    "objective_kl": "its KL term",
    "iwae": "IWAE bound, nats",
    "ess": "effective draws",
    "ais": "annealed estimate, nats",
    "ais_ess": "its effective chains",
    "ais_acceptance": "its acceptance",
    "log_z": "log Z, annealed",
    "active_units": "active units",
    "bits_per_dim": "bits/dim",
    "recon_mse": "reconstruction MSE",
    "recon_psnr": "PSNR, dB",
    "recon_ssim": "SSIM",
    "classifier_error": "classification error",
    "modes": "modes",
    "hq": "high-quality share",
    "kl_modes": "KL of the modes' histogram",
    "energy": "energy distance",
    "factor_corr": "|corr| of factors and their best latents",
    "factor_gap": "its lead over other factors",
    "factor_r2": "R² of factors on all latents",
    "factor_unit": "|corr| of factors and their own latents",
    "factor_leak": "largest |corr| of these with other factors",
}


def kind_of(score: str) -> str:
    """`fid/classifier-digits` -> `fid`, `iwae_500` -> `iwae`: the key in `TITLES` and `BETTER`."""
    name = score.partition("/")[0]
    bound, _, k = name.partition("_")
    return bound if bound in ("iwae", "ais") and k.isdigit() else name


def section_of(score: str) -> str:
    """The heading of a score in tables."""
    name, _, extractor = score.partition("/")
    if name == "classifier_error":  # its suffix is no extractor
        return "classification"
    if extractor:
        return f"extractor {extractor}"
    starts = {
        "ms_ssim": "diversity and memorisation",
        "nn_": "diversity and memorisation",
        "recon": "reconstruction",
        "factor_": "factors",
    }
    return next((v for k, v in starts.items() if name.startswith(k)), "modes" if name in TOY else "likelihood")


def title_of(score: str) -> str:
    """The display name of a score, with its extractor."""
    kind, _, extractor = score.partition("/")
    title = TITLES.get(kind_of(score), kind.replace("_", " "))
    if kind_of(score) == "iwae":
        title += f", k = {kind.partition('_')[2]}"
    if kind_of(score) == "ais":
        title += f", {kind.partition('_')[2]} temperatures"
    return f"{title} ({extractor})" if extractor else title


def margin(value: float, spread: float) -> str:
    """A standard deviation or error of a value as text with two digits; "0" below a millionth of it, for rounding."""
    return "0" if spread < 1e-6 * abs(value) else f"{spread:.2g}"


def common_card(data: Mapping[str, Any], split: str, seed: int, ema: bool) -> dict[str, Any]:
    """The card fields shared by all scores of a run.

    Args:
        data: The data module's `describe()`.
        split: The scored split.
        seed: Seed of the latents.
        ema: Whether averaged weights are scored.
    """
    return {
        "protocol": PROTOCOL,
        "genlab": genlab.__version__,
        "seed": seed,
        "split": split,
        "data": data["name"],
        "fingerprint": data["fingerprint"][split],
        "shape": list(data["shape"]),
        "binarize": data["binarize"],
        "sizes": "none",  # how images of different sizes were resized to one size
        "ema": ema,
        "sampler": "prior",  # with its settings: "truncated(threshold=1.0, psi=null)"
        "given": "none",  # the conditions of samples, of a model that is told some
    }


def card_of(score: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """The card fields that this score depends on, the same whether training or `evaluate` wrote the card.

    Training writes one card for all scores of an extractor, `evaluate` one for each group of scores.
    """
    kind = kind_of(score)

    def concerned(field: str) -> bool:
        if field == "n_real" and kind in OF_SAMPLES_ALONE:
            return False
        of = next((scores for start, scores in CONCERNS.items() if _is_about(field, start)), None)
        return of is None or any(kind == s or kind.startswith(s if s.endswith("_") else f"{s}_") for s in of)

    mine = {field: value for field, value in card.items() if concerned(field)}
    if "rarest_n_fake" in mine:  # training counts classes in more samples than it scores
        mine["n_fake"] = mine.pop("rarest_n_fake")
    return mine


def run_card(score: str, cards: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The card of a score among the cards of a run (in `run.json`); empty if there is none.

    Args:
        score: Its name, without the split.
        cards: Cards by extractor, or by the key that a judge without an extractor uses, such as "likelihood".
    """
    by_section = {
        "likelihood": ("likelihood",),
        "factors": ("factors",),
        "classification": ("classification",),
        "modes": ("points", "stacked"),
    }
    keys = by_section.get(section_of(score), (score.partition("/")[2],))
    return card_of(score, next((cards[key] for key in keys if cards.get(key)), {}))


def _is_about(field: str, start: str) -> bool:
    return field.startswith(start) if start.endswith("_") else field == start


def differences(cards: Sequence[Mapping[str, Any]]) -> list[str]:
    """The differing fields that make the scores of these cards incomparable; [] if there are none."""
    names = sorted({name for card in cards for name in card})
    compared = [name for name in names if name not in REPEATED and not name.endswith("_seed")]
    return [name for name in compared if any(_text(card, name) != _text(cards[0], name) for card in cards)]


def disagreement(cards: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The differences as text: "the cards differ in n_fake (1000 in 9 scorings, 200 in run B)"; None if cards agree.

    An empty card agrees with no other, as the conditions of its score are unknown.

    Args:
        cards: The card of each scoring, by the name of the scored run.
    """
    bare = [who for who, card in cards.items() if not card]
    if bare:
        return f"there is no protocol card in {_holders(bare)}"
    fields = differences(list(cards.values()))
    if not fields:
        return None
    parts = []
    for field in fields[:NAMED]:
        holders: dict[str, list[str]] = {}
        for who, card in cards.items():
            holders.setdefault(_text(card, field), []).append(who)
        names = [value.partition("(")[0] if field == "sampler" else value for value in holders]
        values = names if len(set(names)) == len(names) else list(holders)  # settings only if two names are equal
        shown = [f"{value} in {_holders(who)}" for value, who in zip(values[:4], holders.values(), strict=False)]
        parts.append(f"{field} ({', '.join(shown)}{', ...' if len(holders) > 4 else ''})")
    more = f" and {len(fields) - NAMED} more fields" if len(fields) > NAMED else ""
    return f"the cards differ in {', '.join(parts)}{more}"


def refusal(score: str, cards: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The reason why these scores are not ranked: a sentence with fields and values; None if they are comparable.

    Args:
        score: Its name.
        cards: The card of each scoring that has the score, by the name of the scored run.
    """
    words = disagreement({who: card_of(score, card) for who, card in cards.items()})
    return None if words is None else f"{title_of(score)} is not ranked: {words}."


def _holders(names: list[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{len(names)} scorings"


def _text(card: Mapping[str, Any], field: str) -> str:
    value = card.get(field, "not stated")
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:12] if field in ("checksum", "fingerprint") else text
