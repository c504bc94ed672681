"""Mode coverage of methods on mixtures: every row of `configs/experiment/mode_benchmark` at equal CPU time.

All rows share networks, latent, batch and budget as far as their method allows. The budget is CPU time of the run's own
process with one thread, which other programs on the machine do not reduce; scores are computed once, at the end,
outside the budget. Runs are the jobs of a sweep, each in a folder named by row, data and seed, so that the same command
continues with missing runs, and more rows or seeds are added to existing ones.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.config import composition
from genlab.config.arguments import expanded
from genlab.config.shipped import config_dir
from genlab.errors import Interrupted, UserError, install
from genlab.runs import folder as runs

GROUP = "mode_benchmark"  # in configs/experiment
# Extra overrides of each mixture: two-dimensional noise cannot fill 700 dimensions.
DATA: dict[str, tuple[str, ...]] = {"ring": (), "grid": (), "highdim": ("model.latent_dim=254",)}
SAMPLES = 2500  # per draw of the perfect sampler, as in `metrics.num_samples`
SCORES = {"modes": "test/modes", "hq": "test/hq", "kl_modes": "test/kl_modes"}
FOLDER = "runs_{seconds:g}s"
POLL = 2.0  # seconds between two checks for finished runs
PUBLISHED: tuple[dict[str, Any], ...] = (
    {
        "source": "Srivastava et al. (2017), VEEGAN, arXiv:1705.07761, Table 1",
        "protocol": "mean of 5 runs, 2,500 samples; other networks; length not stated in the table; high "
        "quality within 3 std in the plane and within 10 std in 1,200 dimensions, a measure that is not the one above",
        "columns": ("ring modes", "ring HQ %", "grid modes", "grid HQ %", "1200-D modes", "1200-D HQ %"),
        "rows": {
            "GAN": ("1", "99.3", "3.3", "0.5", "1.6", "2.0"),
            "ALI": ("2.8", "0.13", "15.8", "1.6", "3", "5.4"),
            "Unrolled (K = 5)": ("7.6", "35.6", "23.6", "16", "0", "0.0"),
            "VEEGAN": ("8", "52.9", "24.6", "40", "5.5", "28.29"),
        },
    },
    {
        "source": "Lin et al. (2018), PacGAN, arXiv:1712.04086, Table 1",
        "protocol": "mean ± s.e. of 10 trials of 400,000 iterations of 100 samples each; 2,500 samples; networks of "
        "4 x 400 and 3 x 200 maxout units; a ring of radius 1 with std 0.01; KL is the reverse one of that paper",
        "columns": ("ring modes", "ring HQ %", "ring KL", "grid modes", "grid HQ %", "grid KL"),
        "rows": {
            "GAN": ("6.3 ± 0.5", "98.2 ± 0.2", "0.45 ± 0.09", "17.3 ± 0.8", "94.8 ± 0.7", "0.70 ± 0.07"),
            "ALI": ("6.6 ± 0.3", "97.6 ± 0.4", "0.36 ± 0.04", "24.1 ± 0.4", "95.7 ± 0.6", "0.14 ± 0.03"),
            "PacGAN2": ("7.9 ± 0.1", "95.6 ± 2.0", "0.07 ± 0.03", "23.8 ± 0.7", "91.3 ± 0.8", "0.13 ± 0.04"),
            "PacGAN3": ("7.8 ± 0.1", "97.7 ± 0.3", "0.10 ± 0.02", "24.6 ± 0.4", "94.2 ± 0.6", "0.06 ± 0.02"),
            "PacGAN4": ("7.8 ± 0.1", "95.9 ± 1.4", "0.07 ± 0.02", "24.8 ± 0.2", "93.6 ± 0.6", "0.04 ± 0.01"),
        },
    },
)


@dataclass(frozen=True)
class Plan:
    """The options of a benchmark.

    Attributes:
        rows: Names of files in `configs/experiment/mode_benchmark`.
        data: Names from `DATA`.
        seeds: Training seeds.
        seconds: CPU seconds of each run.
        out: Folder of runs and tables.
        n_jobs: Number of parallel processes.
    """

    rows: tuple[str, ...]
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: float
    out: Path
    n_jobs: int

    @property
    def runs(self) -> Path:
        """The folder of the sweeps, one for each length of runs."""
        return self.out / FOLDER.format(seconds=self.seconds)

    def run(self, row: str, data: str, seed: int) -> Path:
        """The folder of one run."""
        return self.runs / GROUP / row / data / f"seed_{seed}"

    def missing(self, data: str) -> list[str]:
        """The rows with missing runs on a data set."""
        return [r for r in self.rows if not all(result(self.run(r, data, s), self.seconds) for s in self.seeds)]


# --- Options --------------------------------------------------------------------------------------------------------


def rows() -> dict[str, str]:
    """Row names, the plain GAN first, with their descriptions: the first comment line of each file."""
    found = {}
    for path in sorted((config_dir() / "experiment" / GROUP).glob("*.yaml"), key=lambda p: (p.stem != "gan", p)):
        comments = [line.lstrip("# ").strip() for line in path.read_text().splitlines() if line.startswith("# ")]
        found[path.stem] = next((c for c in comments if not c.startswith("@package")), "")
    return found


def parse(arguments: Sequence[str]) -> Plan:
    """Parses the command line into a plan.

    Raises:
        UserError: If an argument or its value is invalid.
    """
    values: dict[str, str] = {
        "rows": "all",
        "data": ",".join(DATA),
        "seeds": "0,1,2",
        "seconds": "60",
        "out": "outputs/mode_benchmark",
        "n_jobs": "",
    }
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in values or not equals or not value:
            raise UserError(
                f"{argument!r} is no argument of the benchmark; it takes {', '.join(values)}, as key=value."
            )
        values[key] = value
    known = list(rows())
    chosen = known if values["rows"] == "all" else _names("rows", values["rows"], known)
    try:
        seeds = [int(s) for s in values["seeds"].split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len({*seeds}) < len(seeds):
        raise UserError(f"seeds must be distinct whole numbers, got {values['seeds']!r}. Try seeds=0,1,2.")
    try:
        seconds = float(values["seconds"])
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < math.inf:
        raise UserError(f"seconds must be a positive number, got {values['seconds']!r}. Try seconds=60.")
    jobs = values["n_jobs"]
    if jobs and not re.fullmatch("[1-9][0-9]*", jobs):
        raise UserError(f"n_jobs must be a positive whole number, got {jobs!r}. Try n_jobs=2.")
    n_jobs = int(jobs or os.cpu_count() or 1) if _has_joblib() else 1
    if jobs and n_jobs < int(jobs):
        print(f"Runs go one by one: n_jobs needs the joblib launcher, {install('sweep')}", file=sys.stderr)
    data = _names("data", values["data"], list(DATA))
    return Plan(tuple(chosen), tuple(data), tuple(seeds), seconds, Path(expanded(values["out"])), n_jobs)


def _names(key: str, text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    odd = [n for n in names if n not in known]
    if odd or len({*names}) < len(names):
        what = f"has no {odd[0]!r}" if odd else "has a duplicate"
        raise UserError(f"{key}={text} {what}; it takes {', '.join(known)}{', or all' if key == 'rows' else ''}.")
    return names


def _has_joblib() -> bool:
    from importlib.util import find_spec

    try:
        return find_spec("hydra_plugins.hydra_joblib_launcher") is not None
    except ModuleNotFoundError:
        return False


# --- Training -------------------------------------------------------------------------------------------------------


def command(plan: Plan, data: str, chosen: Sequence[str]) -> list[str]:
    """The arguments of `train.py` that train some rows on one data set, each seed in its folder."""
    launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={plan.n_jobs}"] if plan.n_jobs > 1 else []
    return [
        "-m",
        "experiment=" + ",".join(f"{GROUP}/{row}" for row in chosen),
        f"data={data}",
        *DATA[data],
        "seed=" + ",".join(map(str, plan.seeds)),
        f"max_cpu_time={plan.seconds:g}",
        f"hydra.sweep.dir={plan.runs.absolute()}",
        "hydra.sweep.subdir=${hydra.runtime.choices.experiment}/${hydra.runtime.choices.data}/seed_${seed}",
        *launcher,
    ]


def sweep(plan: Plan, data: str) -> None:
    """Trains the missing runs on one data set; their output goes to a log."""
    chosen = plan.missing(data)
    if not chosen:
        return
    wanted = {(row, seed): plan.run(row, data, seed) for row in chosen for seed in plan.seeds}
    done = {key for key, folder in wanted.items() if result(folder, plan.seconds)}
    plan.runs.mkdir(parents=True, exist_ok=True)
    log = plan.runs / f"{data}.log"
    length = (len(wanted) - len(done)) * plan.seconds / min(plan.n_jobs, os.cpu_count() or 1) / 60
    _tell(f"{data}: {len(wanted) - len(done)} runs, {length:.1f} minutes or more; their output is in {log}")
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "genlab.cli.train", *command(plan, data, chosen)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            running = True
            while running:
                try:
                    process.wait(POLL)
                    running = False
                except subprocess.TimeoutExpired:
                    pass
                for key in wanted.keys() - done:
                    found = result(wanted[key], plan.seconds)
                    if found:
                        done.add(key)
                        text = f"{found['modes']:.0f} modes, HQ {found['hq']:.1%}, {found['iterations']} iterations"
                        _tell(f"{data} {len(done)}/{len(wanted)}: {key[0]}, seed {key[1]}: {text}")
        except Interrupted:
            process.terminate()  # the runs write their checkpoints; Ctrl-C has reached them already, which does no harm
            process.wait()
            _tell("Stopped. The same command continues with the missing runs.")
            raise


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# --- Results --------------------------------------------------------------------------------------------------------


def result(folder: Path, seconds: float) -> dict[str, float] | None:
    """Scores and times of a run with full CPU time and scores; None for any other."""
    record = runs.record_of(folder)
    scores = record.get("scores") or {}
    finished = (record.get("sessions") or [{}])[-1].get("status") == "done"
    if not finished or float(record.get("cpu_seconds") or 0) < seconds or not {*SCORES.values()} <= scores.keys():
        return None
    values = {name: float(scores[key]) for name, key in SCORES.items()}
    wall = sum(float(session.get("wall_seconds") or 0) for session in record["sessions"])
    return {
        **values,
        "iterations": int(record["iterations"]),
        "cpu_seconds": float(record["cpu_seconds"]),
        "wall_seconds": wall,
    }


def summary(found: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float | None]]:
    """Mean and standard error (deviation with n - 1, over sqrt(n); None for one run) of each value over runs."""
    names = found[0].keys() if found else ()
    return {name: mean_and_error([each[name] for each in found]) for name in names}


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of values and its standard error, which is None for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def perfect(data: str) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Scores of true samples, on disjoint draws of `SAMPLES` each, and the card of the scores."""
    import torch

    from genlab.config.instantiate import instantiate
    from genlab.metrics.toy import mode_coverage

    module = instantiate(composition.compose([f"data={data}"])["data"])
    found, card = [], {}
    for split in ("val", "test"):
        store = module.split(split)
        x = store.gather(torch.arange(len(store)))
        for part in x.split(SAMPLES):
            if len(part) == SAMPLES:
                scores = mode_coverage(part, *module.modes)
                found.append(dict(scores))
                card = {**scores.card, "hq_radius": module.modes.radius, "dim": part.shape[1]}
    return found, card


