"""Point functions of the losses as device code, and the small vocabulary they are written in.

A functor of the row engine takes a tile of log-probabilities `l` and the loss's parameters `p` (a tuple of four scalars of the same
type) and gives the value and its derivative with respect to `l`. A functor of the element-wise engine takes blocks of the input `x`,
the target `t` and the third operand `z` (1 where a call has none) and gives the value and its derivatives with respect to each. A functor
of the overlap engine takes `x` and `t` and gives the probability, its derivative, and a loss with its derivatives with respect to each.
csrc/ENGINE.h says which formula is meant and why. What a kernel does not use, the compiler drops. Only functions that exist both compiled
and in Triton's interpreter are used, so nothing here comes from libdevice.

A literal is as precise as the tensor that it meets in arithmetic, but tl.where takes it for a float32: there it must be exact as one.
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
    inexact = (sum != 1.0) & (sum != float("inf"))
    return tl.where(inexact, tl.log(sum) * (x / tl.where(inexact, sum - 1.0, 1.0)), x)


@triton.jit
def symlog(x):
    size = log1p(tl.abs(x))
    return tl.where(x < 0, -size, size)


@triton.jit
def expm1(x):
    near = tl.abs(x) < 1.0
    half = tanh(0.5 * tl.where(near, x, 0.0))
    return tl.where(near, 2.0 * half / (1.0 - half), tl.exp(x) - 1.0)


@triton.jit
def log1mexp(x):
    """log(1 - exp(x)) for x <= 0 without cancellation: Maechler 2012, equation 7."""
    near = x > -0.6931471805599453
    return tl.where(near, tl.log(-expm1(tl.where(near, x, -1.0))), log1p(-tl.exp(tl.where(near, -1.0, x))))


@triton.jit
def sign(x):
    """-1, 0 or 1; 0 for NaN."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, tl.zeros_like(x)))


@triton.jit
def larger(a, b):
    """The larger of the two; a when either is NaN."""
    return tl.where(b > a, b, a)


