"""The report as one HTML file with embedded style, pictures and curves, without downloads or scripts."""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError
from genlab.files import write_text
from genlab.reports.report import Composition, Entry, Report, Row, cell, duration, markdown, number, short

if TYPE_CHECKING:
    Curves = dict[str, tuple[list[int], list[float]]]

COLOURS = ("#3b6fb6", "#d9822b", "#2a9d6f", "#b5487b", "#7a5cc0", "#2aa1b3", "#c94f4f", "#8a6d3b")
PANELS = 12  # panels of curves at most
POINTS_PER_CURVE = 300
ARROWS = {"lower": "↓", "higher": "↑"}
THUMBS = 8  # runs of a composition whose pictures are shown side by side
TOLD = ("extractor", "test_accuracy", "n_fake", "n_real", "split", "resize", "ema", "seed")  # shown first

STYLE = """
:root { --ink:#1d2129; --soft:#5d6675; --line:#e3e6eb; --page:#f6f7f9; --card:#ffffff; --mark:#e7f4ec; --tie:#f2f7f4;
  --good:#1c7a4c; --warn:#8a5a00; --warnbg:#fff6e3; --grid:#eceff3; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ee; --soft:#9aa4b2; --line:#2c323c; --page:#14171c;
  --card:#1b1f26; --mark:#17352a; --tie:#1a2723; --good:#67d39d; --warn:#f0c56b; --warnbg:#2e2716; --grid:#262c35; } }
* { box-sizing:border-box }
body { margin:0; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif }
main { max-width:1240px; margin:0 auto; padding:36px 28px 80px }
h1 { font-size:30px; letter-spacing:-.02em; margin:0 0 4px }
h2 { font-size:19px; letter-spacing:-.01em; margin:44px 0 12px }
p { margin:6px 0 } .soft { color:var(--soft) } .small { font-size:13px }
code { font:12.5px/1.4 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace; background:var(--grid);
  padding:1px 6px; border-radius:5px; overflow-wrap:anywhere }
.box { background:var(--card); border:1px solid var(--line); border-radius:12px; overflow:hidden }
.cards { display:grid; gap:18px; align-items:start; grid-template-columns:repeat(auto-fill,minmax(260px,380px)) }
.cards .box { border-top:4px solid var(--c); display:flex; flex-direction:column }
.cards img { width:100%; display:block; background:#fff; aspect-ratio:1; object-fit:contain }
.cards .text { padding:14px 16px 16px } .cards h3 { margin:0 0 8px; font-size:16px; overflow-wrap:anywhere }
dl { display:grid; grid-template-columns:auto minmax(0,1fr); gap:2px 14px; margin:0; font-size:13.5px }
dt { color:var(--soft) } dd { margin:0; text-align:right; font-variant-numeric:tabular-nums; overflow-wrap:anywhere }
.scroll { overflow-x:auto }
table { border-collapse:collapse; width:100%; font-size:14px; font-variant-numeric:tabular-nums }
th,td { padding:8px 14px; text-align:right; border-top:1px solid var(--line); white-space:nowrap;
  vertical-align:middle }
td.part { background:var(--page); color:var(--soft); font-size:12.5px; font-weight:600; padding:7px 14px }
thead th { border-top:0; white-space:normal; font-weight:600; color:var(--soft); font-size:13px; vertical-align:bottom }
th:first-child,td:first-child { text-align:left; white-space:normal; min-width:190px }
td.beside { color:var(--soft); font-size:13px } td.best { background:var(--mark); font-weight:650; color:var(--good) }
td.tie { background:var(--tie) } .way { color:var(--soft); font-weight:400; font-size:12.5px }
td.left, th.left { text-align:left; white-space:normal }
.dot { display:inline-block; width:10px; height:10px; border-radius:50%; background:var(--c); margin-right:7px }
.why { background:var(--warnbg); color:var(--warn); border-radius:10px; padding:10px 16px; margin:10px 0;
  font-size:14px; overflow-wrap:anywhere }
.panels { display:grid; gap:16px; grid-template-columns:repeat(auto-fill,minmax(340px,1fr)) }
.panels .box { padding:12px 14px 6px } .panels h3 { font-size:14px; margin:0 0 4px; font-weight:600 }
svg { display:block } svg text { fill:var(--soft); font-size:11px } svg .g { stroke:var(--grid) }
.seeds { display:grid; gap:14px; grid-template-columns:repeat(auto-fill,minmax(200px,1fr)); padding:16px }
.seeds figure { margin:0 } .seeds img { width:100%; display:block; border-radius:6px; background:#fff }
figcaption { color:var(--soft); font-size:12.5px; padding-top:4px }
details { border-top:1px solid var(--line); padding:9px 16px } details:first-child { border-top:0 }
summary { cursor:pointer; font-weight:550 } details dl { padding:10px 0 6px; max-width:760px }
details dd { text-align:left }
footer { margin-top:48px; color:var(--soft); font-size:13px }
"""


