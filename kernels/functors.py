"""Point functions of the losses as device code, and the small vocabulary they are written in.

A functor takes a tile of log-probabilities `l` and the loss's parameters `p` (a tuple of four scalars of the same type) and gives
the value and its derivative with respect to `l`; what a kernel does not use, the compiler drops. Only functions that exist
both compiled and in Triton's interpreter are used, so nothing here comes from libdevice.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    a = tl.abs(x)
    square = x * x
    # Near 0 the exponential form cancels: there the rational approximation of Cephes, good to double precision.
    over = ((-9.64399179425052238628e-1 * square - 9.92877231001918586564e1) * square) - 1.61468768441708447952e3
    under = ((square + 1.12811678491632931402e2) * square + 2.23548839060100448583e3) * square + 4.84406305325125486048e3
    far = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
    return tl.where(a < 0.625, x + x * square * (over / under), tl.where(x < 0, -far, far))


@triton.jit
def log1p(x):
    # The rounding error of 1 + x is undone by the quotient (Goldberg 1991, theorem 4).
    sum = 1.0 + x
    inexact = sum != 1.0
    return tl.where(inexact, tl.log(sum) * (x / tl.where(inexact, sum - 1.0, 1.0)), x)


@triton.jit
def expm1(x):
    half = tanh(0.5 * x)
    return 2.0 * half / (1.0 - half)


@triton.jit
def log1mexp(x):
    """log(1 - exp(x)) for x <= 0 without cancellation: Maechler 2012, equation 7."""
    near = x > -0.6931471805599453
    return tl.where(near, tl.log(-expm1(tl.where(near, x, -1.0))), log1p(-tl.exp(tl.where(near, -1.0, x))))


@triton.jit
def cross_entropy(l, p):
    return -l, tl.full(l.shape, -1.0, l.dtype)


@triton.jit
def nll(l, p):
    return -l, tl.full(l.shape, -1.0, l.dtype)


@triton.jit
def softmax_focal(l, p):
    gamma = p[0]
    certain = l > -1e-30
    log_prob = tl.where(certain, -1.0, tl.maximum(l, -1e4))
    factor = tl.where(gamma == 0.0, 1.0, tl.where(certain, 0.0, tl.exp(gamma * log1mexp(log_prob))))
    ratio = tl.where(certain, -1.0, tl.exp(log_prob) * log_prob / -expm1(log_prob))
    return tl.where(certain, 0.0, -factor * l), factor * (gamma * ratio - 1.0)


# The same names as the registry: functor, and whether `l` is the log-softmax of the input (else the input itself).
FUNCTORS = {
    "cross_entropy": (cross_entropy, True),
    "nll": (nll, False),
    "softmax_focal": (softmax_focal, True),
}
