"""Speed of genlab's training, with all logging, against the same training without genlab.

All contestants run in one process, in turns of a fraction of a second, so that a drift of the machine's speed affects
all of them. One contestant runs twice (the A/A control), which shows the accuracy of a ratio. Ratios are computed
within a round; their medians and quartiles over rounds are reported. With one thread the clock is the process's CPU
time, which excludes waiting for other programs.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.config import composition
from genlab.errors import UserError

if TYPE_CHECKING:
    import torch

    from genlab.benchmarks.rivals import Runner


Clock = Callable[[], float]
Lap = tuple[float, float]
"""Seconds by the race's clock and by the wall clock."""

LEAST_ROUNDS = 5
ROUND_SECONDS = 0.25  # approximate duration of one contestant's turn
PARTS_SECONDS = 2.0  # approximate duration of timing an iteration's parts
WARM_SECONDS = 1.0  # of warm-up, for caches and allocators
IMAGES = 5000  # JPEGs in the race of data pipelines
BATCHES = 300  # of genlab's stream in one turn
CONTROL = "plain again"


@dataclass(frozen=True)
class Case:
    """A composition to be measured.

    Attributes:
        name: Name of its rows.
        overrides: Command-line overrides.
        presets: Overrides of each variant.
        bars: Required speed ratio of each (variant, rival).
        pythae: Whether pythae's trainer with its default networks runs the same training.
    """

    name: str
    overrides: tuple[str, ...]
    presets: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"exact": (), "fast": ("speed.preset=fast",)}
    )
    bars: Mapping[tuple[str, str], float] = field(default_factory=dict)
    pythae: bool = False

    def told(self) -> dict[str, Any]:
        """The fields for a row, in plain containers."""
        return {
            "name": self.name,
            "overrides": list(self.overrides),
            "presets": {name: list(preset) for name, preset in self.presets.items()},
            "bars": [[*key, bar] for key, bar in self.bars.items()],
        }


DIGITS = ("data=digits", "data.batch_size=64", "threads=1")
LARGE = ("metrics=none",)  # timing the scores would need minutes of training a classifier first
STANDARD = (
    Case(
        "DCGAN 32x32, batch 64",
        ("model=dcgan", *DIGITS, "data.image_size=32", *LARGE),
        bars={("exact", "plain+freeze"): 1 / 1.05, ("fast", "plain"): 1.8},
    ),
    Case(
        "DCGAN 64x64, batch 64",
        ("model=dcgan", *DIGITS, "data.image_size=64", *LARGE),
        bars={("exact", "plain+freeze"): 1 / 1.05, ("fast", "plain"): 2.4},
    ),
    Case(
        "MLP GAN on ring, batch 256",
        ("experiment=gan_ring", "threads=1"),
        bars={("exact", "plain+freeze"): 1 / 1.25},
    ),
    Case(
        "MLP VAE on digits, batch 64",
        ("model=vae", "network=mlp", *DIGITS),
        bars={("exact", "plain"): 1 / 1.5},
    ),
)
PYTHAE = Case(
    "VAE on MNIST-10k, 784-512-50, batch 100",
    ("model=vae", "data=mnist10k", "data.image_size=28", "data.batch_size=100", "network=mlp", "network.hidden=[512]")
    + ("model.latent_dim=50", "threads=1", *LARGE),
    bars={("exact", "pythae"): 1.0, ("fast", "pythae"): 1.5},
    pythae=True,
)
DATA_BARS = {32: 50.0, 64: 15.0}


def standard_cases(seconds: float, mnist: str | None, images: Path | None) -> dict[str, Any]:
    """All measurements of `make benchmark`, with printed progress."""
    steps = []
    root = mnist or os.environ.get("GENLAB_DATA") or "data"
    pythae = Case(PYTHAE.name, (*PYTHAE.overrides, f"data.root={root}"), bars=PYTHAE.bars, pythae=True)
    for case in (*STANDARD, pythae):
        _tell(case.name)
        try:
            steps.append(measure(case, seconds))
        except UserError as error:
            steps.append({"name": case.name, "overrides": list(case.overrides), "failed": str(error)})
    data = []
    for size in DATA_BARS:
        _tell(f"images at {size}x{size}")
        data.append(race_images(size, images, seconds))
    return {"steps": steps, "data": data}


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.__stderr__, flush=True)


