"""The end of a run: the last pictures, and a table of the run, its scores and the next commands."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.commands import command, short
from genlab.config.composition import PARTS
from genlab.looks.pictures import curves

if TYPE_CHECKING:
    from genlab.runs.running import Parts


def write_pictures(parts: Parts, run_dir: Path) -> None:
    """Draws `curves.png` from the run's metrics, if there are any."""
    from genlab.looks.curves import read_metrics

    if (run_dir / "metrics.csv").is_file():
        curves(read_metrics(run_dir / "metrics.csv"), run_dir / "curves.png")


def print_summary(parts: Parts, run_dir: Path, record: dict[str, Any], scores: dict[str, float]) -> None:
    """Prints the closing table.

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
    composed = "  ".join(f"{k}={choices[k]}" for k in ("model", *PARTS, "data") if k in choices)
    table.add_row("ran", f"{composed}  seed={record['seed']}")
    wall = timedelta(seconds=round(session["wall_seconds"]))
    speed = f"{record['images_per_second']:,.0f} img/s, " if record["images_per_second"] else ""  # 0: not measured
    table.add_row("length", f"{record['iterations']} iterations, {speed}{wall} in all")
    for line in getattr(parts.judge, "lines", lambda _: [])(scores):
        table.add_row(*line)
    best = record["best"]
    if best["score"] is not None:
        table.add_row(
            "best",
            f"checkpoints/best.ckpt: {best['monitor']} {best['score']:.4g} on validation data, "
            f"iteration {best['iteration']}",
        )
    shown = [name for name in ("samples.png", "reconstructions.png", "curves.png") if (run_dir / name).is_file()]
    lines = {"folder": f"{short(run_dir)}/  {', '.join(shown)}, metrics.csv, config.yaml"}
    lines["draw more"] = command("sample", run=run_dir, n=64)
    done, planned = record["iterations"], parts.config["trainer"]["max_steps"]
    longer = {"trainer.max_steps": 2 * done} if done >= planned else {}
    limit = parts.config.get("max_cpu_time")
    longer |= {"max_cpu_time": f"{2 * limit:g}"} if limit and record.get("cpu_seconds", 0.0) >= limit else {}
    lines["go on"] = command("train", resume=run_dir, **longer)
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)  # a log file has room for whole paths
    console.print()
    console.print(table)
    width = max(len(str(label)) for label in (*table.columns[0].cells, *lines))
    for label, text in lines.items():  # to be pasted: never wrapped
        console.print(f"[bold cyan]{label:<{width}}[/]  {escape(text)}", soft_wrap=True, highlight=False)
