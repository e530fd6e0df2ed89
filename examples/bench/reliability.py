"""Files made wrong, processes killed: what the reader and the writer make of it.

    python examples/bench/reliability.py --cases 100000 --kills 200

prints the figures and writes them to `results/reliability.json`. The work is that of `tests/helpers/fuzz.py` and
`tests/helpers/kills.py`, with more cases than the tests take.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from results import Row, save, show

TESTS = Path(__file__).parents[2] / "tests" / "helpers"


def figures_of(script: str, *options: object) -> dict[str, Any]:
    """What a script of the tests prints, and how its process ended."""
    program = [sys.executable, TESTS / script, *map(str, options)]
    done = subprocess.run(program, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    return {**json.loads(done.stdout or "{}"), "ended": done.returncode}


def fuzzed(cases: int, seed: int) -> Row:
    """Files made wrong."""
    found = figures_of("fuzz.py", "--cases", cases, "--seed", seed)
    outcomes = found.get("outcomes", {})
    return {
        "what": f"files made wrong, seed {seed}",
        "tried": found.get("cases", 0),
        "kinds": len(found.get("kinds", {})),
        "refused": sum(n for name, n in outcomes.items() if name != "read"),
        "read": outcomes.get("read", 0),
        "crashes": int(found["ended"] != 0),
        "hangs": found.get("hangs"),
        "wrong": len(found.get("wrong", [])),
        "memory": found.get("memory"),
        "by error": outcomes,
        "by kind": found.get("kinds", {}),
    }


def killed(kills: int, seed: int) -> list[Row]:
    """Processes killed while they save, compress a folder and train."""
    found = figures_of("kills.py", "--kills", kills, "--seed", seed)
    crashed = {"crashes": int(found.pop("ended") != 0)}
    return [
        {"what": f"kill -9: {work}, seed {seed}", "tried": figures["kills"], **crashed, **figures}
        for work, figures in (found or {"all": {"kills": 0}}).items()
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=100_000)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    rows = [fuzzed(chosen.cases, chosen.seed), *killed(chosen.kills, chosen.seed)]
    columns = (
        "what",
        "tried",
        "kinds",
        "refused",
        "read",
        "crashes",
        "hangs",
        "wrong",
        "memory",
        "old file",
        "new file",
        "runs that ended",
    )
    show(rows, columns, "Reliability")
    print(save("reliability", rows))


if __name__ == "__main__":
    main()
