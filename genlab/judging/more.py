"""`metrics.more.NAME`: any metric of torchmetrics, or a measure of one's own, among the scores of a run."""

from __future__ import annotations

import inspect
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from genlab.batch import Seq
from genlab.config.instantiate import instantiate
from genlab.errors import UserError, sentence
from genlab.judging.measure import About, Measure
from genlab.judging.subject import Subject
from genlab.metrics.scores import Scores
from genlab.sharing import by_first

FEEDS: dict[str, tuple[str, ...]] = {  # the needs of each
    "images": ("pictures", "samples"),
    "pairs": ("pairs",),
    "labels": ("labels", "classify"),
    "features": ("pictures", "samples", "extractor"),
    "text": ("samples",),
    "tokens": ("next_logits",),
}
Batches = Iterator[tuple[tuple[Any, ...], dict[str, bool]]]  # positional and named arguments of `update`


def from_config(more: Mapping[str, Any]) -> list[Measure]:
    """The measures of the section `metrics.more` of a config.

    Args:
        more: By name: `{_target_: torchmetrics...., feeds: images|pairs|labels|features|text|tokens, ...}` with the
            metric's own arguments, `download: true` if it may fetch files; or the `_target_` of a `Measure`.

    Raises:
        UserError: If a node describes neither, or the metric cannot be built, by its own words.
    """
    return [_made(name, dict(node)) for name, node in more.items() if node]


def _made(name: str, node: dict[str, Any]) -> Measure:
    key = f"metrics.more.{name}"
    feeds, download = node.pop("feeds", None), node.pop("download", False)
    if not isinstance(node.get("_target_"), str):
        raise UserError(f"{key} needs a _target_: a metric of torchmetrics, or a measure of your own.")
    if feeds is not None and feeds not in FEEDS:
        raise UserError(f"{key}.feeds must be one of {', '.join(FEEDS)}, got {feeds!r}.")
    try:
        with _offline(key, download):
            made = instantiate(node)
    except UserError as error:
        raise error if str(error).startswith(key) else UserError(f"{key} cannot be built: {error}") from error
    except Exception as error:  # constructors of torchmetrics raise many types
        cause = error.__cause__ or error
        raise UserError(f"{key} cannot be built: {sentence(cause)}.") from error
    if isinstance(made, Measure):
        made.name = made.name or name
        return made
    if not callable(getattr(made, "update", None)) or not callable(getattr(made, "compute", None)):
        raise UserError(f"{key}._target_ must name a metric of torchmetrics or a measure, got {node['_target_']}.")
    if feeds is None:
        raise UserError(f"{key}.feeds says what the metric is given: one of {', '.join(FEEDS)}.")
    return FromTorchmetrics(name, made, feeds)


@contextmanager
def _offline(key: str, download: bool) -> Iterator[None]:
    """Within the block, a download raises a `UserError` with its host, unless it is allowed."""
    find = socket.getaddrinfo

    def refuse(host: Any, *_: Any, **__: Any) -> Any:
        raise UserError(f"{key} downloads a file from {host}. To allow it: {key}.download=true")

    socket.getaddrinfo = find if download else refuse
    try:
        yield
    finally:
        socket.getaddrinfo = find


