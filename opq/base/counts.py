"""The entropy of counts."""

from __future__ import annotations

import numpy as np

from opq.base.arrays import Ints


def entropy(counts: Ints) -> float:
    """Bits of all counted symbols together, `sum_k n_k log2(n / n_k)`; 0 for none. Counts (k,) are positive."""
    return float(counts @ np.log2(counts.sum() / counts)) if counts.size else 0.0
