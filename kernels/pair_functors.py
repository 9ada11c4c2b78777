"""Functors of the pair engine: point functions of scores as device code.

They take a tile of scores, the parameters p of the rows and q of the columns (None where there are none) and four constants, and give the
value and its derivatives with respect to the score, p and q. csrc/pair.h says which formula is meant.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .functors import larger, log1p, sign


@triton.jit
def _affine(s, p, q, c):
    x = c[0] * s + c[1]
    if p is not None:
        x += p
    if q is not None:
        x += q
    return x


@triton.jit
def _logistic(x):
    """log(1 + exp(x)) and its derivative from one exponential."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, 0.0, x) + log1p(e), tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def linear(s, p, q, c):
    return _affine(s, p, q, c), c[0], 1.0, 1.0


@triton.jit
def relu(s, p, q, c):
    x = _affine(s, p, q, c)
    slope = tl.where(x > 0, 1.0, tl.zeros_like(x))
    return larger(x, tl.zeros_like(x)), c[0] * slope, slope, slope


@triton.jit
def square(s, p, q, c):
    x = _affine(s, p, q, c)
    x = larger(x, tl.zeros_like(x))
    return x * x, c[0] * (x + x), x + x, x + x


@triton.jit
def softplus(s, p, q, c):
    value, slope = _logistic(_affine(s, p, q, c))
    return value, c[0] * slope, slope, slope


@triton.jit
def circle(s, p, q, c):
    weight = c[0] * s + c[1]
    slope = c[2] * larger(weight, tl.zeros_like(s))
    return slope * (s - c[3]), slope, 0.0, 0.0


@triton.jit
def lifted(s, p, q, c):
    none = tl.zeros((1, 1), s.dtype)
    if p is None:
        p = none
    if q is None:
        q = none
    first = p < q
    top = tl.where(first, q, p)
    bottom = tl.where(first, p, q)
    empty = top == float("-inf")
    e = tl.exp(tl.where(empty, 0.0, bottom - top))  # the difference of two empty sets would be NaN
    unit = 1.0 / (1.0 + e)
    x = tl.where(empty, 0.0, top + log1p(e)) + c[0] * s + c[1]
    x = larger(x, tl.zeros_like(x))
    major = tl.where(empty, 0.0, unit)
    minor = tl.where(empty, 0.0, e * unit)
    return 0.5 * x * x, c[0] * x, x * tl.where(first, minor, major), x * tl.where(first, major, minor)


@triton.jit
def tuplet(s, p, q, c):
    inside = tl.abs(s) < 1.0
    safe = tl.where(inside, s, 0.0)
    sine = tl.sqrt((1.0 - safe) * (1.0 + safe))
    turned = tl.where(inside, c[2] * safe + c[3] * sine, sign(s) * c[2])
    x = -c[0] * turned
    if p is not None:
        x += p
    if q is not None:
        x += q
    value, slope = _logistic(x)
    return value, -slope * c[0] * tl.where(inside, c[2] - c[3] * safe / sine, 0.0), slope, slope


# The same names as in csrc/pair.h, and whether the functor is a hinge
PAIR = {
    "linear": (linear, False),
    "relu": (relu, True),
    "square": (square, True),
    "softplus": (softplus, False),
    "circle": (circle, False),
    "lifted": (lifted, True),
    "tuplet": (tuplet, False),
}