# --- Racing ---------------------------------------------------------------------------------------------------------


def race(contestants: Mapping[str, Callable[[], object]], seconds: float, clock: Clock) -> dict[str, list[Lap]]:
    """Lets contestants take turns for about the given seconds, at least five rounds.

    Args:
        contestants: Functions that run one lap, by name.
        seconds: Duration of all rounds together.
        clock: Returns seconds.

    Returns:
        The laps of each contestant.
    """
    laps: dict[str, list[Lap]] = {name: [] for name in contestants}
    order = list(contestants)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(laps[order[0]]) < LEAST_ROUNDS:
        for name in order:
            started, wall = clock(), time.perf_counter()
            contestants[name]()
            laps[name].append((clock() - started, time.perf_counter() - wall))
        order.reverse()  # the first of one round is the last of the next
    return laps


def times_as_fast(laps: Sequence[Lap], than: Sequence[Lap], work: float = 1.0, clock: int = 0) -> dict[str, float]:
    """The speed of one contestant relative to another.

    Args:
        laps: Laps of the one.
        than: Laps of the other, of the same rounds.
        work: Work in a lap of the one, relative to a lap of the other.
        clock: 0 for the race's clock, 1 for the wall clock.

    Returns:
        `median`, `first` and `third` quartile over rounds.
    """
    ratios = [work * b[clock] / a[clock] for a, b in zip(laps, than, strict=True)]
    first, median, third = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": median, "first": first, "third": third}


def make_clock(device: torch.device, threads: int) -> tuple[Clock, str]:
    """A clock and its name: CPU time for one thread on a CPU, else the wall clock, on a GPU after a synchronisation."""
    import torch

    if device.type == "cuda":

        def clock() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return clock, "wall"
    return (time.process_time, "CPU time") if threads == 1 else (time.perf_counter, "wall")


