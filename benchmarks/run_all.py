"""Runs every benchmark, one after the other, each in a process of its own, and writes `benchmarks/RESULTS.md`.

    make bench        or        python benchmarks/run_all.py [NAME ...]

Load nothing else meanwhile. With names (input, step, heatmaps, explorers, growth, grid, hessian, scan, gpu) only those
run, and the results of the others are kept.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

from harness import Row, machine, table

HERE = Path(__file__).parent
PARTS = ("input", "step", "heatmaps", "explorers", "growth", "grid", "hessian", "scan", "gpu")
KEPT = HERE / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="NAME", help=f"one of {', '.join(PARTS)}")
    wanted = parser.parse_args().parts or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}: expected {', '.join(PARTS)}")
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for part in wanted:
        print(f"{part} ...", flush=True)
        command = [sys.executable, str(HERE / f"bench_{part}.py"), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=HERE)
        if done.returncode:
            sys.exit(f"bench_{part}.py failed; see above")
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        kept[part] = {"machine": machine(), "date": f"{datetime.date.today():%Y-%m-%d}", "rows": rows}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        print(table([Row(**row) for row in rows]), flush=True)
    (HERE / "RESULTS.md").write_text(page(kept))
    rows = [row for part in kept.values() for row in part["rows"] if row["met"] is not None]
    print(f"{sum(row['met'] for row in rows)} of {len(rows)} goals met; all in {HERE / 'RESULTS.md'}")


def page(kept: dict) -> str:
    """The results as one Markdown page; rows measured on one machine on one day stand together."""
    text = "# What was measured\n\nBoth sides of a ratio run in turns in one process. `make bench` writes this page.\n"
    reasons = HERE / "REASONS.md"
    origins: dict[tuple[str, str], list[Row]] = {}
    for part in PARTS:
        if part in kept:
            origin = kept[part]["machine"], kept[part]["date"]
            origins.setdefault(origin, []).extend(Row(**row) for row in kept[part]["rows"])
    for (where, day), rows in origins.items():
        text += f"\n{where}; {day}.\n\n{table(rows)}\n"
    return text + (f"\n{reasons.read_text()}" if reasons.exists() else "")


if __name__ == "__main__":
    main()
