"""Gradient accumulation: a step runs on chunks of its batch, which meet before each update."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError


class Ended(BaseException):
    """Ends the step of a chunk after another one failed."""


@dataclass
class Meeting:
    """A point that all chunks must reach before one goes on.

    Attributes:
        what: Its name, the same for all chunks.
        hold: Maps the values of all chunks to the answer that each of them gets.
        value: The value of this chunk.
        players: Names of the players that are moved at it.
    """

    what: str
    hold: Callable[[list[Any]], Any]
    value: Any = None
    players: tuple[str, ...] = ()


class Strand(threading.Thread):
    """The step of one chunk, in a thread that runs only while `proceed` waits for it."""

    def __init__(self, step: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._step = step
        self._go, self._came = threading.Semaphore(0), threading.Semaphore(0)
        self._asked: Meeting | None = None
        self._answer: Any = None
        self._error: BaseException | None = None
        self._ended = False

    def run(self) -> None:
        """The thread's work."""
        try:
            self._wait()
            self._step()
        except Ended:
            pass
        except BaseException as error:  # raised again by `proceed`
            self._error = error
        self._asked = None
        self._came.release()

    def proceed(self, answer: Any) -> Meeting | None:
        """Runs to the next meeting, which it returns, or to the end (None).

        Args:
            answer: The answer of the last meeting.
        """
        self._answer = answer
        self._go.release()
        self._came.acquire()
        if self._error is not None:
            raise self._error
        return self._asked

    def meet(self, meeting: Meeting) -> Any:
        """Waits, in the strand's own thread, for the answer of a meeting."""
        self._asked = meeting
        self._came.release()
        return self._wait()

    def _wait(self) -> Any:
        self._go.acquire()
        if self._ended:
            raise Ended
        return self._answer

    def end(self) -> None:
        """Ends the thread, at its next meeting if it has not come to its end."""
        self._ended = True
        self._go.release()
        if self.ident is not None:  # it was started
            self.join()


def in_strand() -> bool:
    """Whether the current thread runs the step of a chunk."""
    return isinstance(threading.current_thread(), Strand)


@dataclass
class Own:
    """The state of one chunk while the others run.

    Attributes:
        gradients: Gradient of each parameter that was collected and not used yet.
        learned: Whether each parameter is frozen (False) by an open turn.
        recorded: Recorded values.
    """

    gradients: list[Tensor | None]
    learned: list[bool]
    recorded: dict[str, Tensor | float] = field(default_factory=dict)