# --- Training steps -------------------------------------------------------------------------------------------------


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Times one composition.

    Args:
        case: Composition to time.
        seconds: Duration of all rounds together.

    Returns:
        Plain containers: times and ratios, parts of an iteration, recurring work, peak memory.

    Raises:
        UserError: If the composition or its data are unavailable.
    """
    import torch

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peaks = _peaks(case) if sys.platform != "win32" else {}
        quiet = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(quiet))
        stack.enter_context(contextlib.redirect_stderr(quiet))
        trainings = {}
        for name, preset in case.presets.items():
            trainings[name] = Training((*case.overrides, *preset), folder / name)
            stack.callback(trainings[name].close)
        first = next(iter(trainings.values()))
        rivals, unit, notes = _rivals(case, first, folder, stack)
        contestants: dict[str, Runner] = {**trainings, **rivals}
        warm = {name: _warm_up(runner, unit) for name, runner in contestants.items()}
        count = unit * max(1, round(ROUND_SECONDS / warm["plain" if "plain" in warm else CONTROL] / unit))
        clock, clock_name = make_clock(first.device, torch.get_num_threads())
        turns = {name: _turn(runner, count) for name, runner in contestants.items()}
        laps = race(turns, seconds, clock)
        reference = "plain" if "plain" in laps else next(iter(trainings))
        row: dict[str, Any] = {
            **case.told(),
            "device": _device_name(first.device),
            "clock": clock_name,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "rounds": len(laps[reference]),
            "iterations_per_round": count,
            "images_per_iteration": first.images,
            "ms": {name: 1000 * statistics.median(lap for lap, _ in each) / count for name, each in laps.items()},
            "times_as_fast": {
                name: {rival: times_as_fast(laps[name], laps[rival]) for rival in laps if _is_rival(rival, trainings)}
                for name in trainings
            },
            "control": times_as_fast(laps[CONTROL], laps[reference]),
            "peak_mib": peaks,
            "notes": notes,
        }
        row["images_per_second"] = {name: 1000 * first.images / ms for name, ms in row["ms"].items()}
        row["parts_ms"], row["recurring"] = {}, {}
        for name, training in trainings.items():
            iteration = row["ms"][name] / 1000
            row["parts_ms"][name] = training.parts_of_an_iteration(clock, iteration)
            row["recurring"][name] = training.recurring(clock, iteration)
    return row


def _rivals(
    case: Case, first: Training, folder: Path, stack: contextlib.ExitStack
) -> tuple[dict[str, Runner], int, list[str]]:
    """The rivals of genlab's trainings, the least number of iterations at a time, and notes on missing rivals.

    Args:
        case: The measured composition.
        first: One of genlab's trainings.
        folder: Output folder of the rivals.
        stack: Closes the rivals.
    """
    from genlab.benchmarks.rivals import Pythae, by_hand, has_idle_player

    found: dict[str, Runner] = {}
    notes: list[str] = []
    unit = 1
    try:
        for name, freeze in {"plain": False, "plain+freeze": True, CONTROL: False}.items():
            parts = _build(case.overrides)
            if not freeze or has_idle_player(parts):
                found[name] = by_hand(parts, first.device, freeze)
    except UserError as error:
        notes.append(str(error))
        found[CONTROL] = Training(case.overrides, folder / "control")
        stack.callback(found[CONTROL].close)  # type: ignore[attr-defined]
    if case.pythae:
        try:
            found["pythae"] = rival = Pythae(_build(case.overrides), folder / "pythae")
            stack.callback(rival.close)
            unit = rival.epoch
            _check_same_size(rival.parameters, first)
        except UserError as error:
            notes.append(str(error))
    return found, unit, notes


def _is_rival(name: str, trainings: Mapping[str, Any]) -> bool:
    return name not in trainings and name != CONTROL


def _turn(runner: Runner, count: int) -> Callable[[], object]:
    return lambda: runner(count)


def _warm_up(runner: Runner, unit: int) -> float:
    """Seconds per iteration with filled caches, after at least three iterations."""
    runner(unit * -(-3 // unit))
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < WARM_SECONDS or not done:
        runner(unit)
        done += unit
    return (time.perf_counter() - started) / done


def _check_same_size(parameters: int, training: Training) -> None:
    own = sum(p.numel() for ps in training.parts.model.players.values() for p in ps)
    if own != parameters:
        raise UserError(f"not the same networks: {own} parameters here, {parameters} in pythae")


def _build(overrides: Sequence[str]) -> Any:
    from genlab.runs.running import build

    return build(composition.compose([*overrides, "trainer.max_steps=100000000"]))


def _device_name(device: torch.device) -> str:
    import platform

    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Training:
    """Genlab's training as on the command line (loggers, progress, average, checks for NaN), run on demand.

    Scores, pictures and checkpoints, which are due only every few hundred iterations, are left out and timed in
    `recurring`.

    Args:
        overrides: Overrides of the composition.
        folder: The run folder.
    """

    def __init__(self, overrides: Sequence[str], folder: Path) -> None:
        import torch

        from genlab.benchmarks.rivals import Turnstile
        from genlab.runs.running import make_trainer

        parts = self.parts = _build(overrides)
        config = parts.config
        self.checkpoint_every = config["checkpoint"]["every_n_steps"]
        self.grid = parts.callbacks.get("grid")
        config["checkpoint"]["every_n_steps"] = 10**9
        parts.callbacks = {name: c for name, c in parts.callbacks.items() if name == "progress"}
        torch.set_num_threads(config["threads"] or torch.get_num_threads())
        parts.data.prepare_data()
        parts.data.setup()
        self.trainer = make_trainer(parts, folder)
        self.device = self.trainer.strategy.root_device
        self.stream = parts.data.stream(device=self.device)
        self.images = len(self.stream.indices(10_000))
        turnstile = self._turnstile = Turnstile()
        stream, trainer = self.stream, self.trainer

        class Gated:
            """The data's own stream, gated by the turnstile."""

            def __iter__(self) -> Iterator[Any]:
                for batch in stream:
                    if not turnstile.enter():
                        trainer.should_stop = True
                    yield batch

            def state_dict(self) -> dict[str, Any]:
                return {}

            def load_state_dict(self, state: dict[str, Any]) -> None:
                pass

        def fit() -> None:
            torch.set_num_threads(config["threads"] or torch.get_num_threads())  # a setting per thread
            trainer.fit(parts.model, datamodule=parts.data)

        parts.data.train_dataloader = Gated
        self._turnstile.open(fit)

    def __call__(self, count: int) -> None:
        """Runs `count` iterations."""
        self._turnstile(count)

    def close(self) -> None:
        """Ends the training."""
        self._turnstile.close()

    def parts_of_an_iteration(self, clock: Clock, iteration: float) -> dict[str, float]:
        """Milliseconds per iteration of the data, each player's turn and other parts; `rest` is the remainder.

        The timers stay in place and cost some time themselves, so this is called after the race.

        Args:
            clock: Returns seconds.
            iteration: Approximate seconds of one iteration.
        """
        timers, model = _Timers(clock), self.parts.model
        timers.wrap(self.stream, "batch", "data")
        timers.wrap(model, "fakes", "fakes")
        timers.wrap_contexts(model, "turn", lambda arguments: f"turn of {arguments[0]}")
        for method, name in {
            "step": "simultaneous updates",
            "check_finite": "watch for NaN",
            "write_records": "logging",
        }.items():
            timers.wrap(model, method, name)
        timers.wrap(model.averages, "update", "moving average")
        for callback in self.parts.callbacks.values():
            timers.wrap(callback, "on_train_batch_end", "progress bar")
        every = model.settings.log_every_n_steps
        periods = round(PARTS_SECONDS / (iteration * every))  # of logging; a whole number if one is short enough
        count = every * periods or max(3, round(PARTS_SECONDS / iteration))
        started = clock()
        self(count)
        whole = clock() - started
        spent = {name: 1000 * seconds / count for name, seconds in sorted(timers.spent.items())}
        return {**spent, "rest": 1000 * whole / count - sum(spent.values())}

    def recurring(self, clock: Clock, iteration: float) -> dict[str, dict[str, float]]:
        """Work that recurs every few hundred iterations: its seconds, interval, and share of the run's time.

        Args:
            clock: Returns seconds.
            iteration: Seconds of one iteration without it.
        """
        from genlab.callbacks.scores import judged

        parts, trainer, model = self.parts, self.trainer, self.parts.model
        work: dict[str, tuple[int, Callable[[], object]]] = {}
        if parts.judge is not None:
            with contextlib.suppress(UserError):  # missing weights: training, too, goes on without scores
                parts.judge.prepare(parts.model, parts.data, self.device)
                work["scores"] = (parts.judge.every_n_steps, lambda: judged(parts.judge.validate, model, trainer))
        if self.grid is not None:
            grid = self.grid
            work["pictures"] = (grid.every_n_steps, lambda: grid.draw(trainer, model))
        path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        work["checkpoint"] = (self.checkpoint_every, lambda: trainer.save_checkpoint(path))
        found = {}
        for name, (every, run) in work.items():
            seconds = []
            for _ in range(2):  # the first one may fill caches
                started = clock()
                run()
                seconds.append(clock() - started)
            least = min(seconds)
            found[name] = {"seconds": least, "every": every, "share": least / (least + every * iteration)}
        return found


