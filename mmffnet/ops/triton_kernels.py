"""Triton kernels of depthwise convolutions in channels_last, alone or with batch norms.

Maps are (N, H, W, C) in memory. The kernels of all convolutions of a map lie one below the other as
(taps, C_out) in float32; output ``M * c + i`` sees channel ``c``. Sums are in float32.

The first convolution has the largest kernel, KH x KW; the others lie within it and share its
centre. For each of its taps, ``TAPS[(b * KH + i) * KW + j]`` is the row of the weights of
convolution ``b``, or -1 if that has none there.

A program works on BP pixels, whatever their rows, of BC channels. Numbers of pixels are int32,
addresses int64. Loops over numbers known at launch only are ``while`` loops: the interpreter has no
``range`` of them with NumPy 2.4.
"""

# mypy: disable-error-code="assignment"
# (tuples grow in unrolled loops)

import triton
import triton.language as tl


@triton.jit
def _zeros(COUNT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (tl.zeros((BP, BC), dtype=tl.float32),)
    return found


@triton.jit
def _rows(x, co, inside, C_OUT, COUNT: tl.constexpr):
    """Values for each channel, one tensor for each of COUNT rows of (rows, C_OUT)."""
    found = ()
    for b in tl.static_range(COUNT):
        row = tl.load(x + b * C_OUT + co, mask=inside, other=0.0).to(tl.float32)
        found = found + (row[None, :],)
    return found


@triton.jit
def _add_taps(
    zs, v, w, inside, C_OUT, i: tl.constexpr, j: tl.constexpr,
    B: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Adds what tap (i, j) gives to each convolution that has it."""
    found = ()
    for b in tl.static_range(B):
        if TAPS[(b * KH + i) * KW + j] >= 0:
            k = tl.load(w + TAPS[(b * KH + i) * KW + j] * C_OUT, mask=inside, other=0.0)
            found = found + (zs[b] + v * k[None, :],)
        else:
            found = found + (zs[b],)
    return found


@triton.jit
def _convolve(
    x, w, p, there, co, inside, H, W, C, HO, WO,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, B: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """All B convolutions at the pixels ``p`` of the outputs, in one pass over the map."""
    top = p // WO % HO * S - PH
    left = p % WO * S - PW
    corner = ((p // (WO * HO) * H + top) * W + left).to(tl.int64)
    corner = x + (corner[:, None] * C + (co // M)[None, :])
    zs = _zeros(B, BP, BC)
    for i in tl.static_range(KH):
        row = there & (top + i >= 0) & (top + i < H)
        for j in tl.static_range(KW):
            seen = row & (left + j >= 0) & (left + j < W)
            v = tl.load(corner + (i * W + j) * C, mask=seen[:, None] & inside[None, :], other=0.0)
            zs = _add_taps(zs, v.to(tl.float32), w + co, inside, C * M, i, j, B, KH, KW, TAPS)
    return zs


@triton.jit
def _convolve_one(
    x, w, bias, p, there, co, inside, H, W, C, HO, WO, HAS_BIAS: tl.constexpr,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, B: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A single convolution and its bias."""
    zs = _convolve(
        x, w, p, there, co, inside, H, W, C, HO, WO, M, S, PH, PW, B, KH, KW, TAPS, BP, BC
    )
    z = zs[0]
    if HAS_BIAS:
        z += tl.load(bias + co, mask=inside, other=0.0).to(tl.float32)[None, :]
    return z


@triton.jit
def _normal_cdf(z):
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _gelu_slope(z):
    return _normal_cdf(z) + z * tl.exp(-0.5 * z * z) * 0.3989422804014327


@triton.jit
def _sum_of_norms(zs, affine, found, co, inside, C_OUT, B: tl.constexpr):
    """What the norms make of their convolutions, summed."""
    y = tl.zeros_like(zs[0])
    for b in tl.static_range(B):
        mean = tl.load(found + b * C_OUT + co, mask=inside, other=0.0)
        inverse = tl.load(found + (B + b) * C_OUT + co, mask=inside, other=0.0)
        scale = tl.load(affine + b * C_OUT + co, mask=inside, other=0.0)
        shift = tl.load(affine + (B + b) * C_OUT + co, mask=inside, other=0.0)
        y += (zs[b] - mean[None, :]) * (scale * inverse)[None, :] + shift[None, :]
    return y


@triton.jit
def forward(
    x, w, bias, y, P, H, W, C, HO, WO, HAS_BIAS: tl.constexpr, GELU: tl.constexpr,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, B: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``y = conv(x) + bias``, or its GELU."""
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    co = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = co < C * M
    there = p < P
    z = _convolve_one(
        x, w, bias, p, there, co, inside, H, W, C, HO, WO, HAS_BIAS,
        M, S, PH, PW, B, KH, KW, TAPS, BP, BC,
    )  # fmt: skip
    if GELU:
        z *= _normal_cdf(z)
    at = p.to(tl.int64)[:, None] * (C * M) + co[None, :]
    tl.store(y + at, z.to(y.dtype.element_ty), mask=there[:, None] & inside[None, :])


@triton.jit
def gelu_gradient(
    g, x, w, bias, dz, P, H, W, C, HO, WO, HAS_BIAS: tl.constexpr,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, B: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradient of ``conv(x) + bias``, which is computed again, from that of its GELU."""
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    co = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = co < C * M
    there = p < P
    z = _convolve_one(
        x, w, bias, p, there, co, inside, H, W, C, HO, WO, HAS_BIAS,
        M, S, PH, PW, B, KH, KW, TAPS, BP, BC,
    )  # fmt: skip
    mask = there[:, None] & inside[None, :]
    at = p.to(tl.int64)[:, None] * (C * M) + co[None, :]
    v = tl.load(g + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(dz + at, (v * _gelu_slope(z)).to(dz.dtype.element_ty), mask=mask)


@triton.jit
def input_gradient(
    g, w, dx, P, H, W, C, HO, WO, BRANCH,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, B: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``dx`` of B convolutions of the map; their gradients are BRANCH numbers apart."""
    apart = tl.cast(BRANCH, tl.int64)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    ci = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = ci < C
    h = p // W % H + PH
    left = p % W + PW
    acc = tl.zeros((BP, BC), dtype=tl.float32)
    for i in tl.static_range(KH):
        ho = (h - i) // S
        row = (p < P) & (h >= i) & ((h - i) % S == 0) & (ho < HO)
        first = (p // (W * H) * HO + ho) * WO
        for j in tl.static_range(KW):
            wo = (left - j) // S
            seen = row & (left >= j) & ((left - j) % S == 0) & (wo < WO)
            at = (first + wo).to(tl.int64)[:, None] * (C * M) + (ci * M)[None, :]
            mask = seen[:, None] & inside[None, :]
            for b in tl.static_range(B):
                if TAPS[(b * KH + i) * KW + j] >= 0:
                    k = w + TAPS[(b * KH + i) * KW + j] * (C * M) + ci * M
                    for r in tl.static_range(M):
                        v = tl.load(g + b * apart + at + r, mask=mask, other=0.0).to(tl.float32)
                        acc += v * tl.load(k + r, mask=inside, other=0.0)[None, :]
    at = p.to(tl.int64)[:, None] * C + ci[None, :]
    tl.store(dx + at, acc.to(dx.dtype.element_ty), mask=(p < P)[:, None] & inside[None, :])


@triton.jit
def weight_gradient(
    g, x, dw, db, P, EACH, H, W, C, HO, WO, ROWS, HAS_BIAS: tl.constexpr,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    KW: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sums of one row of a kernel over EACH blocks of pixels: (parts, ROWS, C_out)."""
    part = tl.program_id(0)
    co = tl.program_id(1) * BC + tl.arange(0, BC)
    i = tl.program_id(2)
    inside = co < C * M
    accs = _zeros(KW, BP, BC)
    bias = tl.zeros((BP, BC), dtype=tl.float32)
    t = 0
    while t < EACH:
        p = (part * EACH + t) * BP + tl.arange(0, BP)
        there = p < P
        at = p.to(tl.int64)[:, None] * (C * M) + co[None, :]
        v = tl.load(g + at, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
        if HAS_BIAS:
            bias += v
        h = p // WO % HO * S - PH + i
        left = p % WO * S - PW
        corner = ((p // (WO * HO) * H + h) * W + left).to(tl.int64)
        corner = x + (corner[:, None] * C + (co // M)[None, :])
        row = there & (h >= 0) & (h < H)
        found = ()
        for j in tl.static_range(KW):
            seen = row & (left + j >= 0) & (left + j < W)
            u = tl.load(corner + j * C, mask=seen[:, None] & inside[None, :], other=0.0)
            found = found + (accs[j] + u.to(tl.float32) * v,)
        accs = found
        t += 1
    at = (part * ROWS + i * KW) * (C * M) + co
    for j in tl.static_range(KW):
        tl.store(dw + at + j * (C * M), tl.sum(accs[j], axis=0), mask=inside)
    if HAS_BIAS:
        tl.store(db + part * (C * M) + co, tl.sum(bias, axis=0), mask=inside & (i == 0))


@triton.jit
def statistics(
    x, w, out, P, EACH, H, W, C, HO, WO,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, B: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sums over EACH blocks of pixels, in float64: (parts, 2 * B + 1, C_out).

    They are each convolution's sum and sum of squares, from Welford's algorithm in float32, and the
    number of pixels. Such sums can be added; in float64 their differences lose nothing.
    """
    part = tl.program_id(0)
    co = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = co < C * M
    count = tl.zeros((BP, 1), dtype=tl.float32)
    means = _zeros(B, BP, BC)
    squares = _zeros(B, BP, BC)
    t = 0
    while t < EACH:
        p = (part * EACH + t) * BP + tl.arange(0, BP)
        there = p < P
        zs = _convolve(
            x, w, p, there, co, inside, H, W, C, HO, WO, M, S, PH, PW, B, KH, KW, TAPS, BP, BC
        )
        count += there[:, None].to(tl.float32)
        new_means = ()
        new_squares = ()
        for b in tl.static_range(B):
            off = tl.where(there[:, None], zs[b] - means[b], 0.0)
            mean = means[b] + off / tl.maximum(count, 1.0)
            new_means = new_means + (mean,)
            new_squares = new_squares + (squares[b] + off * (zs[b] - mean),)
        means = new_means
        squares = new_squares
        t += 1
    at = out + part * (2 * B + 1) * (C * M) + co
    n = count.to(tl.float64)
    for b in tl.static_range(B):
        mean = means[b].to(tl.float64)
        tl.store(at + b * (C * M), tl.sum(n * mean, axis=0), mask=inside)
        square = tl.sum(squares[b].to(tl.float64) + n * mean * mean, axis=0)
        tl.store(at + (B + b) * (C * M), square, mask=inside)
    total = tl.sum(tl.broadcast_to(n, (BP, BC)), axis=0)
    tl.store(at + 2 * B * (C * M), total, mask=inside)


@triton.jit
def merge(
    sums, w, affine, merged, bias, out, C_OUT, EPS: tl.constexpr,
    B: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """One kernel and its bias in place of all convolutions and their norms, and the statistics.

    ``affine`` is (2 * B, C_out), the weights of all norms, then the biases. ``out`` is
    (3 * B + 1, C_out): means, inverse deviations, unbiased variances and the number of values.
    """
    co = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = co < C_OUT
    n = tl.load(sums + 2 * B * C_OUT + co, mask=inside, other=2.0)
    tl.store(out + 3 * B * C_OUT + co, n.to(tl.float32), mask=inside)
    factors = ()
    shift = tl.zeros((BC,), dtype=tl.float64)
    for b in tl.static_range(B):
        mean = tl.load(sums + b * C_OUT + co, mask=inside, other=0.0) / n
        square = tl.load(sums + (B + b) * C_OUT + co, mask=inside, other=0.0)
        squares = tl.maximum(square - n * mean * mean, 0.0)
        inverse = 1.0 / tl.sqrt(squares / n + EPS[b])
        tl.store(out + b * C_OUT + co, mean.to(tl.float32), mask=inside)
        tl.store(out + (B + b) * C_OUT + co, inverse.to(tl.float32), mask=inside)
        tl.store(out + (2 * B + b) * C_OUT + co, (squares / (n - 1)).to(tl.float32), mask=inside)
        factor = tl.load(affine + b * C_OUT + co, mask=inside, other=0.0) * inverse
        shift += tl.load(affine + (B + b) * C_OUT + co, mask=inside, other=0.0) - factor * mean
        factors = factors + (factor.to(tl.float32),)
    tl.store(bias + co, shift.to(tl.float32), mask=inside)
    for i in tl.static_range(KH * KW):
        k = tl.zeros((BC,), dtype=tl.float32)
        for b in tl.static_range(B):
            if TAPS[b * KH * KW + i] >= 0:
                row = w + TAPS[b * KH * KW + i] * C_OUT + co
                k += factors[b] * tl.load(row, mask=inside, other=0.0)
        tl.store(merged + i * C_OUT + co, k, mask=inside)


@triton.jit
def norm_sums(
    g, x, w, affine, found, out, P, EACH, H, W, C, HO, WO, GELU: tl.constexpr,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, B: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sums of ``g``, and of ``g * (z - mean)`` of each convolution: (parts, B + 1, C_out).

    With GELU, ``g`` is the gradient of the GELU of the sum of the norms.
    """
    part = tl.program_id(0)
    co = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = co < C * M
    mean = _rows(found, co, inside, C * M, B)
    accs = _zeros(B + 1, BP, BC)
    t = 0
    while t < EACH:
        p = (part * EACH + t) * BP + tl.arange(0, BP)
        there = p < P
        zs = _convolve(
            x, w, p, there, co, inside, H, W, C, HO, WO, M, S, PH, PW, B, KH, KW, TAPS, BP, BC
        )
        at = p.to(tl.int64)[:, None] * (C * M) + co[None, :]
        v = tl.load(g + at, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
        if GELU:
            v *= _gelu_slope(_sum_of_norms(zs, affine, found, co, inside, C * M, B))
        new = (accs[0] + v,)
        for b in tl.static_range(B):
            new = new + (accs[b + 1] + v * (zs[b] - mean[b]),)
        accs = new
        t += 1
    at = out + part * (B + 1) * (C * M) + co
    for b in tl.static_range(B + 1):
        tl.store(at + b * (C * M), tl.sum(accs[b], axis=0), mask=inside)


@triton.jit
def norm_gradients(
    g, x, w, affine, found, sums, dz, P, H, W, C, HO, WO, BRANCH, GELU: tl.constexpr,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, B: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients of the B convolutions, BRANCH numbers apart.

    ``found`` is what :func:`merge` found, ``sums`` is :func:`norm_sums` over all pixels. With GELU,
    ``g`` is the gradient of the GELU of the sum of the norms.
    """
    apart = tl.cast(BRANCH, tl.int64)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    co = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = co < C * M
    there = p < P
    zs = _convolve(
        x, w, p, there, co, inside, H, W, C, HO, WO, M, S, PH, PW, B, KH, KW, TAPS, BP, BC
    )
    mask = there[:, None] & inside[None, :]
    at = p.to(tl.int64)[:, None] * (C * M) + co[None, :]
    v = tl.load(g + at, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        v *= _gelu_slope(_sum_of_norms(zs, affine, found, co, inside, C * M, B))
    scales = _rows(affine, co, inside, C * M, B)
    means = _rows(found, co, inside, C * M, B)
    inverses = _rows(found + B * (C * M), co, inside, C * M, B)
    n = tl.load(found + 3 * B * (C * M) + co, mask=inside, other=1.0)[None, :]
    totals = _rows(sums, co, inside, C * M, B + 1)
    for b in tl.static_range(B):
        slope = inverses[b] * inverses[b] * totals[b + 1] / n
        d = scales[b] * inverses[b] * (v - totals[0] / n - slope * (zs[b] - means[b]))
        tl.store(dz + b * apart + at, d.to(dz.dtype.element_ty), mask=mask)