class FromTorchmetrics(Measure):
    """A metric of torchmetrics.

    The values go to `update`: "images", generated ones as uint8 RGB [n, 3, H, W] (floats in [0, 1] if the metric says
    `normalize`), and real ones if `update` has an argument `real`; "pairs", outputs and targets as the model sees them
    (images in [-1, 1]); "labels", logits and labels; "features", those of the extractor; "text", samples and real
    samples in words; "tokens", logits of the next token [1, T, V] and the tokens [1, T].
    """

    place, section = 200, "torchmetrics"

    def __init__(self, name: str, metric: Any, feeds: str) -> None:
        """Names the score.

        Args:
            name: Name of the score.
            metric: The metric.
            feeds: A key of `FEEDS`.
        """
        self.metric, self.feeds = metric, feeds
        self.metric.sync_on_compute = self.metric._to_sync = False  # processes exchange samples, not states
        better = {"True": "higher", "False": "lower"}.get(str(getattr(metric, "higher_is_better", None)))
        self.name = name
        self.needs = FEEDS[feeds]
        self.about = {name: About(f"{name}, {type(metric).__name__}", better)}
        self.monitor = (name,)

    def prepare(self, subject: Subject) -> None:
        """Feeds real samples as if they were the model's.

        Raises:
            UserError: If the metric cannot take these data.
        """
        data = subject.data
        if self.feeds not in ("images", "pairs") or data.spec.x.ragged:
            return
        store = data.judged("val")
        stored = store.gather(torch.arange(min(2, len(store))))
        x = self._pictures(stored) if self.feeds == "images" else data.spec.x.normalise(stored)
        try:
            self.metric.update(*((x, True) if self._tells_real else (x,) if self.feeds == "images" else (x, x)))
        except Exception as error:  # of many types
            text = f"{type(self.metric).__name__} cannot take {self.feeds} of {data.name}: {sentence(error)}"
            raise UserError(f"metrics.more.{self.name}: {text}.") from error
        finally:
            self.metric.reset()

    @property
    def _tells_real(self) -> bool:
        return "real" in inspect.signature(self.metric.update).parameters

    def take(self, subject: Subject) -> Iterable[Scores]:
        """{NAME}, with {NAME_std} of a metric that gives mean and spread."""
        n = self.number(subject)
        batches: Callable[[Subject, int], Batches] = getattr(self, f"_{self.feeds}")
        fed = list(batches(subject, n))  # by all processes, which share this work
        return [by_first(lambda: self._computed(fed, n))]

    def _computed(self, fed: Iterable[Any], n: int) -> Scores:
        self.metric.reset()
        for values, named in fed:
            self.metric.update(*values, **named)
        value = self.metric.compute()
        self.metric.reset()
        values = dict(value) if isinstance(value, dict) else {self.name: value}
        if isinstance(value, (tuple, list)):
            values = dict(zip((self.name, f"{self.name}_std"), value, strict=False))
        facts = {name: float(torch.as_tensor(each).double().mean()) for name, each in values.items()}
        card = {"metric": f"{type(self.metric).__module__}.{type(self.metric).__qualname__}", "feeds": self.feeds}
        size = "n_fake" if "samples" in self.needs else "n_real"
        return Scores(facts, {**card, size: n, "torchmetrics": _version()})

    # --- What is fed ----------------------------------------------------------------------------------------------

    def _images(self, subject: Subject, n: int) -> Batches:
        if self._tells_real:
            for part in subject.real(n).split(256):
                yield (self._pictures(part),), {"real": True}
        for part in subject.fake(n).split(256):
            named = {"real": False} if self._tells_real else {}
            yield (self._pictures(part),), named

    def _pictures(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        return x.float() / 255 if getattr(self.metric, "normalize", None) is True else x

    def _pairs(self, subject: Subject, n: int) -> Batches:
        for made, target, _ in subject.pairs(n):
            if isinstance(target, Seq):
                for row in range(len(target)):
                    end = int(target.length[row])
                    yield (made.values[row : row + 1, :end], target.values[row : row + 1, :end]), {}
            else:
                yield (made, target), {}

    def _labels(self, subject: Subject, n: int) -> Batches:
        for batch in subject.batches(n, ("y",)):
            y = batch.tensor("y")
            logits = subject.model.classify(batch.x.to(subject.model.device)).cpu()
            yield (logits[y >= 0], y[y >= 0]), {}

    def _features(self, subject: Subject, n: int) -> Batches:
        if self._tells_real:
            yield (subject.real_features(n).features,), {"real": True}
        yield (subject.fake_features(n).features,), ({"real": False} if self._tells_real else {})

    def _text(self, subject: Subject, n: int) -> Batches:
        field = subject.data.spec.x
        yield (field.text(subject.fake(n)), field.text(subject.real(n))), {}

    def _tokens(self, subject: Subject, n: int) -> Batches:
        for batch in subject.batches(n):
            x = batch.to(subject.model.device).x
            logits = subject.model.next_logits(x).cpu()
            if isinstance(x, Seq):
                seen = x.mask.cpu()
                yield (logits[seen].unsqueeze(0), x.values.cpu()[seen].long().unsqueeze(0)), {}
            else:
                yield (logits.flatten(1, -2), x.cpu().flatten(1).long()), {}


def _version() -> str:
    import torchmetrics

    return torchmetrics.__version__
