"""Triton kernels of depthwise convolutions in channels_last, and of two with batch norms, summed.

Maps are (N, H, W, C) in memory, weights (C_out, height, width); output ``M * c + i`` sees channel
``c``. All sums are float32. A small kernel shares the centre of the large one.

Loops over rows are ``while`` loops: the interpreter has no ``range`` of a number with NumPy 2.4.
"""

import triton
import triton.language as tl


@triton.jit
def _position(index, WIDTH_BLOCKS, C_OUT, M: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr):
    """A block of columns, of output channels and of the channels that they see."""
    wo = (index % WIDTH_BLOCKS) * BW + tl.arange(0, BW)
    co = tl.program_id(1) * BC + tl.arange(0, BC)
    return wo, co, co // M, co < C_OUT


@triton.jit
def _convolve(
    x, w, w2, row, wo, there, co, ci, inside, H, W, C, HO,
    S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, K2: tl.constexpr,
    BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Both convolutions at a row; the second one, of K2 x K2 (0 for none), in the same pass."""
    n = row // HO
    ho = row % HO
    acc = tl.zeros((BW, BC), dtype=tl.float32)
    acc2 = tl.zeros((BW, BC), dtype=tl.float32)
    for i in tl.static_range(KH):
        h = ho * S - PH + i
        start = (n * H + h) * W
        for j in tl.static_range(KW):
            col = wo * S - PW + j
            seen = there & (h >= 0) & (h < H) & (col >= 0) & (col < W)
            at = (start + col)[:, None] * C + ci[None, :]
            v = tl.load(x + at, mask=seen[:, None] & inside[None, :], other=0.0).to(tl.float32)
            k = tl.load(w + co * (KH * KW) + (i * KW + j), mask=inside, other=0.0)
            acc += v * k.to(tl.float32)[None, :]
            if K2 > 0:
                i2 = i - (KH - K2) // 2
                j2 = j - (KW - K2) // 2
                if (i2 >= 0) & (i2 < K2) & (j2 >= 0) & (j2 < K2):
                    k2 = tl.load(w2 + co * (K2 * K2) + (i2 * K2 + j2), mask=inside, other=0.0)
                    acc2 += v * k2.to(tl.float32)[None, :]
    return acc, acc2


@triton.jit
def forward(
    x, w, bias, y, H, W, C, HO, WO, C_OUT, WIDTH_BLOCKS,
    HAS_BIAS: tl.constexpr, M: tl.constexpr,
    S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``y = conv(x) + bias``; a program for a piece of a row."""
    index = tl.program_id(0)
    wo, co, ci, inside = _position(index, WIDTH_BLOCKS, C_OUT, M, BW, BC)
    row = (index // WIDTH_BLOCKS).to(tl.int64)
    acc, _ = _convolve(
        x, w, w, row, wo, wo < WO, co, ci, inside, H, W, C, HO,
        S, PH, PW, KH, KW, 0, BW, BC,
    )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias + co, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = (row * WO + wo)[:, None] * C_OUT + co[None, :]
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=(wo < WO)[:, None] & inside[None, :])


@triton.jit
def input_gradient(
    g, w, g2, w2, dx, H, W, C, HO, WO, WIDTH_BLOCKS,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, K2: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``dx`` of one convolution, or of two (K2 > 0); a program for a piece of a row of ``dx``."""
    index = tl.program_id(0)
    wi, ci, _, inside = _position(index, WIDTH_BLOCKS, C, 1, BW, BC)
    row = (index // WIDTH_BLOCKS).to(tl.int64)
    n = row // H
    h = row % H
    acc = tl.zeros((BW, BC), dtype=tl.float32)
    for i in tl.static_range(KH):
        top = h + PH - i
        ho = top // S
        for j in tl.static_range(KW):
            left = wi + PW - j
            wo = left // S
            met = (top >= 0) & (top % S == 0) & (ho < HO)
            met = met & (left >= 0) & (left % S == 0) & (wo < WO)
            mask = met[:, None] & inside[None, :]
            at = ((n * HO + ho) * WO + wo)[:, None]
            for r in tl.static_range(M):
                co = ci * M + r
                v = tl.load(g + at * (C * M) + co[None, :], mask=mask, other=0.0)
                k = tl.load(w + co * (KH * KW) + (i * KW + j), mask=inside, other=0.0)
                acc += v.to(tl.float32) * k.to(tl.float32)[None, :]
                if K2 > 0:
                    i2 = i - (KH - K2) // 2
                    j2 = j - (KW - K2) // 2
                    if (i2 >= 0) & (i2 < K2) & (j2 >= 0) & (j2 < K2):
                        v2 = tl.load(g2 + at * (C * M) + co[None, :], mask=mask, other=0.0)
                        k2 = tl.load(w2 + co * (K2 * K2) + (i2 * K2 + j2), mask=inside, other=0.0)
                        acc += v2.to(tl.float32) * k2.to(tl.float32)[None, :]
    at = (row * W + wi)[:, None] * C + ci[None, :]
    tl.store(dx + at, acc.to(dx.dtype.element_ty), mask=(wi < W)[:, None] & inside[None, :])


@triton.jit
def weight_gradient(
    g, x, dw, db, ROWS, ROWS_EACH, H, W, C, HO, WO, C_OUT, WIDTH_BLOCKS,
    HAS_BIAS: tl.constexpr, M: tl.constexpr,
    S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    TAPS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Partial sums of a row of the kernel over some rows of the map: (parts, height, width, C_out).

    TAPS is the width of the kernel, rounded up to a power of 2.
    """
    part = tl.program_id(0)
    i = tl.program_id(2)
    j = tl.arange(0, TAPS)
    acc = tl.zeros((TAPS, BW, BC), dtype=tl.float32)
    acc_bias = tl.zeros((BW, BC), dtype=tl.float32)
    _, co, ci, inside = _position(0, 1, C_OUT, M, BW, BC)
    t = 0
    while t < ROWS_EACH * WIDTH_BLOCKS:
        row = (part * ROWS_EACH + t // WIDTH_BLOCKS).to(tl.int64)
        wo = (t % WIDTH_BLOCKS) * BW + tl.arange(0, BW)
        h = (row % HO) * S - PH + i
        there = (wo < WO) & (row < ROWS)
        at = (row * WO + wo)[:, None] * C_OUT + co[None, :]
        v = tl.load(g + at, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
        if HAS_BIAS:
            acc_bias += v
        col = (wo * S - PW)[None, :] + j[:, None]
        seen = there[None, :] & (h >= 0) & (h < H) & (col >= 0) & (col < W)
        at = ((row // HO * H + h) * W + col)[:, :, None] * C + ci[None, None, :]
        u = tl.load(x + at, mask=seen[:, :, None] & inside[None, None, :], other=0.0)
        acc += u.to(tl.float32) * v[None, :, :]
        t += 1
    at = ((part * KH + i) * KW + j)[:, None] * C_OUT + co[None, :]
    tl.store(dw + at, tl.sum(acc, axis=1), mask=(j < KW)[:, None] & inside[None, :])
    if HAS_BIAS:
        tl.store(db + part * C_OUT + co, tl.sum(acc_bias, axis=0), mask=inside & (i == 0))


@triton.jit
def _welford(z, there, count, mean, m2):
    """Takes one more value a lane into its count, mean and sum of squared differences."""
    delta = z - mean
    mean += tl.where(there, delta / tl.maximum(count, 1.0), 0.0)
    m2 += tl.where(there, delta * (z - mean), 0.0)
    return mean, m2


@triton.jit
def _join(count, mean, m2):
    """The same for all lanes together."""
    total = tl.maximum(tl.sum(count, axis=0), 1.0)
    joined = tl.sum(count * mean, axis=0) / total
    off = mean - joined[None, :]
    return joined, tl.sum(m2 + count * off * off, axis=0)


@triton.jit
def pair_statistics(
    x, w, w2, out, counts, ROWS, ROWS_EACH, H, W, C, HO, WO, C_OUT, WIDTH_BLOCKS,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, K2: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Means and sums of squared differences of both convolutions over some rows, by Welford.

    ``out`` is (parts, 4, C_out): mean and squares of the large one, then of the small one.
    """
    part = tl.program_id(0)
    _, co, ci, inside = _position(0, 1, C_OUT, M, BW, BC)
    count = tl.zeros((BW, 1), dtype=tl.float32)
    mean = tl.zeros((BW, BC), dtype=tl.float32)
    m2 = tl.zeros((BW, BC), dtype=tl.float32)
    mean2 = tl.zeros((BW, BC), dtype=tl.float32)
    m22 = tl.zeros((BW, BC), dtype=tl.float32)
    t = 0
    while t < ROWS_EACH * WIDTH_BLOCKS:
        row = (part * ROWS_EACH + t // WIDTH_BLOCKS).to(tl.int64)
        wo = (t % WIDTH_BLOCKS) * BW + tl.arange(0, BW)
        there = (wo < WO) & (row < ROWS)
        z, z2 = _convolve(
            x, w, w2, row, wo, there, co, ci, inside, H, W, C, HO,
            S, PH, PW, KH, KW, K2, BW, BC,
        )  # fmt: skip
        count += there[:, None].to(tl.float32)
        mean, m2 = _welford(z, there[:, None], count, mean, m2)
        mean2, m22 = _welford(z2, there[:, None], count, mean2, m22)
        t += 1
    joined, squares = _join(count, mean, m2)
    joined2, squares2 = _join(count, mean2, m22)
    at = part * 4 * C_OUT + co
    tl.store(out + at, joined, mask=inside)
    tl.store(out + at + C_OUT, squares, mask=inside)
    tl.store(out + at + 2 * C_OUT, joined2, mask=inside)
    tl.store(out + at + 3 * C_OUT, squares2, mask=inside)
    tl.store(counts + part, tl.sum(tl.sum(count, axis=1), axis=0))


@triton.jit
def pair_sums(
    g, x, w, w2, means, out, ROWS, ROWS_EACH, H, W, C, HO, WO, C_OUT, WIDTH_BLOCKS,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, K2: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Partial sums of ``g`` and of ``g * (z - mean)`` of both convolutions: (parts, 3, C_out)."""
    part = tl.program_id(0)
    _, co, ci, inside = _position(0, 1, C_OUT, M, BW, BC)
    mean = tl.load(means + co, mask=inside, other=0.0)[None, :]
    mean2 = tl.load(means + C_OUT + co, mask=inside, other=0.0)[None, :]
    acc = tl.zeros((BW, BC), dtype=tl.float32)
    acc1 = tl.zeros((BW, BC), dtype=tl.float32)
    acc2 = tl.zeros((BW, BC), dtype=tl.float32)
    t = 0
    while t < ROWS_EACH * WIDTH_BLOCKS:
        row = (part * ROWS_EACH + t // WIDTH_BLOCKS).to(tl.int64)
        wo = (t % WIDTH_BLOCKS) * BW + tl.arange(0, BW)
        there = (wo < WO) & (row < ROWS)
        z, z2 = _convolve(
            x, w, w2, row, wo, there, co, ci, inside, H, W, C, HO,
            S, PH, PW, KH, KW, K2, BW, BC,
        )  # fmt: skip
        at = (row * WO + wo)[:, None] * C_OUT + co[None, :]
        v = tl.load(g + at, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
        acc += v
        acc1 += v * (z - mean)
        acc2 += v * (z2 - mean2)
        t += 1
    at = part * 3 * C_OUT + co
    tl.store(out + at, tl.sum(acc, axis=0), mask=inside)
    tl.store(out + at + C_OUT, tl.sum(acc1, axis=0), mask=inside)
    tl.store(out + at + 2 * C_OUT, tl.sum(acc2, axis=0), mask=inside)


@triton.jit
def pair_gradients(
    g, x, w, w2, factors, dz, dz2, H, W, C, HO, WO, C_OUT, WIDTH_BLOCKS,
    M: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, K2: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients of both convolutions, ``a * g + c + d * z``; ``factors`` is (6, C_out)."""
    index = tl.program_id(0)
    wo, co, ci, inside = _position(index, WIDTH_BLOCKS, C_OUT, M, BW, BC)
    row = (index // WIDTH_BLOCKS).to(tl.int64)
    z, z2 = _convolve(
        x, w, w2, row, wo, wo < WO, co, ci, inside, H, W, C, HO,
        S, PH, PW, KH, KW, K2, BW, BC,
    )  # fmt: skip
    mask = (wo < WO)[:, None] & inside[None, :]
    at = (row * WO + wo)[:, None] * C_OUT + co[None, :]
    v = tl.load(g + at, mask=mask, other=0.0).to(tl.float32)
    a = tl.load(factors + co, mask=inside, other=0.0)[None, :]
    c = tl.load(factors + C_OUT + co, mask=inside, other=0.0)[None, :]
    d = tl.load(factors + 2 * C_OUT + co, mask=inside, other=0.0)[None, :]
    tl.store(dz + at, (a * v + c + d * z).to(dz.dtype.element_ty), mask=mask)
    a = tl.load(factors + 3 * C_OUT + co, mask=inside, other=0.0)[None, :]
    c = tl.load(factors + 4 * C_OUT + co, mask=inside, other=0.0)[None, :]
    d = tl.load(factors + 5 * C_OUT + co, mask=inside, other=0.0)[None, :]
    tl.store(dz2 + at, (a * v + c + d * z2).to(dz2.dtype.element_ty), mask=mask)