class Lockstep:
    """Runs a step on n chunks of its batch and makes each update on the mean of the chunks' gradients.

    A step moves its players in its own order, and its second update depends on its first, so chunks cannot run one
    after the other from start to end. Each runs in a thread, one at a time, until it asks for an update. When all have
    asked, the update is made, and they go on. The activations of a chunk are freed before the next one runs.

    A chunk sees the draws of its rows in the whole batch. Buffers are the same for all chunks after a meeting: each
    starts from them, and the mean of the results is kept. Terms that couple samples are refused.
    """

    def __init__(self, model: Any) -> None:
        """Starts without chunks.

        Args:
            model: The model, whose `settings.accumulate` is n.
        """
        self.model = model
        self._sums: dict[int, Tensor] = {}  # of gradients, by the parameter's place

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block, `model.training_step` runs on chunks."""
        step, held = self.model.training_step, self.model.__dict__
        before = {name: held[name] for name in ("training_step",) if name in held}
        held["training_step"] = lambda batch, batch_idx: self.run(step, batch, batch_idx)
        try:
            yield
        finally:
            del held["training_step"]
            held.update(before)

    # ----------------------------------------------------------------------------------------- in a chunk's thread

    def update(self, *players: str) -> None:
        """Moves players on the mean of the chunks' gradients."""
        self._meet(Meeting(f"the update of {' and '.join(players)}", lambda _: self._move(players), None, players))

    def averaged(self, value: Tensor) -> Tensor:
        """The mean of a value over chunks and processes, without gradient."""
        mean = self._meet(
            Meeting("a mean", lambda values: self.model.averaged(sum(values) / len(values)), value.detach())
        )
        return mean.clone()

    def gathered(self, x: Tensor) -> Tensor:
        """The whole batch of a tensor [N, ...] without gradient.

        Raises:
            UserError: If it has a gradient, which would need the activations of all chunks.
        """
        if x.requires_grad:
            raise UserError(
                f"optim.accumulate={self.model.settings.accumulate} trains on chunks of a batch, and "
                f"{type(self.model).__name__} has a term that needs the whole batch at once. Try optim.accumulate=1."
            )
        return self._meet(Meeting("a gathering", lambda values: self.model.gathered(torch.cat(values)), x)).clone()

    def _meet(self, meeting: Meeting) -> Any:
        strand = threading.current_thread()
        assert isinstance(strand, Strand)
        return strand.meet(meeting)

    # ------------------------------------------------------------------------------------------- in the main thread

    def run(self, step: Callable[[Batch, int], object], batch: Batch, batch_idx: int) -> None:
        """One iteration of `step` on the chunks of a batch."""
        model, n = self.model, self.model.settings.accumulate
        strands = [Strand(self._work(step, chunk, batch_idx)) for chunk in cut(batch, self._parts(), n)]
        learned = [p.requires_grad for p in self._parameters()]
        owns = [Own([None] * len(learned), learned) for _ in strands]
        recorded, answer = model.watching.recorded, None
        try:
            for strand in strands:
                strand.start()
            while meetings := self._round(strands, owns, answer):
                model.watching.recorded = recorded
                answer = self._hold(meetings)
        finally:
            _end(strands)
            model.watching.recorded = recorded
            self._set(learned)
            self._sums = {}
        recorded.update(_means([own.recorded for own in owns]))

    def _round(self, strands: Sequence[Strand], owns: Sequence[Own], answer: Any) -> list[Meeting | None]:
        """Lets every chunk run to its next meeting; gives the meetings, or none where all chunks came to their end."""
        n, before, asked = len(strands), _copied(self._buffers()), []
        first: dict[str, Tensor] = {}
        mean: dict[str, Tensor] = {}
        for number, (strand, own) in enumerate(zip(strands, owns, strict=True)):
            if number:
                _put(before, self._buffers())
            self._enter(own, number)
            try:
                asked.append(strand.proceed(answer))
            finally:
                self.model.stream.leave_chunk()
            self._leave(own, asked[-1])
            if number == 0:
                first, mean = _copied(self._buffers()), _copied(self._buffers())
                continue
            for name, value in self._buffers().items():
                if value.is_floating_point():
                    mean[name] += (value - first[name]) / n
        _put({name: value for name, value in mean.items() if value.is_floating_point()}, self._buffers())
        self.model.stream.forget_draws()
        return asked if any(meeting is not None for meeting in asked) else []

    def _hold(self, meetings: Sequence[Meeting | None]) -> Any:
        """Holds a meeting.

        Raises:
            UserError: If the chunks are at different ones.
        """
        names = {"the end of the step" if meeting is None else meeting.what for meeting in meetings}
        if len(names) > 1 or meetings[0] is None:
            raise UserError(
                f"optim.accumulate={len(meetings)} needs a step that takes the same way for all samples, and chunks of "
                f"one batch came to {' and to '.join(sorted(names))} of {type(self.model).__name__}. Try "
                "optim.accumulate=1."
            )
        return meetings[0].hold([meeting.value for meeting in meetings if meeting is not None])

    def _move(self, players: Sequence[str]) -> None:
        """The update of players on the mean gradients."""
        parameters, n = self._parameters(), self.model.settings.accumulate
        moved = self._places(players)
        for place in moved:
            parameters[place].grad = self._sums[place].div_(n) if place in self._sums else None
        self._sums = {}
        self.model.step(*players)
        for place in moved:
            parameters[place].grad = None

    def _enter(self, own: Own, number: int) -> None:
        """Restores the state of a chunk. Its draws of this round start anew."""
        self._set(own.learned)
        for parameter, gradient in zip(self._parameters(), own.gradients, strict=True):
            parameter.grad = gradient
        self.model.watching.recorded = own.recorded
        self.model.stream.enter_chunk(number, self.model.settings.accumulate)

    def _leave(self, own: Own, meeting: Meeting | None) -> None:
        """Takes the state of a chunk; gradients of players that move next are summed."""
        parameters = self._parameters()
        own.learned = [p.requires_grad for p in parameters]
        own.gradients = [p.grad for p in parameters]
        for place in self._places(meeting.players if meeting else ()):
            gradient, own.gradients[place] = own.gradients[place], None
            if gradient is not None:
                self._sums[place] = self._sums[place].add_(gradient) if place in self._sums else gradient
        for parameter in parameters:
            parameter.grad = None

    def _work(self, step: Callable[[Batch, int], object], chunk: Batch, batch_idx: int) -> Callable[[], object]:
        """The step of one chunk under the settings that torch keeps per thread: precision and GPU."""

        def work() -> None:
            with ExitStack() as stack:
                if self.model.device.type == "cuda":
                    stack.enter_context(torch.cuda.device(self.model.device))
                stack.enter_context(self.model.trainer.precision_plugin.train_step_context())
                step(chunk, batch_idx)

        return work

    def _parts(self) -> int:
        """Fresh batches that are joined to the batch of this iteration."""
        at = getattr(self.model, "batches_at", None)
        return int(self.model.batches_per_step if at is None else at(self.model.watching.done))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for parameters in self.model.players.values() for p in parameters]

    def _places(self, players: Sequence[str]) -> list[int]:
        """Places of players' parameters in the list of all."""
        places: list[int] = []
        start = 0
        for name, parameters in self.model.players.items():
            places += range(start, start + len(parameters)) if name in players else ()
            start += len(parameters)
        return places

    def _set(self, learned: Sequence[bool]) -> None:
        for parameter, flag in zip(self._parameters(), learned, strict=True):
            parameter.requires_grad_(flag)

    def _buffers(self) -> dict[str, Tensor]:
        """Views of all buffers, to write to them without a new version.

        Autograd saves the running statistics of batch norm, which training never reads, and would refuse the graph of
        fakes that outlives a meeting.
        """
        return {name: buffer.data for name, buffer in self.model.named_buffers()}


def cut(batch: Batch, parts: int, n: int) -> list[Batch]:
    """A batch in n chunks: of each of its `parts` fresh batches the rows of the chunk, as for n processes."""
    if parts == 1:
        return batch.chunk(n)
    rows = torch.arange(len(batch)).view(parts, n, -1)
    return [batch.rows(rows[:, k].flatten()) for k in range(n)]


def _end(strands: Sequence[Strand]) -> None:
    """Ends all threads, also if a signal interrupts this."""
    try:
        for strand in strands:
            strand.end()
    except BaseException:
        for strand in strands:
            strand.end()
        raise


def _copied(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in values.items()}


def _put(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        into[name].copy_(value)


def _means(recorded: Sequence[Mapping[str, Tensor | float]]) -> dict[str, Tensor | float]:
    """The mean of each value over the chunks that recorded it."""
    found: dict[str, Tensor | float] = {}
    for name in dict.fromkeys(name for one in recorded for name in one):
        values = [one[name] for one in recorded if name in one]
        found[name] = sum(values[1:], start=values[0]) / len(values)
    return found
