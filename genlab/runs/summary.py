"""The end of a run: the last pictures, and a table of the run, its scores and the next commands."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.commands import command, short
from genlab.config.composition import PARTS
from genlab.journal import note
from genlab.looks.pictures import curves

if TYPE_CHECKING:
    from genlab.runs.running import Parts


def write_pictures(parts: Parts, run_dir: Path) -> None:
    """Draws `curves.png` from the run's metrics, if there are any."""
    from genlab.looks.curves import read_metrics

    if (run_dir / "metrics.csv").is_file():
        curves(read_metrics(run_dir / "metrics.csv"), run_dir / "curves.png")


def early(iteration: int, idle: int, monitor: str | None) -> str:
    """The sentence that says why a run ended before its last iteration."""
    return f"stopped early after iteration {iteration}: {idle} validations without a better {monitor}"


def compared(best: dict[str, Any], last: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the monitored score of the last and the best weights, on validation and on test data side by side.

    Args:
        best: The section `best` of `run.json`.
        last: The section `last`.
    """
    if best["score"] is None:
        return []

    def row(values: dict[str, Any], note: str) -> str:
        numbers = (values["validation"], values["test"])
        return "".join("         -" if v is None else f"{v:>10.4g}" for v in numbers) + f"   iteration {note}"

    mean = f", chosen by the mean of {best['mean_of']}" if best["mean_of"] > 1 else ""
    sizes = "".join(f"{'n = ' + str(n):>10}" for n in last.get("n", {}).values())
    return [
        (str(best["monitor"]), "validation      test"),
        *([("", sizes)] if sizes else []),
        ("last", row(last, str(last["iteration"]))),
        ("best", row(best, f"{best['iteration']}, best.ckpt{mean}")),
    ]


def print_summary(parts: Parts, run_dir: Path, record: dict[str, Any], scores: dict[str, float]) -> None:
    """Prints the closing table, and writes it to the journal.

    Args:
        parts: Parts of the run.
        run_dir: Folder of the run.
        record: The content of `run.json`.
        scores: Test scores by name.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    choices, session = record["choices"], record["sessions"][-1]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan", no_wrap=True, min_width=len("draw more"))
    table.add_column(overflow="fold")

    def add(name: str, text: str) -> None:
        table.add_row(name, text)
        note(f"{name}: {text}")

    composed = "  ".join(f"{k}={choices[k]}" for k in ("model", *PARTS, "data") if k in choices)
    add("ran", f"{composed}  seed={record['seed']}")
    wall = timedelta(seconds=round(session["wall_seconds"]))
    speed = f"{record['images_per_second']:,.0f} img/s, " if record["images_per_second"] else ""  # 0: not measured
    add("length", f"{record['iterations']} iterations, {speed}{wall} in all")
    best, patience = record["best"], parts.config["checkpoint"].get("early_stop")
    ended = patience is not None and best["idle"] >= patience
    if ended:
        add("end", early(record["iterations"], best["idle"], best["monitor"]))
    for line in [*(parts.judge.lines() if scores else ()), *compared(best, record["last"])]:
        add(*line)
    shown = [name for name in ("samples.png", "reconstructions.png", "curves.png") if (run_dir / name).is_file()]
    lines = {"folder": f"{short(run_dir)}/  {', '.join(shown)}, metrics.csv, config.yaml"}
    lines["draw more"] = command("sample", run=run_dir, n=64)
    done, planned = record["iterations"], parts.config["trainer"]["max_steps"]
    longer: dict[str, Any] = {"trainer.max_steps": 2 * done} if done >= planned else {}
    longer |= {"checkpoint.early_stop": "null"} if ended else {}
    limit = parts.config.get("max_cpu_time")
    longer |= {"max_cpu_time": f"{2 * limit:g}"} if limit and record.get("cpu_seconds", 0.0) >= limit else {}
    lines["go on"] = command("train", resume=run_dir, **longer)
    for label, text in lines.items():
        note(f"{label}: {text}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)  # a log file has room for whole paths
    console.print()
    console.print(table)
    width = max(len(str(label)) for label in (*table.columns[0].cells, *lines))
    for label, text in lines.items():  # to be pasted: never wrapped
        console.print(f"[bold cyan]{label:<{width}}[/]  {escape(text)}", soft_wrap=True, highlight=False)
