"""`python scripts/mode_benchmark.py`: counts the modes that methods cover on toy mixtures, at equal CPU time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from genlab.benchmarks.modes import gather, parse, sweep, tables
from genlab.cli import app
from genlab.runs import stopping


def main() -> None:
    """Modes covered by every method, at equal CPU time.

    python scripts/mode_benchmark.py [rows=all] [data=ring,grid,highdim] [seeds=0,1,2] [seconds=60]
                                     [out=outputs/mode_benchmark] [n_jobs=CORES]

    `rows` are files of configs/experiment/mode_benchmark; add one to add a method. `seconds` is the CPU time of each
    training, `n_jobs` the number of parallel ones (more than one: the extra `sweep`). The same command runs
    the missing ones. Writes mode_benchmark_SECONDSs.json and .md.
    """
    with app.errors_as_sentences():
        if app.print_if_asked(main.__doc__):
            return
        plan = parse(sys.argv[1:])
        app.check_writable(plan.out)
        with stopping.interrupts():
            for data in plan.data:
                sweep(plan, data)
        results = gather(plan)
        stem = plan.out / f"mode_benchmark_{plan.seconds:g}s"
        plan.out.mkdir(parents=True, exist_ok=True)
        Path(f"{stem}.json").write_text(json.dumps(results, indent=2) + "\n")
        Path(f"{stem}.md").write_text(tables(results))
        print(tables(results))
        print(f"Written to {stem}.json and {stem}.md")
        if results["missing"]:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