class _Timers:
    """Accumulates the time of calls and `with` blocks."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.spent: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = self.clock()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + self.clock() - started

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Times each call of a method."""
        original = getattr(owner, method)

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.timed(name):
                return original(*arguments, **named)

        setattr(owner, method, timed)

    def wrap_contexts(self, owner: Any, method: str, name: Callable[[tuple[Any, ...]], str]) -> None:
        """Times the block of each context that a method returns; `name` maps the call's arguments to a name."""
        original = getattr(owner, method)

        @contextlib.contextmanager
        def timed(*arguments: Any) -> Iterator[Any]:
            with self.timed(name(arguments)), original(*arguments) as value:
                yield value

        setattr(owner, method, timed)


# --- Peak memory ----------------------------------------------------------------------------------------------------


def _peaks(case: Case) -> dict[str, dict[str, float]]:
    """Peak memory of each variant and of the hand-written step, each in its own process."""
    kinds = {name: [f"peak={name}", *case.overrides, *preset] for name, preset in case.presets.items()}
    kinds["plain"] = ["peak=plain", *case.overrides]
    command = [sys.executable, "-c", "from genlab.cli.benchmark import main; main()"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    started = {
        name: subprocess.Popen([*command, *arguments], **pipes)  # type: ignore[call-overload]
        for name, arguments in kinds.items()
    }
    peaks = {}
    for name, process in started.items():
        output, _ = process.communicate()
        if process.returncode == 0:  # else it is unavailable, and the race reports why
            peaks[name] = json.loads(output.splitlines()[-1])
    return peaks


def print_peak(preset: str, overrides: list[str]) -> None:
    """Runs ten iterations and prints the memory before them and the peak memory, in MiB."""
    import torch

    from genlab.benchmarks.rivals import by_hand

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        runner: Runner
        if preset == "plain":
            parts = _build(overrides)
            torch.set_num_threads(parts.config["threads"] or torch.get_num_threads())
            gpu = parts.config["trainer"]["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()
            device = torch.device("cuda", 0) if gpu else torch.device("cpu")
            runner = by_hand(parts, device, freeze=False)
        else:
            training = Training(overrides, Path(folder))
            runner, device = training, training.device
        before = _memory(device)
        runner(10)
        peak = _memory(device)
        if preset != "plain":
            training.close()
    print(json.dumps({"before": before, "peak": peak}))


def _memory(device: torch.device) -> float:
    """The peak memory so far of the GPU or the process, in MiB."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # unlike `ru_maxrss` it does not start at the parent's peak
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


# --- Data -----------------------------------------------------------------------------------------------------------


def race_images(size: int, source: Path | None, seconds: float, count: int = IMAGES) -> dict[str, Any]:
    """Times genlab's stream, and the preparation before it, against torchvision's ImageFolder on the same JPEGs.

    Args:
        size: Height and width in pixels.
        source: A folder of images; None for patches of photographs.
        seconds: Duration of all rounds together.
        count: Number of JPEGs.

    Returns:
        Plain containers: images per second and ratios.
    """
    import torch

    from genlab.benchmarks.rivals import write_jpegs

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, _cache_in(Path(name) / "cache"):
        root = Path(name) / "jpegs"
        write_jpegs(root, source, size, count)
        contestants = _readers(root, size)
        for contestant in contestants.values():
            contestant()
        laps = race(contestants, seconds, time.process_time)
    torch.set_num_threads(threads)
    work = BATCHES * 64 / count
    return {
        "size": size,
        "images": count,
        "source": "patches of scikit-learn's two photographs" if source is None else str(source),
        "rounds": len(laps["genlab"]),
        "torch": torch.__version__,
        "device": _device_name(torch.device("cpu")),
        "images_per_second": {
            name: statistics.median((work if name == "genlab" else 1.0) * count / lap for lap, _ in each)
            for name, each in laps.items()
        },
        "times_as_fast": times_as_fast(laps["genlab"], laps["torchvision"], work),
        "control": times_as_fast(laps["torchvision again"], laps["torchvision"]),
        "preparation": times_as_fast(laps["preparation"], laps["torchvision"]),
        "preparation_by_the_wall": times_as_fast(laps["preparation"], laps["torchvision"], clock=1),
        "bar": DATA_BARS.get(size),
    }


def _readers(root: Path, size: int) -> dict[str, Callable[[], None]]:
    """Readers of a folder of JPEGs: genlab's stream, torchvision's loader twice, genlab's preparation."""
    from genlab.benchmarks.rivals import image_folder_epoch
    from genlab.data.folders import ImageFolder

    options: dict[str, Any] = {"root": root, "image_size": size, "channels": 3, "batch_size": 64}
    batches = iter(ImageFolder(**options, flip=True).stream())

    def stream() -> None:
        for _ in range(BATCHES):
            next(batches)

    def prepare() -> None:
        with tempfile.TemporaryDirectory() as fresh, _cache_in(Path(fresh)):
            ImageFolder(**options).prepare_data()

    return {
        "genlab": stream,
        "torchvision": image_folder_epoch(root, 64),
        "torchvision again": image_folder_epoch(root, 64),
        "preparation": prepare,
    }


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("GENLAB_CACHE")
    os.environ["GENLAB_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["GENLAB_CACHE"]
        else:
            os.environ["GENLAB_CACHE"] = before


# --- Tables ---------------------------------------------------------------------------------------------------------


def tables(results: Mapping[str, Any]) -> str:
    """All results as Markdown, ratios first."""
    steps = [row for row in results["steps"] if "failed" not in row]
    blocks = []
    if results["steps"]:
        blocks += [_ratios(results["steps"]), _parts(steps), _recurring(steps), _memories(steps)]
    if results["data"]:
        blocks.append(_data(results["data"]))
    return "\n".join(block for block in blocks if block)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _spread(ratio: Mapping[str, float] | None, digits: int = 2) -> str:
    """Median and quartiles."""
    if ratio is None:
        return ""
    return f"**{ratio['median']:.{digits}f}** ({ratio['first']:.{digits}f} to {ratio['third']:.{digits}f})"


def _ratios(rows: Sequence[Mapping[str, Any]]) -> str:
    rivals = ("plain", "plain+freeze", "pythae")
    lines, notes, settings = [], [], set()
    for row in rows:
        if "failed" in row:
            lines.append([row["name"], "", *[""] * len(rivals), "", "", "", f"not run: {row['failed']}"])
            continue
        settings.add(f"{row['clock']}, {row['threads']} thread(s), {row['device']}, torch {row['torch']}")
        notes += [f"{row['name']}: {note}." for note in row["notes"]]
        for preset, ratios in row["times_as_fast"].items():
            verdicts = [_verdict(bar, ratios.get(rival), rival) for name, rival, bar in row["bars"] if name == preset]
            lines.append(
                [
                    row["name"],
                    preset,
                    *[_spread(ratios.get(rival)) for rival in rivals],
                    _spread(row["control"]),
                    f"{row['images_per_second'][preset]:,.0f}",
                    f"{row['rounds']} of {row['iterations_per_round']}",
                    "; ".join(verdicts),
                ]
            )
    head = ["genlab, times as fast as", "speed.preset", *rivals, "A/A control", "images/s", "rounds", "bar"]
    text = _table(head, lines)
    text += "\nplain: the same step by hand, nothing frozen; plain+freeze: the idle player frozen. "
    text += f"Medians (quartiles) of ratios within a round. {'; '.join(sorted(settings))}.\n"
    return text + "".join(f"\n{note}\n" for note in notes)


def _verdict(bar: float, ratio: Mapping[str, float] | None, rival: str) -> str:
    if ratio is None:
        return f"{bar:.2f} of {rival}: not measured"
    return f"{bar:.2f} of {rival}: {'reached' if ratio['median'] >= bar else 'missed'}"


def _parts(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        for preset, parts in row["parts_ms"].items():
            whole = sum(parts.values())
            text = ", ".join(f"{name} {ms:.3g} ({ms / whole:.0%})" for name, ms in parts.items())
            lines.append([row["name"], preset, f"{whole:.3g}", text])
    return _table(["ms per iteration, timers included", "speed.preset", "whole", "parts"], lines)


def _recurring(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        for preset, found in row["recurring"].items():
            cells = [f"{each['seconds']:.2g} s every {each['every']} ({each['share']:.1%})" for each in found.values()]
            lines.append([row["name"], preset, ", ".join(f"{n} {c}" for n, c in zip(found, cells, strict=True))])
    return _table(["recurring work (share of the run)", "speed.preset", "seconds, every so many iterations"], lines)


def _memories(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        text = [f"{name} {m['peak']:,.0f} ({m['before']:,.0f} before)" for name, m in row["peak_mib"].items()]
        lines.append([row["name"], ", ".join(text)])
    return _table(["peak memory of the process, MiB", "of ten iterations (before the first one)"], lines)


def _data(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["genlab's batches, times as fast as", "ImageFolder + DataLoader", "A/A control", "images/s genlab"]
    head += ["images/s torchvision", "preparation, epochs of it: CPU", "by the wall", "rounds", "bar"]
    lines = []
    for row in rows:
        reached = row["bar"] is not None and row["times_as_fast"]["median"] >= row["bar"]
        lines.append(
            [
                f"{row['images']:,} JPEGs at {row['size']}x{row['size']} ({row['source']})",
                _spread(row["times_as_fast"], 1),
                _spread(row["control"]),
                f"{row['images_per_second']['genlab']:,.0f}",
                f"{row['images_per_second']['torchvision']:,.0f}",
                _spread(row["preparation"]),
                _spread(row["preparation_by_the_wall"]),
                str(row["rounds"]),
                "" if row["bar"] is None else f"{row['bar']:.0f}: {'reached' if reached else 'missed'}",
            ]
        )
    text = "\nworkers=0; flip, normalise; batch 64; images per CPU second, one thread. "
    text += f"A preparation above 1 is shorter than one epoch. {rows[0]['device']}, torch {rows[0]['torch']}.\n"
    return _table(head, lines) + text
