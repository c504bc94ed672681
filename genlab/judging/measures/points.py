"""Points: the energy distance and, of mixtures, modes and high-quality samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from genlab.judging.measure import About, Measure, paired

if TYPE_CHECKING:
    from genlab.judging.subject import Subject
    from genlab.metrics.scores import Scores


class Points(Measure):
    """Energy distance, modes, high-quality share and KL of the histogram, beside those of a perfect generator.

    The perfect generator draws as many points of the true distribution: those of another split.
    """

    name, place, section = "points", 30, "modes"
    needs = ("points", "samples")
    about: Mapping[str, About] = {
        "modes": About("modes", "higher"),
        "hq": About("high-quality share", chosen="higher"),
        "kl_modes": About("KL of the modes' histogram", "lower"),
        "energy": About("energy distance", "lower"),
    }
    monitor = ("energy",)
    most = 2500  # as in the papers' protocol

    def take(self, subject: Subject) -> Iterable[Scores]:
        """{"energy"}; of a mixture also {"modes", "hq", "kl_modes"}; unless brief, all with `_real`."""
        from genlab.sharing import by_first

        n = self.number(subject)
        x = subject.fake(n)
        return by_first(lambda: self._scores(subject, x))  # too fast to be worth sharing

    def _scores(self, subject: Subject, x: Any) -> list[Scores]:
        from genlab.metrics.scores import Scores
        from genlab.metrics.toy import energy_distance, mode_coverage

        real, data = subject.real(len(x)), subject.data
        found = [energy_distance(x, real)]
        if data.modes is not None:
            found.append(mode_coverage(x, *data.modes))
        if not subject.brief:
            other = "val" if subject.split != "val" else "test"
            perfect = data.spec.x.normalise(data.split(other).gather(subject.rows(len(x), other)))
            best = energy_distance(perfect, real)
            best |= mode_coverage(perfect, *data.modes) if data.modes is not None else {}
            found = [one | Scores({f"{name}_real": best[name] for name in one}) for one in found]
        return found

    def beside(self, score: str, scores: Mapping[str, float], card: Mapping[str, Any]) -> list[str]:
        """That of a perfect generator, and the number of modes."""
        perfect = paired(score, scores, "real")
        told = [f"perfect {card['hq_ceiling']:.4g}"] if score == "hq" and perfect is None else []
        told += [] if perfect is None else [f"perfect {perfect:.4g}"]
        return [*told, f"of {card['num_modes']}"] if score == "modes" else told