def gather(plan: Plan) -> dict[str, Any]:
    """All results, as written to the JSON file."""
    titles = rows()
    results: dict[str, Any] = {
        "protocol": {
            "cpu_seconds_per_run": plan.seconds,
            "seeds": list(plan.seeds),
            "samples": SAMPLES,
            "weights": "moving average, as the run's own test scores",
            "threads": 1,
        },
        "data": {},
        "missing": [],
        "published": PUBLISHED,
    }
    for data in plan.data:
        floor, card = perfect(data)
        table: dict[str, Any] = {}
        for row in plan.rows:
            found = {seed: result(plan.run(row, data, seed), plan.seconds) for seed in plan.seeds}
            complete = {str(seed): each for seed, each in found.items() if each}
            missing = [seed for seed, each in found.items() if not each]
            results["missing"] += [str(plan.run(row, data, seed)) for seed in missing]
            table[row] = {
                "what": titles[row],
                "runs": complete,
                "failed": [seed for seed in missing if _failed(plan.run(row, data, seed))],
                "mean_and_se": summary(list(complete.values())),
                "command": shlex.join(["python", "train.py", *command(plan, data, [row])]),
            }
        results["data"][data] = {"card": card, "perfect_sampler": summary(floor), "rows": table}
    return results


def _failed(folder: Path) -> bool:
    return (runs.record_of(folder).get("sessions") or [{}])[-1].get("status") == "failed"


