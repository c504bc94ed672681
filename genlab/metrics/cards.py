"""Protocol cards: under which conditions a score was taken, and whether two scores may be compared. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import genlab

PROTOCOL = 1  # part of every card: raise it when a score is computed differently than before
# A repetition with other random numbers is the same protocol, and so is another release that computes the same.
NAMED = 2  # differing fields that a sentence names
REPEATED = ("seed", "genlab")
OWN = ("is_", "kid_", "pr_", "ms_ssim_", "nn_", "ais_")  # fields that concern one score only
# The name of a score up to "/" or "_<k>" -> which way is better. What is missing here is never ranked.
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
    """`fid/classifier-digits` -> `fid`, `iwae_500` -> `iwae`: what titles and directions are keyed by."""
    name = score.partition("/")[0]
    bound, _, k = name.partition("_")
    return bound if bound in ("iwae", "ais") and k.isdigit() else name


def section_of(score: str) -> str:
    """Under which heading a score stands: what it looks at."""
    kind, _, extractor = score.partition("/")
    if extractor:
        return f"in the eyes of {extractor}"
    starts = {
        "ms_ssim": "diversity and memorisation",
        "nn_": "diversity and memorisation",
        "recon": "reconstruction",
        "factor_": "factors",
    }
    toy = ("modes", "hq", "kl_modes", "energy")
    return next((v for k, v in starts.items() if kind.startswith(k)), "modes" if kind in toy else "likelihood")


def title_of(score: str) -> str:
    """A score's name for people, with its extractor."""
    kind, _, extractor = score.partition("/")
    title = TITLES.get(kind_of(score), kind.replace("_", " "))
    if kind_of(score) == "iwae":
        title += f", k = {kind.partition('_')[2]}"
    if kind_of(score) == "ais":
        title += f", {kind.partition('_')[2]} temperatures"
    return f"{title} ({extractor})" if extractor else title


def common_card(data: Mapping[str, Any], split: str, seed: int, ema: bool) -> dict[str, Any]:
    """What every score of a run states, whatever it measures.

    Args:
        data: The data module's `describe()`.
        split: The split that it was taken on.
        seed: Of the latents.
        ema: Whether averaged weights were judged.
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
        "sizes": "none",  # how images of different sizes were brought to one
        "ema": ema,
        "sampler": "prior",  # with its settings: "truncated(threshold=1.0, psi=null)"
        "y": "none",  # the classes that a conditional model was asked for
    }


def card_of(score: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a card of several scores (a run's own, in `run.json`) that is about this one."""
    mine = kind_of(score).partition("_")[0]
    return {k: v for k, v in card.items() if not k.startswith(OWN) or k.startswith(f"{mine}_")}


def differences(cards: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields in which cards differ so that their scores are not comparable; [] if they are."""
    names = sorted({name for card in cards for name in card})
    compared = [name for name in names if name not in REPEATED and not name.endswith("_seed")]
    return [name for name in compared if any(_text(card, name) != _text(cards[0], name) for card in cards)]


def disagreement(cards: Mapping[str, Mapping[str, Any]]) -> str | None:
    """In which fields cards differ and who holds what: "n_fake (1000 in 9 scorings, 200 in run B)"; None if they agree.

    Args:
        cards: The card of each scoring, by who was scored.
    """
    fields = differences(list(cards.values()))
    if not fields:
        return None
    parts = []
    for field in fields[:NAMED]:
        holders: dict[str, list[str]] = {}
        for who, card in cards.items():
            holders.setdefault(_text(card, field), []).append(who)
        names = [value.partition("(")[0] if field == "sampler" else value for value in holders]
        values = names if len(set(names)) == len(names) else list(holders)  # settings only where the names agree
        shown = [f"{value} in {_holders(who)}" for value, who in zip(values[:4], holders.values(), strict=False)]
        parts.append(f"{field} ({', '.join(shown)}{', ...' if len(holders) > 4 else ''})")
    return ", ".join(parts) + (f" and {len(fields) - NAMED} more fields" if len(fields) > NAMED else "")


def refusal(score: str, cards: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why these scores are not ranked, in a sentence that names the field and its values; None if they may be.

    Args:
        score: Its name.
        cards: The card of each scoring that has the score, by who was scored.
    """
    words = disagreement(cards)
    return None if words is None else f"{title_of(score)} is not ranked: the cards differ in {words}."


def _holders(names: list[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{len(names)} scorings"


def _text(card: Mapping[str, Any], field: str) -> str:
    value = card.get(field, "not stated")
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:12] if field in ("checksum", "fingerprint") else text
