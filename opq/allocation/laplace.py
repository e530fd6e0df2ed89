"""Closed forms for a Laplacian source: rate and error of pruning and quantizing it.

Prior: `w ~ Laplace(0, tau)`, density `exp(-|w|/tau) / (2 tau)`, `tau = mean|w|`, variance `2 tau^2`.
Letters: `beta` threshold, `s` density (fraction kept), `step` = Delta, `theta` half the dead zone in steps.
All functions take floats or arrays that broadcast. Sources: Hu et al., AAAI 2021 (arXiv 2205.11141), re-derived;
Sullivan, IEEE Trans. Information Theory 42(5), 1996.
"""

from __future__ import annotations

import math

import numpy as np

from opq.base.arrays import Floats

Like = float | Floats

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
"""(12,) each: a Gauss-Legendre rule, exact to rounding on cells of width at most 1, where it is used."""


def density(beta: Like, tau: Like) -> Floats:
    """`s = P(|w| >= beta) = exp(-beta / tau)`; for a tensor of zeros (`tau = 0`) it is 0 for every `beta > 0`."""
    beta, tau = np.broadcast_arrays(np.asarray(beta, dtype=float), np.asarray(tau, dtype=float))
    ratio = np.divide(beta, tau, out=np.where(beta > 0, np.inf, 0.0), where=tau > 0)
    return np.asarray(np.exp(-ratio))


def threshold(s: Like, tau: Like) -> Floats:
    """`beta = -tau ln s`, the inverse of `density`."""
    return np.asarray(-np.asarray(tau, dtype=float) * np.log(s))


def pruning_error(s: Like, tau: Like) -> Floats:
    """`E(s) = tau^2 [2 - s (ln^2 s - 2 ln s + 2)]`: mean squared error of pruning to density s, per weight.

    Convex and decreasing on (0, 1], with `E'(s) = -beta^2`; `E(0) = 2 tau^2`, `E(1) = 0`.
    """
    s = np.asarray(s, dtype=float)
    log = np.log(np.where(s > 0, s, 1.0))
    kept = np.where(s > 0, s * (log * log - 2 * log + 2), 0.0)
    return np.asarray(np.square(tau) * np.maximum(2 - kept, 0.0))


def quantizer(step: Like, beta: Like, tau: Like, *, rounding: Like = 0.5) -> tuple[Floats, Floats, Floats]:
    """Rate, distortion and density of `q = sign(w) max(1, floor(|w|/step + 1 - rounding))` where `|w| >= beta`, else 0.

    The magnitude is exponential, so beyond the first kept code the codes are geometric:

        R = H(q) = - P_0 log2 P_0 + sum_k P_k (1 - log2 P_k)     bits per weight
        D = E (w - step q)^2                                     mean squared error

    With `beta = theta step` and `rounding = theta` it is the uniform threshold quantizer with dead zone.
    """
    d, b, r, unit = np.broadcast_arrays(
        *(np.asarray(v, dtype=float) for v in (np.divide(step, tau), np.divide(beta, tau), rounding, tau))
    )
    first = np.maximum(np.floor(b / d + 1 - r), 1.0)
    end = (first + r) * d
    kept, tail, ratio = np.exp(-b), np.exp(-end), np.exp(-d)
    geometric = -np.log2(-np.expm1(-d)) + d / math.log(2) * ratio / -np.expm1(-d)
    rate = _information(-np.expm1(-b)) + _information(kept - tail) + kept + _information(tail) + tail * geometric
    dead = 2 - kept * _square(b)
    partial = kept * _square(b - first * d) - tail * _square(r * d)
    distortion = dead + partial + tail * _cell(d, r)
    return rate, unit * unit * np.maximum(distortion, 0.0), kept


def _information(p: Floats) -> Floats:
    """`-p log2 p`, 0 where p is 0."""
    return np.asarray(-p * np.log2(np.where(p > 0, p, 1.0)))


def _square(x: Floats) -> Floats:
    """`x^2 + 2 x + 2 = e^x integral from x of y^2 e^-y`."""
    return x * x + 2 * x + 2


def _cell(d: Floats, r: Floats) -> Floats:
    """Mean squared error of an exponential in cells of width d, each decoded as its lower edge plus `(1 - r) d`."""
    closed = (_square(-(1 - r) * d) - np.exp(-d) * _square(r * d)) / -np.expm1(-d)
    x = (_NODES + 1) / 2 * np.minimum(d, 1.0)[..., None]  # the closed form cancels for small d
    square = np.square(x - ((1 - r) * d)[..., None]) * np.exp(-x)
    small = np.sum(square * _WEIGHTS, axis=-1) * np.minimum(d, 1.0) / 2 / -np.expm1(-np.minimum(d, 1.0))
    return np.asarray(np.where(d > 1, closed, small))


def best_quantizer(rate: float) -> tuple[float, float, float]:
    """The best uniform threshold quantizer with dead zone at a rate, for `tau = 1`.

        min over theta  of  D(step, theta)   subject to   R(step, theta) = rate

    Args:
        rate: bits per weight, in (0, 12].

    Returns:
        step, theta (half the dead zone in steps), distortion; scale step by tau and distortion by tau^2.
    """
    from scipy.optimize import brentq, minimize_scalar

    def step(theta: float) -> float:
        def excess(log_step: float) -> float:
            d = math.exp(log_step)
            return float(quantizer(d, theta * d, 1.0, rounding=theta)[0]) - rate

        return math.exp(brentq(excess, -12.0, 7.0, xtol=1e-13))

    def distortion(theta: float) -> float:
        d = step(theta)
        return float(quantizer(d, theta * d, 1.0, rounding=theta)[1])

    theta = float(minimize_scalar(distortion, bounds=(0.5, 1.0), method="bounded", options={"xatol": 1e-6}).x)
    return step(theta), theta, distortion(theta)