def write(report: Report, page: Path) -> None:
    """Writes the HTML page, and the Markdown report beside it.

    Raises:
        UserError: If a file cannot be written.
    """
    try:
        write_text(page, html_page(report))
        write_text(page.with_suffix(".md"), markdown(report) + "\n")
    except OSError as error:
        raise UserError(f"The report cannot be written to {page} ({error.strerror}). Try out=FILE.html.") from error


def html_page(report: Report) -> str:
    """The whole page; all text is escaped, as run folders may come from untrusted sources."""
    runs, compositions = len(report.entries), len(report.compositions)
    shared = " ".join(f"<code>{escape(f'{k}={v}')}</code>" for k, v in report.shared.items())
    count = f"{runs} run{'s' * (runs > 1)}" + (f" of {compositions} compositions" if compositions > 1 else "")
    wall = sum(e.wall_seconds or 0 for e in report.entries)
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    lines = [f"{count}, {duration(wall)} in all" if wall else count, f"all with {shared}" if shared else ""]
    sections = [
        _cards(report),
        _section("Scores", _table(report, report.ranked) + _legend(report)) if report.ranked else "",
        _section("Not ranked", _not_ranked(report)) if report.refused else "",
        _notes(report),
        _curves(report),
        _pictures(report),
        _protocol(report),
        _section("Runs", _runs(report)),
    ]
    title = "genlab: " + "; ".join(c.short for c in report.compositions)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title[:120])}</title><style>{STYLE}</style></head><body><main>"
        f'<h1>Run report</h1><p class="soft">{"; ".join(filter(None, lines))}.</p>'
        f"{''.join(sections)}<footer>Made by genlab, {escape(now)}. Values are mean ± standard deviation over runs "
        "that differ by their seed alone; a run with several scorings counts once, with its mean.</footer>"
        "</main></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def _colour(i: int) -> str:
    return f"--c:{COLOURS[i % len(COLOURS)]}"


