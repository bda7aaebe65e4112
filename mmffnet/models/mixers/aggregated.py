"""TransNeXt's attention: aggregated attention, and cosine attention over all positions.

Paper: TransNeXt: Robust Foveal Visual Perception for Vision Transformers,
https://arxiv.org/abs/2311.17132. Written anew from a description of the architecture.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.autocast import full_precision
from ...ops.tracing import is_traced
from ...registry import MODELS
from ..arch import check_channels, check_count, check_odd
from ..layers.norm import in_format_of
from .constants import constants
from .conv_glu import PointwiseLinear
from .position_bias import PositionBias, call, pooling, weighted, window

#: Logits of an image that are computed at once; 64 MiB in float32
CHUNK_SIZE = 2**24


def _attend(
    query: Tensor, key: Tensor, value: Tensor, values: Tensor, places: Tensor, weights: Tensor
) -> Tensor:
    """Attention of rows of queries to all keys.

    Args:
        query (Tensor): Of the shape (N, heads, channels, rows, columns).
        key (Tensor): Of the shape (N, heads, keys, channels).
        value (Tensor): Likewise.
        values (Tensor): See :class:`Bias`, as the last two.
        places (Tensor): Those of the rows.
        weights (Tensor): Likewise.
    """
    rows, columns = query.shape[3:]
    bias = weighted(values, 2, places, weights)
    # queries go column by column, as the bias comes
    bias = bias.reshape(1, len(values), columns * rows, key.shape[2])
    y = F.scaled_dot_product_attention(
        query.permute(0, 1, 4, 3, 2).flatten(2, 3), key, value, attn_mask=bias, scale=1.0
    )
    return y.unflatten(2, (columns, rows)).permute(0, 1, 4, 3, 2).contiguous()


class _CosineQueries(nn.Module):
    """What both kinds of attention share: heads, scaled cosine logits, bias, rows at a time."""

    def __init__(
        self,
        channels: int,
        head_dim: int | None,
        sr_ratio: int,
        pretrain_size: int,
        bias_size: int | None,
        chunk_size: int,
    ):
        super().__init__()
        kind = type(self).__name__
        check_channels(kind, channels)
        if bias_size is not None:
            check_count(f'{kind}: bias_size', bias_size)
        check_count(f'{kind}: sr_ratio', sr_ratio)
        check_count(f'{kind}: chunk_size', chunk_size)
        if not isinstance(pretrain_size, int) or pretrain_size < 2:
            raise ValueError(
                f'{kind}: pretrain_size must be an integer of at least 2, got {pretrain_size!r}'
            )
        if head_dim is None:
            divisors = [d for d in range(1, channels + 1) if channels % d == 0]
            head_dim = min(divisors, key=lambda d: (abs(d - 24), -d))
        check_channels(kind, channels, head_dim=head_dim)
        self.heads = heads = channels // head_dim
        self.head_dim = head_dim
        self.chunk_size = chunk_size
        # softplus of it is 1 / 0.24
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), math.log(math.expm1(1 / 0.24))))
        self.query_embedding = nn.Parameter(torch.empty(heads, 1, head_dim))
        nn.init.trunc_normal_(self.query_embedding, std=0.02)
        self.position = PositionBias(heads, sr_ratio, pretrain_size, bias_size)
        self.project = PointwiseLinear(channels, channels)

    def split(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).unflatten(1, (self.heads, self.head_dim))

    def scale(self, query: Tensor, log_keys: Tensor | float) -> Tensor:
        """Scales normalised queries, given the logarithm of the number of keys."""
        embedding = self.query_embedding.to(query.dtype).transpose(1, 2)[..., None]
        temperature = F.softplus(self.temperature.to(query.dtype))[..., None]
        return (query + embedding) * (temperature * log_keys)

    def by_rows(self, x: Tensor, num_keys: int) -> tuple[list[slice], bool]:
        """Rows of queries to compute at once, and whether to compute them again when needed."""
        height, width = map(int, x.shape[2:])
        total = self.heads * height * width * num_keys
        rows = min(max(self.chunk_size * height // total, 1), height)
        recompute = not is_traced(x) and torch.is_grad_enabled() and total > self.chunk_size
        return [slice(i, min(i + rows, height)) for i in range(0, height, rows)], recompute


@MODELS.register_module()
class AggregatedAttention(_CosineQueries):
    """TransNeXt's attention to the neighbours and to a pooled map at once, in one softmax.

    Queries and keys are normalised, so that logits are cosines, scaled by a learned temperature
    and the logarithm of the number of keys. To the weights of the neighbours a second set is added
    after the softmax, products of the query with learned tokens.

    What is computed at once are some rows of queries with all of their keys, which changes nothing
    but the memory. In training, more than that is computed again in the backward pass.

    Args:
        channels (int): Channels in and out, a multiple of ``head_dim``.
        head_dim (int, optional): Channels per head. Defaults to None, which is 24 as in TransNeXt,
            or the divisor of ``channels`` that is nearest to it.
        window_size (int): Odd side of the neighbourhood. Defaults to 3.
        sr_ratio (int): Positions per pooled one and axis. Defaults to 2.
        pretrain_size (int): Side of the map in the pre-training, which is the unit of the offsets
            that the position bias is made of. Defaults to 14.
        bias_size (int, optional): Side of the square map whose position bias is computed and then
            interpolated. Defaults to None, which computes it for the input's own size.
        chunk_size (int): Logits of an image that are computed at once. Defaults to 2**24.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int | None = None,
        window_size: int = 3,
        sr_ratio: int = 2,
        pretrain_size: int = 14,
        bias_size: int | None = None,
        chunk_size: int = CHUNK_SIZE,
    ):
        check_odd('AggregatedAttention: window_size', window_size)
        super().__init__(channels, head_dim, sr_ratio, pretrain_size, bias_size, chunk_size)
        heads, taps = self.heads, window_size**2
        self.window_size = window_size
        self.query = PointwiseLinear(channels, channels)
        self.key_value = PointwiseLinear(channels, 2 * channels)
        self.pool = nn.Conv2d(channels, channels, 1)
        self.act = nn.GELU()
        self.pool_norm = nn.LayerNorm(channels, eps=1e-5)
        self.local_bias = nn.Parameter(torch.empty(heads, taps))
        self.local_tokens = nn.Parameter(torch.empty(heads, self.head_dim, taps))
        self.local_token_bias = nn.Parameter(torch.zeros(heads, 1, taps))
        nn.init.trunc_normal_(self.local_bias, std=4e-4)
        nn.init.trunc_normal_(self.local_tokens, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.act(self.pool(x))
        rows, columns = (
            constants(x, pooling, size, self.position.bins(size)).to(pooled.dtype)
            for size in map(int, x.shape[2:])
        )
        pooled = rows @ pooled @ columns.T
        # as tokens: compilers are wrong about the layout of the gradient of a map's norm
        tokens = self.pool_norm(pooled.flatten(2).mT.contiguous())
        far = F.linear(tokens, self.key_value.weight, self.key_value.bias)
        query, near = self.query(x), self.key_value(x)
        with full_precision(x):  # logits are up to 40
            y = self._aggregate(x, query, near, far)
        return self.project(in_format_of(x, y.flatten(1, 2).to(query.dtype)))

    def _aggregate(self, x: Tensor, query: Tensor, near: Tensor, far: Tensor) -> Tensor:
        dtype = torch.promote_types(query.dtype, torch.float32)
        height, width = map(int, x.shape[2:])
        inside, count = constants(x, window, height, width, self.window_size)
        num_pooled = int(far.shape[1])
        parts, recompute = self.by_rows(x, num_pooled + len(inside))

        query = F.normalize(self.split(query, dtype), dim=2)
        tokens = self.local_tokens.to(dtype).transpose(1, 2) @ query.flatten(3)
        tokens = tokens + self.local_token_bias.to(dtype).transpose(1, 2)
        tokens = tokens.unflatten(3, (height, width))
        query = self.scale(query, (count + num_pooled).to(dtype).log())
        key, value = (self.split(t, dtype) for t in near.chunk(2, 1))
        far_key, far_value = (
            t.to(dtype).unflatten(2, (self.heads, self.head_dim)).transpose(1, 2)
            for t in far.chunk(2, 2)
        )
        far_key = F.normalize(far_key, dim=3)
        margin = [self.window_size // 2] * 4
        key, value = F.pad(F.normalize(key, dim=2), margin), F.pad(value, margin)

        # For the joint softmax, all neighbours are one more key of the attention to the pooled
        # map: its logit is the logsumexp of theirs, in a channel more of queries and keys, and a
        # channel more of the values says how much of the attention it gets.
        channels = -(-(self.head_dim + 1) // 8) * 8  # fast kernels want multiples of 8
        columns = self.position.bins(width)
        extra = far.new_zeros(num_pooled + columns, channels, dtype=dtype)
        extra[num_pooled, self.head_dim] = 1
        more = (0, channels - self.head_dim, 0, columns)
        far_key, far_value = (F.pad(t, more) + extra for t in (far_key, far_value))
        bias = self.position(x, dtype, self.chunk_size, recompute).with_extra_key()
        local_bias = self.local_bias.to(dtype)[:, :, None, None]
        outs = []
        for part in parts:
            padded = slice(part.start, part.stop + self.window_size - 1)
            args = [query[..., part, :], tokens[..., part, :], inside[:, part], local_bias]
            args += [key[..., padded, :], value[..., padded, :], far_key, far_value]
            outs.append(call(recompute, self._rows, *args, *bias.rows(part)))
        return torch.cat(outs, 3)

    def _rows(
        self,
        query: Tensor,
        tokens: Tensor,
        inside: Tensor,
        local_bias: Tensor,
        key: Tensor,
        value: Tensor,
        far_key: Tensor,
        far_value: Tensor,
        *bias: Tensor,
    ) -> Tensor:
        """Some rows of the output, as ``(N, heads, channels, rows, columns)``."""
        rows, columns = query.shape[3:]
        taps = [
            (..., slice(i, i + rows), slice(j, j + columns))
            for i in range(self.window_size)
            for j in range(self.window_size)
        ]
        local = torch.stack([(query * key[tap]).sum(2) for tap in taps], 2) + local_bias
        local = local.masked_fill(~inside, -math.inf)
        zeros = (0, 0, 0, 0, 0, far_key.shape[3] - self.head_dim - 1)
        query = F.pad(torch.cat([query, local.logsumexp(2, keepdim=True)], 2), zeros)
        y, share, _ = _attend(query, far_key, far_value, *bias).split(
            [self.head_dim, 1, zeros[-1]], 2
        )
        local = local.softmax(2) * share + tokens
        for weight, tap in zip(local.split(1, 2), taps, strict=True):
            y = y + weight * value[tap]
        return y


@MODELS.register_module()
class CosineAttention(_CosineQueries):
    """TransNeXt's attention of its last stage: to all positions, with cosines for logits.

    As in :class:`AggregatedAttention`, logits are scaled by a temperature and the logarithm of the
    number of keys, biased by the position, and computed for some rows of queries at a time.

    Args:
        channels (int): Channels in and out, a multiple of ``head_dim``.
        head_dim (int, optional): As in :class:`AggregatedAttention`. Defaults to None.
        pretrain_size (int): Likewise. Defaults to 7.
        bias_size (int, optional): Likewise. Defaults to None.
        chunk_size (int): Likewise. Defaults to 2**24.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int | None = None,
        pretrain_size: int = 7,
        bias_size: int | None = None,
        chunk_size: int = CHUNK_SIZE,
    ):
        super().__init__(channels, head_dim, 1, pretrain_size, bias_size, chunk_size)
        self.query_key_value = PointwiseLinear(channels, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.query_key_value(x)
        with full_precision(x):
            y = self._attend(x, qkv)
        return self.project(in_format_of(x, y.flatten(1, 2).to(qkv.dtype)))

    def _attend(self, x: Tensor, qkv: Tensor) -> Tensor:
        dtype = torch.promote_types(qkv.dtype, torch.float32)
        height, width = map(int, x.shape[2:])
        query, key, value = (self.split(t, dtype) for t in qkv.chunk(3, 1))
        query = self.scale(F.normalize(query, dim=2), math.log(height * width))
        key = F.normalize(key, dim=2).flatten(3).transpose(2, 3).contiguous()
        value = value.flatten(3).transpose(2, 3).contiguous()
        parts, recompute = self.by_rows(x, height * width)
        bias = self.position(x, dtype, self.chunk_size, recompute)
        outs = [
            call(recompute, _attend, query[..., part, :], key, value, *bias.rows(part))
            for part in parts
        ]
        return torch.cat(outs, 3)
