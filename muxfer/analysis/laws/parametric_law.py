"""The parametric law L(N, D) = E + A/N^a + B/D^b, fitted to every point at once (approach 3 of Hoffmann et al. 2022).

The fit is robust: it has a Huber loss on log residuals, so that one bad run moves little. The surface has flat valleys.
So the fit starts from a grid of (a, b), where the other three follow by linear least squares, and refines the best. It
is a second opinion beside the isoFLOP laws and has no interval of its own.
"""

import math
from dataclasses import dataclass

import numpy as np

from muxfer.analysis.laws.isoflop_points import Points
from muxfer.analysis.laws.power_law import Array

DELTA = 1e-3
"""Where the Huber loss changes from squared to absolute, in log loss."""
GRID = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.3)
"""Values of a and b that the fit may start from."""
REFINED = 8
"""How many of the best starts are refined."""
MIN_POINTS = 8
BOUNDS = (1e-3, 3.0)
"""Bounds of the exponents a and b. A fit that ends at a bound is refused."""


@dataclass(frozen=True, kw_only=True)
class ParametricLaw:
    """E, A, B, a and b; `residual` the median absolute log residual; `flops_per` = C / (N D), 6 under C = 6ND."""

    E: float
    A: float
    B: float
    a: float
    b: float
    residual: float
    flops_per: float

    @property
    def params_exponent(self) -> float:
        return self.b / (self.a + self.b)

    @property
    def tokens_exponent(self) -> float:
        return self.a / (self.a + self.b)

    def loss(self, params: Array | float, tokens: Array | float) -> Array:
        return np.asarray(self.E + self.A / np.asarray(params) ** self.a + self.B / np.asarray(tokens) ** self.b)

    def optimum(self, flops: float) -> tuple[float, float, float]:
        """Parameters, tokens and loss that are best at a budget (equation 4 of Hoffmann et al.)."""
        ratio = (self.a * self.A / (self.b * self.B)) ** (1 / (self.a + self.b))
        params = ratio * (flops / self.flops_per) ** self.params_exponent
        tokens = flops / self.flops_per / params
        return params, tokens, float(self.loss(params, tokens))

    def to_dict(self) -> dict[str, float]:
        own = {"E": self.E, "A": self.A, "B": self.B, "a": self.a, "b": self.b, "residual": self.residual}
        return own | {"params_exponent": self.params_exponent, "tokens_exponent": self.tokens_exponent}


def fit_parametric(points: Points) -> ParametricLaw | str:
    """The law of the points with a finite loss, or the reason why they have none."""
    from scipy.optimize import least_squares

    points = points[np.isfinite(points.loss)]
    if len(points) < MIN_POINTS:
        return f"{len(points)} points: five unknowns need at least {MIN_POINTS}"
    n, d, y = np.log(points.params), np.log(points.tokens), np.log(points.loss)
    n0, d0 = n.mean(), d.mean()
    n, d = n - n0, d - d0  # powers of sizes near 1: the valleys of the surface are less steep

    def model(p: Array) -> Array:
        terms = np.stack([np.full_like(n, p[0]), p[1] - p[3] * n, p[2] - p[4] * d])
        return np.asarray(np.logaddexp.reduce(terms, axis=0))

    floor = y.min() - 12  # a term of this size is as good as absent
    low = [floor, floor, floor, BOUNDS[0], BOUNDS[0]]
    high = [y.max() + 1, y.max() + 1, y.max() + 1, BOUNDS[1], BOUNDS[1]]
    best = None
    for start in _starts(n, d, points.loss, floor):
        fit = least_squares(
            lambda p: model(p) - y, np.clip(start, low, high), bounds=(low, high), loss="huber", f_scale=DELTA
        )
        if best is None or fit.cost < best.cost:
            best = fit
    assert best is not None
    e, log_a, log_b, a, b = best.x
    if min(a, b) < 1.01 * BOUNDS[0] or max(a, b) > 0.99 * BOUNDS[1] or min(log_a, log_b) < floor + 1:
        return "size and data can't be told apart: the best exponents are at the end of their range"
    return ParametricLaw(
        E=math.exp(e),
        A=math.exp(log_a + a * n0),
        B=math.exp(log_b + b * d0),
        a=float(a),
        b=float(b),
        residual=float(np.median(np.abs(best.fun))),
        flops_per=float(np.exp(np.median(np.log(points.flops / points.params / points.tokens)))),
    )


def _starts(n: Array, d: Array, loss: Array, floor: float) -> list[Array]:
    """The best of the grid: E, A and B by linear least squares of the relative residuals, none below zero."""
    from scipy.optimize import nnls

    starts = []
    for a in GRID:
        for b in GRID:
            terms = np.stack([np.ones_like(n), np.exp(-a * n), np.exp(-b * d)], axis=1) / loss[:, None]
            scales, norm = nnls(terms, np.ones_like(loss))
            starts.append((norm, [*np.maximum(np.log(np.maximum(scales, 1e-300)), floor), a, b]))
    return [np.array(start) for _, start in sorted(starts, key=lambda one: one[0])[:REFINED]]