def _list(pairs: Sequence[tuple[str, Any]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in pairs) + "</dl>"


# --- Compositions and scores ----------------------------------------------------------------------------------------


def _cards(report: Report) -> str:
    """One card per composition: samples, size and speed."""
    boxes = []
    lead = next((row for row in report.ranked if row.best), None) or next(iter(report.ranked), None)
    for i, composition in enumerate(report.compositions):
        first = composition.entries[0]
        image = _picture(first, "samples.png", 768)
        alt = f"Samples of {composition.label}, {first.name}"
        shown = f'<img src="{image}" alt="{escape(alt, quote=True)}">' if image else ""
        boxes.append(
            f'<div class="box" style="{_colour(i)}">{shown}<div class="text"><h3>{escape(composition.short)}</h3>'
            f"{_list(_facts(composition, lead))}</div></div>"
        )
    return f'<div class="cards" style="margin-top:24px">{"".join(boxes)}</div>'


def _facts(composition: Composition, lead: Row | None) -> list[tuple[str, str]]:
    entries = composition.entries
    facts = [("runs", f"{len(entries)}{_seeds(entries)}")]
    if lead is not None and composition.means(lead.score):
        facts.append((_bare(lead), cell(composition.means(lead.score))))
    iterations = sorted({e.record["iterations"] for e in entries if "iterations" in e.record})
    if iterations:
        facts.append(("iterations", " to ".join(f"{n:,}" for n in dict.fromkeys((iterations[0], iterations[-1])))))
    parameters = entries[0].record.get("parameters", {})
    if parameters:
        facts.append(("parameters", ", ".join(f"{k} {short(v)}" for k, v in parameters.items())))
    walls = [e.wall_seconds for e in entries if e.wall_seconds is not None]
    if walls:
        facts.append(("wall time of a run", duration(statistics.fmean(walls))))
    speeds = [e.record["images_per_second"] for e in entries if e.record.get("images_per_second")]
    if speeds:
        facts.append(("images/s", f"{statistics.fmean(speeds):,.0f}"))
    return facts


def _seeds(entries: list[Entry]) -> str:
    seeds = [str(e.seed) for e in entries if e.seed is not None]
    return f", seed{'s' * (len(seeds) > 1)} {', '.join(seeds[:10])}{', …' * (len(seeds) > 10)}" if seeds else ""


def _table(report: Report, rows: list[Row]) -> str:
    heads = "".join(
        f'<th><span class="dot" style="{_colour(i)}"></span>{escape(c.short)}</th>'
        for i, c in enumerate(report.compositions)
    )
    body, section = [], ""
    for row in rows:
        better = row.better if row.differs is None else None
        way = f' <span class="way" title="{better} is better">{ARROWS[better]}</span>' if better else ""
        cells = []
        for i in range(len(row.values)):
            kind = "" if i not in row.best else ' class="best"' if row.best[0] == i else ' class="tie"'
            cells.append(f"<td{kind}>{escape(row.cell(i))}</td>")
        if (part := row.section) != section:
            section = part
            body.append(f'<tr><td class="part" colspan="{len(row.values) + 3}">{escape(part)}</td></tr>')
        title = row.title.partition(" (")[0] if row.section.startswith("extractor") else row.title
        body.append(
            f'<tr><td>{escape(title)}{way}</td><td class="beside">{escape(row.reference)}</td>'
            f"{''.join(cells)}<td>{_strip(report, row)}</td></tr>"
        )
    return (
        '<div class="box scroll"><table><thead><tr><th>score</th><th>reference</th>'
        f"{heads}<th>run by run</th></tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _strip(report: Report, row: Row) -> str:
    """A line per composition, a dot per run, a bar at the mean."""
    every = [v for values in row.values for v in values if math.isfinite(v)]
    if len(every) < 2:
        return ""
    low, high = min(every), max(every)
    width, step, margin = 190, 13, 8
    reach = (high - low) or 1.0
    used = [i for i, values in enumerate(row.values) if values]
    height = step * len(used) + 4

    def place(value: float) -> float:
        return margin + (width - 2 * margin) * ((value - low) / reach if high > low else 0.5)

    parts = []
    for line, i in enumerate(used):
        y, colour = 2 + step * (line + 0.5), COLOURS[i % len(COLOURS)]
        parts.append(f'<line class="g" x1="{margin}" x2="{width - margin}" y1="{y}" y2="{y}"/>')
        finite = [v for v in row.values[i] if math.isfinite(v)]
        for value in finite:
            parts.append(
                f'<circle cx="{place(value):.1f}" cy="{y}" r="3.6" fill="{colour}" fill-opacity=".55">'
                f"<title>{escape(f'{report.compositions[i].label}: {number(value)}')}</title></circle>"
            )
        if len(finite) > 1:
            x = place(statistics.fmean(finite))
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 6}" y2="{y + 6}" stroke="{colour}" stroke-width="2"/>'
            )
    return f'<svg width="{width}" height="{height}" role="img">{"".join(parts)}</svg>'


def _legend(report: Report) -> str:
    several = any(len(c.entries) > 1 for c in report.compositions)
    parts = []
    if any(row.best for row in report.rows):
        tie = "; shaded lightly: within one standard deviation of it" if several else ""
        parts.append(f"↓ lower is better, ↑ higher is better. Green: the best mean{tie}.")
        if not several:
            parts.append("One run each says nothing about the spread between seeds.")
    parts += _scoring_spread(report)
    return "".join(f'<p class="soft small">{escape(p)}</p>' for p in parts)


def _scoring_spread(report: Report) -> list[str]:
    """Standard deviation of a score between scorings of one run, as text; [] if no run was scored twice."""
    for row in report.rows:
        if row.better is None:
            continue
        found = [(c.short, s) for c in report.compositions if (s := c.spread_of_scorings(row.score)) is not None]
        if found:
            listed = ", ".join(f"{s:.2g} ({label})" for label, s in found)
            title = row.title
            return [f"Runs were scored with several seeds: {title} varies between scorings with a std of {listed}."]
    return []


def _not_ranked(report: Report) -> str:
    reasons = "".join(f'<div class="why">{escape(sentence)}</div>' for sentence in report.refusals)
    return reasons + _table(report, report.refused)


def _notes(report: Report) -> str:
    return "".join(f'<div class="why">{escape(note)}</div>' for note in report.notes)


