"""Signals outside of training: during the set-up of a run, and to the processes of a sweep. Imports no torch."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from genlab import launch
from genlab.commands import command
from genlab.errors import Interrupted, UserError
from genlab.files import write_text
from genlab.journal import say

POLL = 0.5  # seconds between a worker's looks at its sweep
STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _handlers(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Installs a handler of SIGINT and SIGTERM inside the block; outside of the main thread nothing is changed."""
    before: dict[int, Any] = {}
    try:
        for number in STOPS:
            before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for taken, earlier in before.items():
            signal.signal(taken, earlier or signal.SIG_DFL)


def _interrupt(number: int, frame: Any) -> None:
    raise Interrupted(number)


@contextmanager
def interrupts() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted` inside the block; during training, `CleanStop` handles them instead."""
    with _handlers(_interrupt):
        yield


@contextmanager
def set_up(run_dir: Path) -> Iterator[None]:
    """As `interrupts`, for the set-up of a run: a signal also prints how to start the run again."""
    try:
        with interrupts():
            yield
    except Interrupted:
        begun = (run_dir / "config.yaml").is_file() or (run_dir / ".hydra").is_dir()
        again = f" Go on with: {command('train', resume=run_dir)}" if begun else ""
        say(f"Stopped before the first iteration.{again}")
        raise


# --- The main process of a sweep ------------------------------------------------------------------------------------


@contextmanager
def sweep() -> Iterator[None]:
    """Handles signals to the main process of a sweep, and prints how to go on with it. Other runs are not affected.

    Without worker processes a signal ends the sweep at once. With workers, the first signal lets each of them finish
    its iteration, write its checkpoint and start no further job; the same signal once more ends them at once. Workers
    that are still importing finish that first.

    Raises:
        Interrupted: After a signal.
    """
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        of = launch.sweep()
        if of is None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if of is None or number in received or not multiprocessing.active_children():
            raise Interrupted(number)
        received.append(number)
        try:
            write_text(of.stop_file, str(number))
        except OSError:  # a full disk: the workers cannot be told
            raise Interrupted(number) from None

    try:
        with _handlers(stop), _shielded_workers():
            try:
                yield
            except BaseException as error:
                if received:  # what stopped jobs lead to in Hydra and joblib
                    raise Interrupted(received[0]) from error
                raise
        if received:
            raise Interrupted(received[0])
    except SystemExit as ended:
        if isinstance(ended.code, int) and ended.code > 128:
            _print_sweep()
        raise
    finally:
        launch.forget_sweep()


@contextmanager
def _shielded_workers() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM in processes that are started inside the block, until they unblock them.

    Ctrl-C reaches the whole group, and a worker that is still importing would die of it, whereupon joblib prints the
    tracebacks of both. A new process inherits the blocked signals of the thread that starts it. Daemonic processes are
    left alone: they are not a sweep's workers but a data loader's.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    start = BaseProcess.start

    def shielded(process: BaseProcess) -> None:
        if process.daemon:
            return start(process)
        resource_tracker.ensure_running()  # before, as it unblocks the signals after its own start
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            return start(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    BaseProcess.start = shielded  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        BaseProcess.start = start  # type: ignore[method-assign]


def _print_sweep() -> None:
    """Prints the command that continues this process's sweep, if it runs one."""
    from genlab.runs import sweeps

    of = launch.sweep()
    if of is None:
        return
    if not sweeps.is_sweep(str(of.folder)):
        print("The sweep was stopped before its first job.")
        return
    try:
        sweeps.command(str(of.folder), [])
        print(f"Run the missing jobs of the sweep with: {command('train', resume=of.folder)}")
    except UserError as search:
        print(search)


# --- Its worker processes -------------------------------------------------------------------------------------------

_ending = threading.Event()  # set once the sweep of this worker is being stopped
_busy = threading.Lock()  # held during a job


@contextmanager
def job() -> Iterator[bool]:
    """One job of a sweep, in the sweep's main process or in a worker process.

    A worker ends with the main process, however that ends. A job that is stopped together with its sweep ends as if
    it were done: the main process reports it.

    Yields:
        Whether to run the job: false once the sweep is being stopped.

    Raises:
        Interrupted: After a signal to this process alone.
    """
    worker = _follow()
    try:
        with _busy, interrupts():
            yield not _ending.is_set()
    except SystemExit:
        # Ctrl-C reaches the workers before they see that the sweep is being stopped.
        if not (worker and _ending.wait(3 * POLL)):
            raise


@functools.cache
def _follow() -> bool:
    """Whether this is a worker process of a sweep; if so, starts a thread that watches the sweep's main process."""
    of = launch.sweep()
    if of is None or of.process != os.getppid():
        return False
    for number in STOPS:  # between two jobs; a dead worker would make joblib kill the others
        signal.signal(number, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # see `_shielded_workers`
    threading.Thread(target=_watch, args=(of,), daemon=True).start()
    return True


def _watch(of: launch.Sweep) -> None:
    """Stops this worker's job once the sweep is being stopped, and this process once the main process is dead."""
    file = of.stop_file.absolute()
    while os.getppid() == of.process and not file.exists():
        time.sleep(POLL)
    _ending.set()
    # Another signal than that of the main process: a process group receives that one too, and a second one of the same
    # number would end the run without a checkpoint.
    same = file.exists() and file.read_text() == str(int(signal.SIGINT))
    _signal_main_thread(signal.SIGTERM if same else signal.SIGINT)
    while os.getppid() == of.process:
        time.sleep(POLL)
    with _busy:
        os._exit(128 + signal.SIGTERM)


def _signal_main_thread(number: int) -> None:
    """Signals this process's main thread, also while that waits in a system call."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:  # Windows
        signal.raise_signal(number)
