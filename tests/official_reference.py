"""A second, independent implementation of the official FFNet networks, for tests to compare with.

It is written from the description of the architecture alone and shares no code with `mmffnet`:
plain functions of torch applied to a dict of tensors that bear the *official* parameter names.
Everything is differentiable with respect to the input and to the tensors of the dict, in any dtype
(float64 is meant) and, for the backbones, at any size of 32 x 32 or more.

A network is called by a kind and a variant, in files by ``{kind}_{variant}``:

======  =================================  ========================================================
kind    variants                           outputs
======  =================================  ========================================================
cls     ffnet_1 .. ffnet_4                 logits
det     ffnet_1 .. ffnet_4                 four normalised maps, strides 4, 8, 16, 32
seg     ffnet_seg, ffnet_seg_pretrain      three raw maps, strides 8, 16, 32; logits (pretrain)
head    ade20k, cityscapes                 logits at stride 8
======  =================================  ========================================================
"""

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Key = tuple[str, tuple[int, ...]]


class Arch(NamedTuple):
    """One column of the table of FFNet variants."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    channel_kernel: int
    layer_scale: bool


class HeadArch(NamedTuple):
    """One column of the table of FFNetHead configurations."""

    depth: int
    expansion: int
    num_classes: int


ARCHS = {
    'ffnet_1': Arch((2, 2, 8, 2), (80, 160, 320, 640), 3, False),
    'ffnet_2': Arch((3, 3, 15, 3), (88, 176, 352, 704), 7, False),
    'ffnet_3': Arch((4, 4, 22, 5), (96, 192, 384, 768), 7, True),
    'ffnet_4': Arch((4, 4, 27, 3), (128, 256, 512, 1024), 7, True),
}
SEG_ARCH = Arch((3, 4, 18, 5), (96, 192, 384, 768), 3, True)
HEADS = {'ade20k': HeadArch(3, 4, 150), 'cityscapes': HeadArch(5, 1, 19)}
TOKEN_KERNELS = (3, 3, 7, 7)
SEG_TOKEN_KERNELS = (3, 3, 9, 9)

NAMES = (
    *(f'cls_{variant}' for variant in ARCHS),
    *(f'det_{variant}' for variant in ARCHS),
    'seg_ffnet_seg',
    'seg_ffnet_seg_pretrain',
    *(f'head_{variant}' for variant in HEADS),
)


# --- parameter names and shapes, in the order of the official state dicts


def _affine(key: str, channels: int) -> Iterator[Key]:
    yield f'{key}.weight', (channels,)
    yield f'{key}.bias', (channels,)


def _bn(key: str, channels: int) -> Iterator[Key]:
    yield from _affine(key, channels)
    yield f'{key}.running_mean', (channels,)
    yield f'{key}.running_var', (channels,)
    yield f'{key}.num_batches_tracked', ()


def _biased(key: str, *shape: int) -> Iterator[Key]:
    """A convolution or linear layer with bias."""
    yield f'{key}.weight', shape
    yield f'{key}.bias', shape[:1]


def _conv_bn(key: str, *shape: int) -> Iterator[Key]:
    yield f'{key}.c.weight', shape
    yield from _bn(f'{key}.bn', shape[0])


def _pair(key: str, channels: int, kernel: int) -> Iterator[Key]:
    """Two parallel depthwise branches, k and k // 2."""
    yield from _conv_bn(f'{key}.conv', channels, 1, kernel, kernel)
    yield from _conv_bn(f'{key}.conv1', channels, 1, kernel // 2, kernel // 2)


def _strips(key: str, channels: int, kernel: int) -> Iterator[Key]:
    """Depthwise branches k, k - 4 (if that is still a kernel) and the two strips of length k."""
    yield from _conv_bn(f'{key}.conv1', channels, 1, kernel, kernel)
    if kernel > 4:
        yield from _conv_bn(f'{key}.conv2', channels, 1, kernel - 4, kernel - 4)
    yield from _conv_bn(f'{key}.strip_conv1', channels, 1, 1, kernel)
    yield from _conv_bn(f'{key}.strip_conv2', channels, 1, kernel, 1)


def _pointwise_pair(key: str, channels: int, expansion: int) -> Iterator[Key]:
    yield from _biased(f'{key}.fc1', channels * expansion, channels, 1, 1)
    yield from _biased(f'{key}.fc2', channels, channels * expansion, 1, 1)


def _ffnet_trunk(arch: Arch) -> Iterator[Key]:
    yield from _conv_bn('patch_embed.0', 64, 3, 3, 3)
    yield from _conv_bn('patch_embed.2', arch.dims[0], 64, 3, 3)
    for i, (depth, c, kernel) in enumerate(zip(arch.depths, arch.dims, TOKEN_KERNELS, strict=True)):
        if i > 0:
            yield from _pair(f'stages.{i}.0.proj.0', c, 7)
            yield from _bn(f'stages.{i}.0.proj.1.conv.bn', c)
            yield f'stages.{i}.0.proj.1.conv.c.weight', (c, c, 1, 1)
        first = min(i, 1)
        for j in range(first, first + depth):
            mixer = f'stages.{i}.{j}.token_mixer.0'
            if arch.layer_scale:
                yield f'{mixer}.layer_scale', (c, 1, 1)
            yield from _conv_bn(f'{mixer}.main.fc', c, c, 1, 1)
            for name in ('conv1', 'conv2'):
                if kernel == 3:
                    yield from _biased(f'{mixer}.main.{name}', c, 1, 3, 3)
                else:
                    yield from _pair(f'{mixer}.main.{name}', c, kernel)
            mixer = f'stages.{i}.{j}.channel_mixer'
            if arch.layer_scale:
                yield f'{mixer}.layer_scale', (c, 1, 1)
            if arch.channel_kernel == 3:
                yield from _conv_bn(f'{mixer}.main.conv', c, 1, 3, 3)
            else:
                yield from _pair(f'{mixer}.main.conv', c, arch.channel_kernel)
            yield from _pointwise_pair(f'{mixer}.main', c, 3)


def _seg_trunk() -> Iterator[Key]:
    dims = SEG_ARCH.dims
    yield from _conv_bn('patch_embed.0', 64, 3, 3, 3)
    yield from _conv_bn('patch_embed.2', 64, 64, 3, 3)
    yield from _conv_bn('patch_embed.4', dims[0], 64, 3, 3)
    yield from _conv_bn('patch_embed.5', dims[0], dims[0], 3, 3)
    for i, (depth, c, kernel) in enumerate(
        zip(SEG_ARCH.depths, dims, SEG_TOKEN_KERNELS, strict=True)
    ):
        if i > 0:
            yield from _conv_bn(f'stages.{i}.0.proj.0', 2 * c, dims[i - 1], 3, 3)
            yield from _conv_bn(f'stages.{i}.0.proj.2', c, 2 * c, 1, 1)
        first = min(i, 1)
        for j in range(first, first + depth):
            mixer = f'stages.{i}.{j}.token_mixer.0'
            yield f'{mixer}.layer_scale', (c, 1, 1)
            yield from _conv_bn(f'{mixer}.main.fc', c, c, 1, 1)
            yield from _strips(f'{mixer}.main.conv1', c, kernel)
            yield from _strips(f'{mixer}.main.conv2', c, kernel)
            mixer = f'stages.{i}.{j}.channel_mixer'
            yield f'{mixer}.layer_scale', (c, 1, 1)
            yield from _conv_bn(f'{mixer}.main.conv', c, 1, 3, 3)
            yield from _pointwise_pair(f'{mixer}.main', c, 4)


def _head(arch: HeadArch) -> Iterator[Key]:
    inputs, width, channels = sum(SEG_ARCH.dims[1:]), 256, 1024
    yield from _biased('conv_seg', arch.num_classes, channels, 1, 1)
    yield from _conv_bn('squeeze.0', inputs, inputs, 1, 1)
    yield from _conv_bn('squeeze.2', width, inputs, 1, 1)
    for n in range(arch.depth):
        mixer = f'head_blocks.{n}.token_mixer.main'
        yield from _conv_bn(f'{mixer}.fc', width, width, 1, 1)
        yield from _strips(f'{mixer}.conv1', width, 9)
        yield from _strips(f'{mixer}.conv2', width, 9)
        mixer = f'head_blocks.{n}.channel_mixer.main'
        yield from _strips(f'{mixer}.conv', width, 9)
        yield from _pointwise_pair(mixer, width, arch.expansion)
    yield from _conv_bn('align.0', channels, width, 1, 1)


def official_keys(variant: str, kind: str) -> list[Key]:
    """List names and shapes of the official state dict, buffers included, in its order."""
    if kind == 'head' and variant in HEADS:
        return list(_head(HEADS[variant]))
    if kind == 'seg' and variant in ('ffnet_seg', 'ffnet_seg_pretrain'):
        keys = list(_seg_trunk())
        if variant == 'ffnet_seg_pretrain':
            keys += _conv_bn('head1.0', 1024, SEG_ARCH.dims[-1], 1, 1)
            keys += _biased('head2.0', 1280, 1024)
            keys += _affine('head2.1', 1280)
            keys += _biased('head2.3', 1000, 1280)
        return keys
    if kind in ('cls', 'det') and variant in ARCHS:
        keys = list(_ffnet_trunk(ARCHS[variant]))
        dims = ARCHS[variant].dims
        if kind == 'cls':
            keys += _bn('norm', dims[-1])
            keys += _biased('head', 1000, dims[-1])
        else:
            for i, c in enumerate(dims):
                keys += _affine(f'norm{i}', c)
        return keys
    raise ValueError(f'no network {kind}_{variant}; known are {", ".join(NAMES)}')


# --- the filled parameters and inputs that the reference numbers belong to


def _fill_one(key: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    last = key.rpartition('.')[2]
    if last == 'layer_scale':
        return 0.5 + 0.1 * rng.standard_normal(shape)
    if last in ('running_mean', 'bias'):
        return 0.1 * rng.standard_normal(shape)
    if last == 'running_var':
        return 1 + 0.5 * rng.random_sample(shape)
    if last == 'weight' and len(shape) == 1:
        return 1 + 0.1 * rng.standard_normal(shape)
    if last == 'weight':
        return rng.standard_normal(shape) * np.sqrt(0.8 / np.prod(shape[1:]))
    raise ValueError(f'{key}: a parameter of FFNet is not called {last!r}')


def fill(
    keys: Iterable[tuple[str, Sequence[int]]], dtype: torch.dtype = torch.float64
) -> OrderedDict[str, Tensor]:
    """Give every official parameter its fixed value, which follows from name and shape alone."""
    filled = OrderedDict()
    for key, shape in keys:
        if key.endswith('num_batches_tracked'):
            filled[key] = torch.zeros((), dtype=torch.int64)
        else:
            filled[key] = torch.from_numpy(_fill_one(key, tuple(shape))).to(dtype)
    return filled


def make_input(height: int, width: int, batch: int = 1) -> Tensor:
    """Make the fixed random input of the backbones, float64."""
    rng = np.random.RandomState(0)
    return torch.from_numpy(rng.standard_normal((batch, 3, height, width)))


def make_features(height: int, width: int, batch: int = 1) -> list[Tensor]:
    """Make the fixed random maps that FFNetHead gets for an image of this size, float64."""
    rng = np.random.RandomState(0)
    return [
        torch.from_numpy(rng.standard_normal((batch, c, height // stride, width // stride)))
        for c, stride in zip(SEG_ARCH.dims[1:], (8, 16, 32), strict=True)
    ]


# --- forward


class Reference:
    """Functional forward pass over official parameters.

    Whether a unit has layer scale, and which parallel branches a depthwise layer has, is read off
    the names; kernel sizes and group counts are read off the shapes.

    Args:
        params (Mapping[str, Tensor]): Tensors by official name, without any prefix.
        training (bool): Normalise with batch statistics and note the updated running statistics in
            `running`; the tensors in `params` are left alone. There is no drop path and no dropout.
            Defaults to False.
    """

    def __init__(self, params: Mapping[str, Tensor], training: bool = False) -> None:
        self.params = params
        self.training = training
        self.running: OrderedDict[str, Tensor] = OrderedDict()
        self._prefixes = {
            key[:i] for key in params for i, letter in enumerate(key) if letter == '.'
        }

    def bn(self, key: str, x: Tensor) -> Tensor:
        p = self.params
        mean, var = p[f'{key}.running_mean'], p[f'{key}.running_var']
        if self.training:
            mean, var = self._batch_statistics(key, x)
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-5)
        return x * p[f'{key}.weight'].view(shape) + p[f'{key}.bias'].view(shape)

    def _batch_statistics(self, key: str, x: Tensor) -> tuple[Tensor, Tensor]:
        n = x.numel() // x.shape[1]
        if n < 2:
            raise ValueError(f'{key}: batch statistics need more than one value per channel')
        mean = x.mean((0, 2, 3))
        var = (x - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3))
        with torch.no_grad():
            for name, value in (('running_mean', mean), ('running_var', var * (n / (n - 1)))):
                old = self.params[f'{key}.{name}']
                self.running[f'{key}.{name}'] = 0.9 * old + 0.1 * value
            tracked = self.params[f'{key}.num_batches_tracked']
            self.running[f'{key}.num_batches_tracked'] = tracked + 1
        return mean, var

    def ln(self, key: str, x: Tensor) -> Tensor:
        """Layer normalisation over axis 1, the channels."""
        mean = x.mean(1, keepdim=True)
        var = (x - mean).square().mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(var + 1e-6)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return x * self.params[f'{key}.weight'].view(shape) + self.params[f'{key}.bias'].view(shape)

    def conv(self, key: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.params[f'{key}.weight']
        return F.conv2d(
            x,
            weight,
            self.params.get(f'{key}.bias'),
            stride=stride,
            padding=(weight.shape[2] // 2, weight.shape[3] // 2),
            groups=x.shape[1] // weight.shape[1],
        )

    def conv_bn(self, key: str, x: Tensor, stride: int = 1) -> Tensor:
        return self.bn(f'{key}.bn', self.conv(f'{key}.c', x, stride))

    def depthwise(self, key: str, x: Tensor, stride: int = 1) -> Tensor:
        """Apply a plain convolution, a conv-BN, or the sum of parallel conv-BN branches."""
        if f'{key}.weight' in self.params:
            return self.conv(key, x, stride)
        if f'{key}.c.weight' in self.params:
            return self.conv_bn(key, x, stride)
        names = ('conv', 'conv1', 'conv2', 'strip_conv1', 'strip_conv2')
        branches = [f'{key}.{name}' for name in names if f'{key}.{name}' in self._prefixes]
        return torch.stack([self.conv_bn(branch, x, stride) for branch in branches]).sum(0)

    def linear(self, key: str, x: Tensor) -> Tensor:
        return F.linear(x, self.params[f'{key}.weight'], self.params[f'{key}.bias'])

    def token_mixer(self, key: str, x: Tensor) -> Tensor:
        x = self.depthwise(f'{key}.conv1', self.conv_bn(f'{key}.fc', x))
        return self.depthwise(f'{key}.conv2', F.gelu(x))

    def channel_mixer(self, key: str, x: Tensor) -> Tensor:
        x = self.conv(f'{key}.fc1', self.depthwise(f'{key}.conv', x))
        return self.conv(f'{key}.fc2', F.gelu(x))

    def block(self, key: str, x: Tensor) -> Tensor:
        for unit, mixer in (
            ('token_mixer.0', self.token_mixer),
            ('channel_mixer', self.channel_mixer),
        ):
            branch = mixer(f'{key}.{unit}.main', x)
            if f'{key}.{unit}.layer_scale' in self.params:
                branch = branch * self.params[f'{key}.{unit}.layer_scale']
            x = x + branch
        return x

    def stem(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv_bn('patch_embed.0', x, stride=2))
        if 'patch_embed.4' not in self._prefixes:
            return self.conv_bn('patch_embed.2', x, stride=2)
        x = F.gelu(self.conv_bn('patch_embed.2', x))
        return self.conv_bn('patch_embed.5', self.conv_bn('patch_embed.4', x), stride=2)

    def downsample(self, key: str, x: Tensor) -> Tensor:
        if f'{key}.proj.2' in self._prefixes:
            return self.conv_bn(f'{key}.proj.2', F.gelu(self.conv_bn(f'{key}.proj.0', x, stride=2)))
        x = self.depthwise(f'{key}.proj.0', x, stride=2)
        return x + self.conv(f'{key}.proj.1.conv.c', self.bn(f'{key}.proj.1.conv.bn', x))

    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the raw maps of all stages, before any output normalisation."""
        x = self.stem(x)
        maps: list[Tensor] = []
        while f'stages.{len(maps)}' in self._prefixes:
            stage, j = f'stages.{len(maps)}', 0
            while f'{stage}.{j}' in self._prefixes:
                is_downsampling = f'{stage}.{j}.proj' in self._prefixes
                x = (self.downsample if is_downsampling else self.block)(f'{stage}.{j}', x)
                j += 1
            maps.append(x)
        return maps

    def classifier(self, x: Tensor) -> Tensor:
        return self.linear('head', self.bn('norm', self.stages(x)[-1]).mean((2, 3)))

    def dense(self, x: Tensor) -> list[Tensor]:
        return [self.ln(f'norm{i}', y) for i, y in enumerate(self.stages(x))]

    def pretraining(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.conv_bn('head1.0', self.stages(x)[-1])).mean((2, 3))
        return self.linear('head2.3', F.hardswish(self.ln('head2.1', self.linear('head2.0', x))))

    def decode_head(self, features: Sequence[Tensor]) -> Tensor:
        x = torch.cat(
            [features[0]]
            + [
                F.interpolate(y, scale_factor=2**i, mode='bicubic', align_corners=False)
                for i, y in enumerate(features[1:], start=1)
            ],
            dim=1,
        )
        x = self.conv_bn('squeeze.2', F.gelu(self.conv_bn('squeeze.0', x)))
        n = 0
        while f'head_blocks.{n}' in self._prefixes:
            x = F.gelu(x + self.token_mixer(f'head_blocks.{n}.token_mixer.main', x))
            x = F.gelu(x + self.channel_mixer(f'head_blocks.{n}.channel_mixer.main', x))
            n += 1
        return self.conv('conv_seg', F.gelu(self.conv_bn('align.0', x)))


def forward(
    params: Mapping[str, Tensor], inputs: Tensor | Sequence[Tensor], training: bool = False
) -> tuple[OrderedDict[str, Tensor], OrderedDict[str, Tensor]]:
    """Run the network that these parameters belong to.

    Args:
        params (Mapping[str, Tensor]): The whole official state dict, without any prefix.
        inputs (Tensor | Sequence[Tensor]): An image batch, for FFNetHead its three feature maps.
        training (bool): Whether to use batch statistics. Defaults to False.

    Returns:
        tuple: The outputs by name (``logits``, or ``out0``, ``out1``, ... finest first), and by
        official name the running statistics after this step, which is empty unless in training.
    """
    reference = Reference(params, training)
    if not isinstance(inputs, Tensor):
        outputs = {'logits': reference.decode_head(inputs)}
    elif 'head.weight' in params:
        outputs = {'logits': reference.classifier(inputs)}
    elif 'head2.3.weight' in params:
        outputs = {'logits': reference.pretraining(inputs)}
    elif 'norm0.weight' in params:
        outputs = {f'out{i}': y for i, y in enumerate(reference.dense(inputs))}
    else:
        outputs = {f'out{i}': y for i, y in enumerate(reference.stages(inputs)[1:])}
    return OrderedDict(outputs), reference.running