def tables(results: Mapping[str, Any]) -> str:
    """Results of `gather` as Markdown: a table per data set, best rows first, then published results."""
    protocol = results["protocol"]
    seeds, seconds = protocol["seeds"], protocol["cpu_seconds_per_run"]
    text = [
        "# Modes covered at equal CPU time",
        "",
        f"Every run has {seconds:g} s of CPU time of one thread; {protocol['samples']:,} samples of the averaged "
        f"weights; mean ± standard error over {len(seeds)} seed{'s' if len(seeds) > 1 else ''} "
        f"({', '.join(map(str, seeds))}). KL of the histogram of good samples over the modes to uniform, in nats.",
    ]
    for name, data in results["data"].items():
        text += ["", f"## {name}", "", *_table(name, data, len(seeds))]
    if results["missing"]:
        text += ["", f"{len(results['missing'])} runs are missing or failed; the same command continues them."]
    text += ["", "## Published by others, under other protocols", ""]
    text += [
        "Networks, lengths and, in part, measures differ, so these values are not comparable with the tables above."
    ]
    for table in results["published"]:
        text += ["", f"{table['source']}: {table['protocol']}.", ""]
        text += _lines(["method", *table["columns"]], [[name, *values] for name, values in table["rows"].items()])
    return "\n".join(text) + "\n"