# --- Curves ---------------------------------------------------------------------------------------------------------


def _bare(row: Row) -> str:
    """The title without the extractor, which the heading names."""
    return row.title.removesuffix(f" ({row.score.partition('/')[2]})")


def _curves(report: Report) -> str:
    """Validation scores and losses over iterations, one panel each with all runs."""
    from genlab.looks.curves import read_metrics

    histories: list[tuple[int, Curves]] = []
    for i, composition in enumerate(report.compositions):
        for entry in composition.entries:
            if entry.folder is None or not (entry.folder / "metrics.csv").is_file():
                continue
            try:
                histories.append((i, read_metrics(entry.folder / "metrics.csv")))
            except (ValueError, KeyError, OSError, TypeError):  # truncated while being written
                continue
    names = {name for _, history in histories for name in history}
    shown = [n for n in names if n.startswith(("val/", "train/")) and not n.startswith("train/grad_norm")]
    shown = [n for n in shown if not n.partition("/")[2].partition("/")[0].endswith("_std")]
    panels, titles = [], {row.score: row.title for row in report.rows}
    for name in sorted(shown, key=lambda n: (not n.startswith("val/"), "loss" not in n, n))[:PANELS]:
        lines = [(i, *history[name]) for i, history in histories if name in history]
        plot = _plot(lines)
        if plot:
            phase, _, rest = name.partition("/")
            title = f"{titles.get(rest, rest)}, validation" if phase == "val" else rest
            panels.append(f'<div class="box"><h3>{escape(title)}</h3>{plot}</div>')
    return _section("Curves", f'<div class="panels">{"".join(panels)}</div>') if panels else ""


def _plot(lines: list[tuple[int, list[int], list[float]]]) -> str:
    """An SVG plot, a thin line per run; a noisy run's is pale, with its moving mean over it.

    The vertical axis is logarithmic if values span two orders of magnitude.
    """
    from genlab.looks.curves import smoothed

    data = []
    for i, steps, values in lines:
        mean = smoothed(values)
        for drawn, opacity in [(values, 0.75)] if mean is None else [(values, 0.2), (mean, 0.85)]:
            stride = max(1, math.ceil(len(steps) / POINTS_PER_CURVE))
            kept = list(zip(steps, drawn, strict=True))[::stride]
            kept += [(steps[-1], drawn[-1])] if steps and kept[-1][0] != steps[-1] else []
            points = [(x, y) for x, y in kept if math.isfinite(y)]
            if points:
                data.append((i, points, opacity))
    ys = [y for _, points, _ in data for _, y in points]
    xs = [x for _, points, _ in data for x, _ in points]
    if not data or max(xs) == min(xs):
        return ""
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > 100
    change: Callable[[float], float] = math.log10 if logarithmic else float
    low, high = change(min(ys)), change(max(ys))
    if high == low:
        low, high = low - 0.5, high + 0.5
    width, height, left, right, top, bottom = 340, 190, 46, 16, 8, 24
    margin = 0.04 * (high - low)
    low, high = low - margin, high + margin

    def px(x: float) -> float:
        return left + (width - left - right) * (x - min(xs)) / (max(xs) - min(xs))

    def py(y: float) -> float:
        return height - bottom - (height - top - bottom) * (change(y) - low) / (high - low)

    parts = []
    marks = _decades(low, high) if logarithmic else _ticks(low, high)
    for value in marks:
        y = py(value)
        parts.append(f'<line class="g" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in _ticks(min(xs), max(xs), 4):
        parts.append(f'<text x="{px(value):.1f}" y="{height - 7}" text-anchor="middle">{short(value)}</text>')
    for i, points, opacity in data:
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="1.5" '
            f'stroke-opacity="{opacity}" stroke-linejoin="round"/>'
        )
        if len(points) < 12:
            parts += [
                f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.3" fill="{COLOURS[i % len(COLOURS)]}"/>'
                for x, y in points
            ]
    return f'<svg viewBox="0 0 {width} {height}" width="100%" role="img">{"".join(parts)}</svg>'


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values within [low, high]."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten between two logarithms."""
    return [10.0**k for k in range(math.ceil(low), math.floor(high) + 1)]


# --- Pictures -------------------------------------------------------------------------------------------------------


