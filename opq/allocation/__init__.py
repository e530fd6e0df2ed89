"""From statistics of weights to rate-distortion curves, and from curves to operating points: pure mathematics.

Other folders use:

- `convex`: the same problems through cvxpy, with the user's constraints.
- `curve`: `TensorStats` -> `Curve`, the operational rate-distortion curve.
- `laplace`: closed forms for a Laplacian source.
- `operating_points`: `TensorStats`, steps and dead zones -> rates and distortions.
- `paper`: the two steps of the paper (Hu et al., AAAI 2021) in closed form.
- `rate_distortion`: curves, sensitivities and a budget -> the allocation, by one dual scalar.
- `solution`: the result of every allocation, and the certificate that it is optimal.
- `stats`: tensor -> `TensorStats`, a histogram.
"""

from __future__ import annotations

__all__ = ["convex", "curve", "laplace", "operating_points", "paper", "rate_distortion", "solution", "stats"]