@triton.jit
def atan(x):
    """The angle for |x| <= 1: the rational approximation of Cephes, good to double precision."""
    a = tl.abs(x)
    far = a > 0.66
    r = tl.where(far, (a - 1.0) / (a + 1.0), a)
    z = r * r
    over = ((-8.750608600031904122785e-1 * z - 1.615753718733365076637e1) * z - 7.500855792314704667340e1) * z - 1.228866684490136173410e2
    over = over * z - 6.485021904942025371773e1
    under = ((z + 2.485846490142306297962e1) * z + 1.650270098316988542046e2) * z + 4.328810604912902668951e2
    under = (under * z + 4.853903996359136964868e2) * z + 1.945506571482613964425e2
    near = r + r * z * (over / under)
    angle = tl.where(far, 0.7853981633974483096157 + near, near)
    return tl.where(x < 0, -angle, angle)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow."""
    return tl.where(x < 0, 0.0, x) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) without overflow, and small ones to full relative accuracy."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def chances(x):
    """sigmoid(x) and sigmoid(-x) from one exponential."""
    e = tl.exp(-tl.abs(x))
    unit = 1.0 / (1.0 + e)
    return tl.where(x < 0, e, 1.0) * unit, tl.where(x < 0, 1.0, e) * unit


# The row engine


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


# The element-wise engine


@triton.jit
def of_difference(value, slope):
    """f(x - t), from f and its derivative."""
    return value, slope, -slope, tl.zeros_like(value)


@triton.jit
def mse(x, t, z, p):
    e = x - t
    return of_difference(e * e, e + e)


@triton.jit
def l1(x, t, z, p):
    e = x - t
    return of_difference(tl.abs(e), sign(e))


@triton.jit
def smooth_l1(x, t, z, p):
    beta = p[0]
    e = x - t
    a = tl.abs(e)
    quadratic = a < beta
    return of_difference(tl.where(quadratic, 0.5 * e * e / beta, a - 0.5 * beta), tl.where(quadratic, e / beta, sign(e)))


@triton.jit
def huber(x, t, z, p):
    delta = p[0]
    e = x - t
    a = tl.abs(e)
    quadratic = a < delta
    return of_difference(tl.where(quadratic, 0.5 * e * e, delta * (a - 0.5 * delta)), tl.where(quadratic, e, delta * sign(e)))


@triton.jit
def log_cosh(x, t, z, p):
    e = x - t
    a = tl.abs(e)
    near = a < 1.0
    m = expm1(-tl.where(near, a, a + a))
    value = log1p(tl.where(near, 0.5 * m * m / (1.0 + m), 1.0 + m))
    return of_difference(tl.where(near, value, (a - 0.6931471805599453) + value), tanh(e))


@triton.jit
def quantile(x, t, z, p):
    u = t - x
    slope = 0.5 * sign(u) + (p[0] * z - 0.5)
    return u * slope, -slope, slope, tl.zeros_like(u)


@triton.jit
def mape(x, t, z, p):
    eps = p[0]
    e = x - t
    size = tl.abs(t)
    small = size < eps
    unit = p[1] / tl.where(small, eps, size)
    value = tl.abs(e) * unit
    slope = sign(e) * unit
    return value, slope, -slope - tl.where(small, 0.0, value * sign(t) / size), tl.zeros_like(e)


@triton.jit
def smape(x, t, z, p):
    eps = p[0]
    e = x - t
    size = 0.5 * (tl.abs(x) + tl.abs(t))
    small = size < eps
    unit = p[1] / tl.where(small, eps, size)
    value = tl.abs(e) * unit
    slope = sign(e) * unit
    shrink = tl.where(small, 0.0, 0.5 * value / size)
    return value, slope - shrink * sign(x), -slope - shrink * sign(t), tl.zeros_like(e)


@triton.jit
def msle(x, t, z, p):
    e = log1p(x) - log1p(t)
    return e * e, (e + e) / (1.0 + x), -(e + e) / (1.0 + t), tl.zeros_like(e)


@triton.jit
def charbonnier(x, t, z, p):
    e = x - t
    value = tl.sqrt(e * e + p[0] * p[0])
    return of_difference(value, e / value)


@triton.jit
def cauchy(x, t, z, p):
    u = (x - t) / p[0]
    size = tl.abs(u)
    value = tl.where(size > 1e9, 2.0 * tl.log(size) - 0.6931471805599453, log1p(0.5 * u * u))
    return of_difference(value, 1.0 / (p[0] * (1.0 / u + 0.5 * u)))


@triton.jit
def wing(x, t, z, p):
    width = p[0]
    eps = p[1]
    e = x - t
    a = tl.abs(e)
    curved = a < width
    shift = width - width * log1p(width / eps)
    return of_difference(
        tl.where(curved, width * log1p(a / eps), a - shift), sign(e) * tl.where(curved, width / (eps + a), 1.0)
    )


@triton.jit
def poisson_nll(x, t, z, p):
    if p[0] != 0.0:  # log_input
        rate = tl.exp(x)
        value = rate - t * x
        d_input = rate - t
        d_target = -x
    else:
        shifted = x + p[2]
        level = tl.log(shifted)
        value = x - t * level
        d_input = 1.0 - t / shifted
        d_target = -level
    if p[1] != 0.0:  # full
        many = t > 1.0
        count = tl.where(many, t, 1.0)
        log_count = tl.log(count)
        value += tl.where(many, count * log_count - count + 0.5 * (log_count + 1.8378770664093453), 0.0)
        d_target += tl.where(many, log_count + 0.5 / count, 0.0)
    return value, d_input, d_target, tl.zeros_like(x)


@triton.jit
def gaussian_nll(x, t, z, p):
    e = x - t
    variance = larger(z, p[1])
    unit = e / variance
    constant = 0.9189385332046727 * (p[0] != 0.0).to(x.dtype)
    return 0.5 * (tl.log(variance) + e * unit) + constant, unit, -unit, 0.5 * (1.0 / variance - unit * unit)


@triton.jit
def kl_div(x, t, z, p):
    if p[0] != 0.0:  # log_target
        share = tl.exp(t)
        value = share * (t - x)
        d_input = -share
        d_target = value + share
    else:
        zero = t == 0.0
        level = tl.log(tl.where(zero, 1.0, t))
        value = t * level - t * x
        d_input = -t
        d_target = level - x + tl.where(zero, 0.0, 1.0)
    return value, d_input, d_target, tl.zeros_like(x)


@triton.jit
def hinge_embedding(x, t, z, p):
    gap = p[0] - x
    near = tl.where(t == -1.0, 0.0, 1.0)
    far = tl.where(t == 1.0, 0.0, 1.0)
    satisfied = gap < 0
    value = near * x + far * tl.where(satisfied, 0.0, gap)
    return value, (near - tl.where(satisfied, 0.0, far)).to(x.dtype), tl.zeros_like(x), tl.zeros_like(x)


@triton.jit
def soft_margin(x, t, z, p):
    s = -t * x
    chance = sigmoid(s)
    return softplus(s), -t * chance, -x * chance, tl.zeros_like(x)


@triton.jit
def hinge(x, t, z, p):
    gap = 1.0 - t * x
    satisfied = gap < 0
    return tl.where(satisfied, 0.0, gap), tl.where(satisfied, 0.0, -t), tl.where(satisfied, 0.0, -x), tl.zeros_like(x)


@triton.jit
def squared_hinge(x, t, z, p):
    gap = 1.0 - t * x
    kept = tl.where(gap < 0, 0.0, gap)
    return kept * kept, -2.0 * kept * t, -2.0 * kept * x, tl.zeros_like(x)


@triton.jit
def margin_ranking(x, t, z, p):
    e = x - t
    gap = p[0] - z * e
    satisfied = gap < 0
    slope = tl.where(satisfied, 0.0, z)
    return tl.where(satisfied, 0.0, gap), -slope, slope, tl.where(satisfied, 0.0, -e)


@triton.jit
def binary_cross_entropy(x, t, z, p):
    yes = tl.log(x)
    no = log1p(-x)
    spread = larger((1.0 - x) * x, tl.full((), 1e-12, tl.float32))  # rounded for doubles too, as in torch
    return (t - 1.0) * larger(no, -100.0) - t * larger(yes, -100.0), (x - t) / spread, no - yes, tl.zeros_like(x)


@triton.jit
def binary_cross_entropy_with_logits(x, t, z, p):
    down = softplus(-x)
    raised = 1.0 + (z - 1.0) * t
    return (1.0 - t) * x + raised * down, (1.0 - t) - raised * sigmoid(-x), (z - 1.0) * down - x, t * down


@triton.jit
def sigmoid_focal(x, t, z, p):
    alpha = p[0] * z
    gamma = p[1]
    weighted = p[0] >= 0.0
    balanced = p[3] == 0.0
    up = softplus(x)  # -log(1 - chance)
    down = softplus(-x)  # -log chance
    chance = tl.exp(-down)
    rest = tl.exp(-up)
    ce = (1.0 - t) * up + t * down
    weight = tl.where(weighted, tl.where(balanced, alpha * t + (1.0 - alpha) * (1.0 - t), alpha), 1.0)
    positive = t == 1.0
    negative = t == 0.0
    miss = rest * t + chance * (1.0 - t)
    log_miss = tl.where(positive, -up, tl.where(negative, -down, tl.log(miss)))
    factor = tl.where(gamma == 0.0, 1.0, tl.exp(gamma * log_miss))
    # Labels have ratios without a quotient, and gamma = 0 has no use for them: a tiny miss would make them infinite.
    soft = (t != 1.0) & (t != 0.0)
    least: tl.constexpr = 1e-300 if x.dtype == tl.float64 else 1e-37  # whose reciprocal is finite
    quotient = 1.0 / tl.where(soft, tl.where(gamma == 0.0, 1.0, tl.where(miss < least, least, miss)), 1.0)
    ratio = tl.where(positive, -chance, tl.where(soft, (1.0 - t - t) * chance * rest * quotient, rest))
    t_ratio = tl.where(soft, (rest - chance) * quotient, 0.0)  # not for labels: rest may have underflowed
    if p[2] > 0.0:  # threshold
        hard = miss > 1.0 - p[2]
        factor = tl.where(hard, 1.0, factor * tl.exp(-gamma * tl.log(p[2])))
        ratio = tl.where(hard, 0.0, ratio)
        t_ratio = tl.where(hard, 0.0, t_ratio)
    d_input = weight * factor * (((1.0 - t) * chance - t * rest) + gamma * ratio * ce)
    d_weight = tl.where(weighted & balanced, alpha + alpha - 1.0, 0.0)
    d_target = factor * (d_weight * ce + weight * (down - up) + weight * gamma * t_ratio * ce)
    d_alpha = tl.where(weighted, p[0] * factor * ce * tl.where(balanced, t + t - 1.0, 1.0), 0.0)
    return weight * factor * ce, d_input, d_target, d_alpha


@triton.jit
def brier(x, t, z, p):
    if p[0] != 0.0:  # from_logits
        chance = sigmoid(x)
        change = chance * sigmoid(-x)
    else:
        chance = x
        change = tl.full(x.shape, 1.0, x.dtype)
    e = chance - t
    return e * e, (e + e) * change, -(e + e), tl.zeros_like(x)


@triton.jit
def wasserstein(x, t, z, p):
    side = 2.0 * p[0] * (1.0 - t) - 1.0
    return side * x, side, -2.0 * p[0] * x, tl.zeros_like(x)


@triton.jit
def gaussian_kl(x, t, z, p):
    growth = expm1(t)
    value = 0.5 * (x * x + (growth - t))
    free = value < tl.where(p[0] > 0.0, p[0], -1.0)
    return tl.where(free, p[0], value), tl.where(free, 0.0, x), tl.where(free, 0.0, 0.5 * growth), tl.zeros_like(x)


@triton.jit
def capsule_margin(x, t, z, p):
    missing = larger(p[0] - x, tl.zeros_like(x))
    extra = larger(x - p[1], tl.zeros_like(x))
    absent = p[2] * (1.0 - t)
    present = missing * missing
    spurious = extra * extra
    return t * present + absent * spurious, 2.0 * (absent * extra - t * missing), present - p[2] * spurious, tl.zeros_like(x)


# The same names as in csrc/elementwise.h and the registry
ELEMENTWISE = {
    "mse": mse,
    "l1": l1,
    "smooth_l1": smooth_l1,
    "huber": huber,
    "log_cosh": log_cosh,
    "quantile": quantile,
    "mape": mape,
    "smape": smape,
    "msle": msle,
    "charbonnier": charbonnier,
    "cauchy": cauchy,
    "wing": wing,
    "poisson_nll": poisson_nll,
    "gaussian_nll": gaussian_nll,
    "kl_div": kl_div,
    "hinge_embedding": hinge_embedding,
    "soft_margin": soft_margin,
    "hinge": hinge,
    "squared_hinge": squared_hinge,
    "margin_ranking": margin_ranking,
    "binary_cross_entropy": binary_cross_entropy,
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
    "sigmoid_focal": sigmoid_focal,
    "brier": brier,
    "wasserstein": wasserstein,
    "gaussian_kl": gaussian_kl,
    "capsule_margin": capsule_margin,
}


# The overlap engine


@triton.jit
def _without_loss(prob, slope):
    return prob, slope, tl.zeros_like(prob), tl.zeros_like(prob), tl.zeros_like(prob)


@triton.jit
def _probability(x, t, p):
    return _without_loss(x, tl.full(x.shape, 1.0, x.dtype))


@triton.jit
def _sigmoid_probability(x, t, p):
    chance, rest = chances(x)
    return _without_loss(chance, chance * rest)


@triton.jit
def _sigmoid_cross_entropy(x, t, p):
    chance, rest = chances(x)
    value, d_input, d_target, _ = binary_cross_entropy_with_logits(x, t, 1.0, p)
    return chance, chance * rest, value, d_input, d_target


@triton.jit
def _sigmoid_focal(x, t, p):
    chance, rest = chances(x)
    value, d_input, d_target, _ = sigmoid_focal(x, t, 1.0, p)
    return chance, chance * rest, value, d_input, d_target


@triton.jit
def _amplified(x, t, p):
    scale = p[0]
    chance, rest = chances(scale * (x - 0.5))
    return _without_loss(chance, scale * chance * rest)


@triton.jit
def _amplified_sigmoid(x, t, p):
    scale = p[0]
    chance, rest = chances(x)
    loud, quiet = chances(scale * (chance - 0.5))
    return _without_loss(loud, scale * loud * quiet * chance * rest)


# The same names as in csrc/overlap.h: functor, whether it normalises over the classes, and whether it has a pointwise loss. The functor
# of a softmax is that loss, t times a functor of the row engine.
OVERLAP = {
    "none": (_probability, False, False),
    "sigmoid": (_sigmoid_probability, False, False),
    "softmax": (None, True, False),
    "sigmoid_cross_entropy": (_sigmoid_cross_entropy, False, True),
    "softmax_cross_entropy": (cross_entropy, True, True),
    "sigmoid_focal": (_sigmoid_focal, False, True),
    "softmax_focal": (softmax_focal, True, True),
    "amplified": (_amplified, False, False),
    "amplified_sigmoid": (_amplified_sigmoid, False, False),
}


# Errors of the sort engine: of a score and its label, 1 for foreground and 0 for background; the value and its derivative to the score.


@triton.jit
def hinge_error(x, foreground):
    against = 1.0 - foreground - foreground
    return 1.0 + against * x, against


@triton.jit
def distance(p, foreground):
    above = p - foreground
    return tl.abs(above), sign(above)


# The same names as in csrc/sort.h, and whether the score is the softmax over the channels
SORT = {"hinge": (hinge_error, False), "softmax": (distance, True), "probability": (distance, False)}
