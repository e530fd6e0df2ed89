"""Where things lie in a checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
HELPERS = TESTS / "helpers"
GOLDEN = TESTS / "golden"
DOCS = ROOT / "docs"
SHARED = ROOT.parent / "shared"
"""Real data and weights, which a checkout may have beside it."""
