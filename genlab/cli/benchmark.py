"""What the framework costs: genlab's training, all logging on, against the same step written by hand in plain PyTorch.

Both run in one process, in turns of a few hundred milliseconds, so that a machine whose speed drifts slows both; a
third contestant, the hand-written step once more, shows how far a ratio can be trusted (A/A). Ratios are medians over
rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from genlab.cli import app

STANDARD = {
    "dcgan at 32x32, batch 64": ["model=dcgan", "data=digits", "data.image_size=32", "data.batch_size=64", "threads=1"],
    "gan with mlp on ring": ["experiment=gan_ring", "threads=1"],
    "vae with mlp on digits": ["model=vae", "data=digits", "network=mlp", "data.batch_size=64", "threads=1"],
}
BARS = {"dcgan at 32x32, batch 64": 1.05, "gan with mlp on ring": 1.25, "vae with mlp on digits": 1.5}


def main() -> None:
    """`python scripts/benchmark.py [seconds=60] [out=DIR] [overrides ...]`; without overrides the standard set."""
    with app.errors_as_sentences():
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(main.__doc__)
            return
        seconds, arguments = app.take_path(sys.argv[1:], "seconds")
        out, arguments = app.take_path(arguments, "out")
        cases = {" ".join(arguments): arguments} if arguments else STANDARD
        rows = [measure(name, overrides, float(seconds or 60)) for name, overrides in cases.items()]
        folder = Path(out or "outputs/benchmark")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "benchmark.json").write_text(json.dumps(rows, indent=2) + "\n")
        (folder / "benchmark.md").write_text(table(rows))
        print(table(rows))
        print(f"Written to {folder}/benchmark.json and benchmark.md")


def measure(name: str, overrides: list[str], seconds: float) -> dict[str, Any]:
    """Times one composition for about so many seconds.

    Args:
        name: Of the row.
        overrides: As on the command line.
        seconds: For all rounds together.

    Returns:
        Milliseconds per iteration of both, their ratio, the A/A ratio and the spread of both over rounds.
    """
    import torch

    from genlab.cli.running import build

    config = app.compose([*overrides, "trainer.max_steps=100000000", "callbacks.scores=null", "callbacks.grid=null"])
    torch.set_num_threads(config["threads"] or torch.get_num_threads())
    parts = build(config)
    contestants = {"genlab": framework(overrides), "plain": by_hand(parts), "plain again": by_hand(build(config))}
    steps = {}
    for key, stepper in contestants.items():  # the first call compiles, allocates and fills caches
        started = time.perf_counter()
        stepper(20)
        steps[key] = max(1, round(0.25 / ((time.perf_counter() - started) / 20)))
    count = steps["plain"]
    rounds: dict[str, list[float]] = {key: [] for key in contestants}
    end = time.perf_counter() + seconds
    order = list(contestants)
    while time.perf_counter() < end or len(rounds["plain"]) < 5:
        for key in order:
            started = time.process_time() if config["threads"] == 1 else time.perf_counter()
            contestants[key](count)
            now = time.process_time() if config["threads"] == 1 else time.perf_counter()
            rounds[key].append(1000 * (now - started) / count)
        order.reverse()  # whoever goes first in one round goes last in the next
    ratios = [a / b for a, b in zip(rounds["genlab"], rounds["plain"], strict=True)]
    control = [a / b for a, b in zip(rounds["plain again"], rounds["plain"], strict=True)]
    return {
        "name": name,
        "overrides": overrides,
        "genlab_ms": statistics.median(rounds["genlab"]),
        "plain_ms": statistics.median(rounds["plain"]),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": quartiles(ratios),
        "control": statistics.median(control),
        "control_quartiles": quartiles(control),
        "rounds": len(ratios),
        "steps_per_round": count,
        "clock": "process time" if config["threads"] == 1 else "wall time",
        "threads": torch.get_num_threads(),
        "bar": BARS.get(name),
    }


def quartiles(values: list[float]) -> list[float]:
    """First and third quartile."""
    first, _, third = statistics.quantiles(values, n=4)
    return [first, third]


def framework(overrides: list[str]) -> Callable[[int], None]:
    """Genlab's training as the command line runs it (loggers, progress, EMA, health), a number of iterations a call."""
    import threading

    from genlab.cli.running import build, make_trainer

    config = app.compose([*overrides, "trainer.max_steps=100000000", "checkpoint.every_n_steps=100000000"])
    config["callbacks"] = {k: v for k, v in config["callbacks"].items() if k == "progress"}
    parts = build(config)
    folder = tempfile.mkdtemp()
    # The trainer runs in a thread of its own and is let through one iteration at a time: a fit that is entered anew
    # for every round would count its start, and only one of the two threads is ever awake.
    start, done = threading.Semaphore(0), threading.Semaphore(0)
    budget = [0]

    def gate(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            if budget[0] == 0:
                done.release()
                start.acquire()
            budget[0] -= 1
            yield batch

    class Gated:
        """The data's own stream, but it waits."""

        def __iter__(self) -> Iterator[Any]:
            return gate(iter(parts.data.stream()))

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    parts.data.prepare_data()
    parts.data.train_dataloader = Gated  # type: ignore[assignment,method-assign]
    trainer = make_trainer(parts, Path(folder))
    thread = threading.Thread(target=lambda: trainer.fit(parts.model, datamodule=parts.data), daemon=True)
    thread.start()
    done.acquire()

    def run(count: int) -> None:
        budget[0] = count
        start.release()
        done.acquire()

    return run


def by_hand(parts: Any) -> Callable[[int], None]:
    """The same step in straightforward PyTorch, on batches from the same stream, the idle player frozen, no logging."""
    from genlab.models.gan import GAN
    from genlab.models.vae import VAE

    parts.data.setup()
    batches = iter(parts.data.stream())
    model = parts.model
    step = {GAN: gan_step, VAE: vae_step}[type(model)](model)

    def run(count: int) -> None:
        for _ in range(count):
            step(next(batches).x)

    return run


def gan_step(model: Any) -> Callable[[Any], None]:
    """One discriminator and one generator update."""
    import torch
    import torch.nn.functional as F

    generator, discriminator, size = model.generator, model.discriminator, model.latent_dim
    (g_opt, d_opt) = (model._factories[k][0](model.players[k]) for k in ("generator", "discriminator"))
    weights = list(discriminator.parameters())

    def step(x_real: Any) -> None:
        with torch.no_grad():
            x_fake = generator(torch.randn(len(x_real), size))
        d_loss = F.softplus(-discriminator(x_real)).mean() + F.softplus(discriminator(x_fake)).mean()
        d_opt.zero_grad()
        d_loss.backward()
        d_opt.step()
        for weight in weights:
            weight.requires_grad_(False)
        g_loss = F.softplus(-discriminator(generator(torch.randn(len(x_real), size)))).mean()
        g_opt.zero_grad()
        g_loss.backward()
        g_opt.step()
        for weight in weights:
            weight.requires_grad_(True)

    return step


def vae_step(model: Any) -> Callable[[Any], None]:
    """One update on the negative ELBO."""
    import torch
    import torch.nn.functional as F

    encoder, decoder = model.encoder, model.decoder
    optimizer = model._factories["vae"][0](model.players["vae"])

    def step(x: Any) -> None:
        mu, logvar = encoder(x).chunk(2, dim=1)
        raw = decoder(mu + (0.5 * logvar).exp() * torch.randn_like(mu))
        recon = F.binary_cross_entropy_with_logits(raw, (x + 1) / 2, reduction="none").flatten(1).sum(1).mean()
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        optimizer.zero_grad()
        (recon + kl).backward()
        optimizer.step()

    return step


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, ratios first."""
    import platform

    import torch

    lines = [
        "| what | genlab / by hand | quartiles | A/A control | quartiles | genlab ms | by hand ms | rounds | bar |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        quarter = "{:.2f} to {:.2f}".format
        lines.append(
            f"| {r['name']} | **{r['ratio']:.3f}** | {quarter(*r['ratio_quartiles'])} | {r['control']:.3f} | "
            f"{quarter(*r['control_quartiles'])} | {r['genlab_ms']:.2f} | {r['plain_ms']:.2f} | "
            f"{r['rounds']} of {r['steps_per_round']} | {r['bar'] or ''} |"
        )
    first = rows[0]
    lines.append(
        f"\n{first['threads']} thread(s), {first['clock']}, torch {torch.__version__}, {platform.machine()}.\n"
    )
    return "\n".join(lines)