def _picture(entry: Entry, name: str, most: int) -> str | None:
    """A PNG of a run as a data URI, at most `most` pixels wide; None if it is missing or unreadable."""
    path = entry.folder / name if entry.folder is not None else None
    if path is None or not path.is_file():
        return None
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            picture = image.convert("RGB")
    except Exception:  # PIL raises nearly any type on a bad file
        return None
    if picture.width > most:
        picture = picture.resize((most, round(picture.height * most / picture.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pictures(report: Report) -> str:
    """Samples and reconstructions of every seed side by side, one row per composition."""
    rows = []
    for i, composition in enumerate(report.compositions):
        figures = []
        for entry in composition.entries[:THUMBS]:
            name = f"seed {entry.seed}" if entry.seed is not None else entry.name
            for file, what in (("samples.png", "samples"), ("reconstructions.png", "inputs and reconstructions")):
                image = _picture(entry, file, 360)
                if image is not None and (len(composition.entries) > 1 or what != "samples"):
                    caption = escape(f"{name}, {what}")
                    figures.append(
                        f'<figure><img src="{image}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
                    )
        if figures:
            dot = f'<span class="dot" style="{_colour(i)}"></span>'
            rows.append(
                f'<div class="box" style="margin-top:12px"><div style="padding:12px 16px 0">{dot}'
                f'<b>{escape(composition.label)}</b></div><div class="seeds">{"".join(figures)}</div></div>'
            )
    return _section("Seed by seed", "".join(rows)) if rows else ""


# --- Cards and runs -------------------------------------------------------------------------------------------------


def _protocol(report: Report) -> str:
    """The card of each score; runs and scores with equal cards share one."""
    titles: dict[str, list[str]] = {}
    for row in report.rows:
        cards: dict[str, list[str]] = {}
        for composition in report.compositions:
            for scoring in (s for entry in composition.entries for s in entry.scorings if row.score in s.scores):
                holders = cards.setdefault(_card(scoring.cards.get(row.score, {})), [])
                holders += [composition.short] if composition.short not in holders else []
        body = "".join(
            (f'<p class="small soft">{escape("; ".join(who))}</p>' if len(cards) > 1 else "") + card
            for card, who in cards.items()
        )
        titles.setdefault(body, []).append(row.title)
    blocks = [
        f"<details><summary>{escape(', '.join(names))}</summary>{body}</details>" for body, names in titles.items()
    ]
    note = '<p class="soft small">The conditions of each score. Scores are ranked only where these agree.</p>'
    return _section("Protocol cards", note + f'<div class="box">{"".join(blocks)}</div>') if blocks else ""


def _card(card: dict[str, Any]) -> str:
    shown = {k: v for k, v in card.items() if k != "seed" and not k.endswith("_seed")}  # seeds are not compared
    names = [k for k in TOLD if k in shown] + sorted(k for k in shown if k not in TOLD)
    return _list([(k, number(v) if isinstance(v, float) else v) for k, v in ((k, shown[k]) for k in names)])


def _runs(report: Report) -> str:
    heads = ("run", "seed", "iterations", "wall time", "images/s", "scorings", "status", "hardware", "command")
    head = "".join(f"<th{' class=left' if h in ('command', 'hardware') else ''}>{h}</th>" for h in heads)
    body = []
    for i, composition in enumerate(report.compositions):
        for entry in composition.entries:
            record, session = entry.record, (entry.record.get("sessions") or [{}])[-1]
            hardware = session.get("hardware", {})
            device = ", ".join(hardware.get("gpus") or []) or hardware.get("cpu", "–")
            threads = hardware.get("threads")
            speed, iterations = record.get("images_per_second"), record.get("iterations")
            cells = [
                "–" if entry.seed is None else entry.seed,
                "–" if iterations is None else f"{iterations:,}",
                duration(entry.wall_seconds),
                f"{speed:,.0f}" if speed else "–",
                len(entry.scorings),
                session.get("status", "–"),
            ]
            where = f"{device}, {threads} thread{'s' * (threads != 1)}" if threads else device
            body.append(
                f'<tr><td><span class="dot" style="{_colour(i)}"></span>{escape(_place(entry))}</td>'
                + "".join(f"<td>{escape(str(c))}</td>" for c in cells)
                + f'<td class="left small">{escape(str(where))}</td>'
                + f'<td class="left"><code>{escape(str(session.get("command", "–")))}</code></td></tr>'
            )
    return f'<div class="box scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _place(entry: Entry) -> str:
    if entry.folder is None:
        return entry.name
    return str(Path(*entry.folder.parts[-2:])) if len(entry.folder.parts) > 2 else entry.name
