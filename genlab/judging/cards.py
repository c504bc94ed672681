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


def refusal(title: str, cards: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The reason why these scores are not ranked: a sentence with fields and values; None if they are comparable.

    Args:
        title: Name of the score in tables.
        cards: The card of each scoring that has the score, by the name of the scored run.
    """
    words = disagreement(cards)
    return None if words is None else f"{title} is not ranked: {words}."


def _holders(names: list[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{len(names)} scorings"


def _text(card: Mapping[str, Any], field: str) -> str:
    value = card.get(field, "not stated")
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:12] if field in ("checksum", "fingerprint") else text
