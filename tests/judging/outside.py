"""A measure as a user would write it."""

from genlab.judging.measure import About, Measure
from genlab.metrics.scores import Scores


class Brightness(Measure):
    """The mean grey value of samples beside that of real images."""

    place, section = 5, "brightness"
    needs = ("pictures", "samples")
    monitor = ("brightness",)

    def __init__(self, name="brightness", scale=1.0):
        self.name, self.scale = name, scale
        self.about = {"brightness": About("mean grey value", "higher")}

    def take(self, subject):
        n = self.number(subject)
        values = {"brightness": subject.fake(n), "brightness_real": subject.real(n)}
        yield Scores({key: x.double().mean().item() * self.scale for key, x in values.items()}, {"n_fake": n})