def _table(name: str, data: Mapping[str, Any], wanted: int) -> list[str]:
    card = data["card"]
    radius, dim = card["hq_radius"], card["dim"]
    each = f", {radius / math.sqrt(dim):.2f} per coordinate" if dim > 3 else ""
    distance = f"within {radius:.3g} std of a centre{each}"
    head = [
        "row",
        f"modes of {card['num_modes']}",
        f"HQ % ({distance})",
        "KL",
        "iterations",
        "CPU s",
        "runs",
        "what",
    ]
    order = sorted(
        data["rows"].items(),
        key=lambda item: tuple(-item[1]["mean_and_se"].get(k, (-1, None))[0] for k in ("modes", "hq")),
    )
    floor = data["perfect_sampler"]
    body = [["*perfect sampler*", *_figures(floor), "", "", "", f"{SAMPLES:,} true samples; at most {_percent(card)}"]]
    for row, found in order:
        figures, what = found["mean_and_se"], found["what"]
        count = f"{len(found['runs'])}/{wanted}" + (f", {len(found['failed'])} failed" if found["failed"] else "")
        if not figures:
            body.append([row, "", "", "", "", "", count, what])
            continue
        length = [_figure(figures["iterations"], 1, 0), _figure(figures["cpu_seconds"], 1, 1)]
        body.append([row, *_figures(figures), *length, count, what])
    return _lines(head, body)


def _percent(card: Mapping[str, Any]) -> str:
    return f"{card['hq_ceiling']:.1%} HQ expected"


def _figures(figures: Mapping[str, tuple[float, float | None]]) -> list[str]:
    return [_figure(figures["modes"], 1, 1), _figure(figures["hq"], 100, 1), _figure(figures["kl_modes"], 1, 3)]


def _figure(value: tuple[float, float | None], times: float, digits: int) -> str:
    mean, error = value
    text = f"{times * mean:,.{digits}f}"
    return text if error is None else f"{text} ± {times * error:,.{digits}f}"


def _lines(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]
