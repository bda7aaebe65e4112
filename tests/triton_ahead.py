"""Compiles all Triton kernels ahead for some architectures, on any machine: python FILE 75 80 90.

With ``--large`` those of FFNet-2's stages, of its downsampling and FFNetSeg's, which take minutes.
Fails if a kernel does not compile, or computes addresses within a map in 32 bits.
"""

import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmffnet.ops import triton_kernels
from mmffnet.ops.depthwise_triton import _taps

KERNELS = (
    'forward',
    'gelu_gradient',
    'input_gradient',
    'weight_gradient',
    'statistics',
    'merge',
    'norm_sums',
    'norm_gradients',
)
MAPS = ('x', 'y', 'g', 'dx', 'dz')  # in the dtype of the model; all else is float32, or
FLOAT64 = (('statistics', 'out'), ('merge', 'sums'))


def compiled(name: str, sizes: tuple, multiplier: int, stride: int, dtype: str, capability: int):
    kernel = getattr(triton_kernels, name)
    height, width = sizes[0]
    sizes = sizes[:1] if name in ('forward', 'gelu_gradient') else sizes
    sums = name in ('weight_gradient', 'statistics', 'norm_sums')
    given: dict[str, Any] = dict(M=multiplier, S=stride, PH=height // 2, PW=width // 2, BC=32)
    given |= dict(B=len(sizes), KH=height, KW=width, TAPS=_taps(sizes), BP=8 if sums else 16)
    given |= dict(HAS_BIAS=True, GELU=True, EPS=(1e-5,) * len(sizes))
    signature, constants = {}, {}
    for p in kernel.params:
        if p.is_constexpr:
            signature[p.name], constants[p.name] = 'constexpr', given[p.name]
        elif p.name in MAPS:
            signature[p.name] = f'*{dtype}'
        elif p.name == p.name.lower():
            signature[p.name] = '*fp64' if (name, p.name) in FLOAT64 else '*fp32'
        else:
            signature[p.name] = 'i32'
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget('cuda', capability, 32))


def narrow_addresses(ttir: str) -> list[str]:
    """Where a block of a map is addressed in 32 bits, by more than one number for all of it."""
    uniform = set(re.findall(r'(%\S+) = (?:tt\.splat|arith\.constant)', ttir))
    added = re.findall(r'tt\.addptr \S+, (%\S+) : .*tensor<\d+x\d+xi32>', ttir)
    return [name for name in added if name not in uniform]


def main(capabilities: list[int], sizes: tuple, multiplier: int, stride: int, dtype: str) -> None:
    for name in KERNELS:
        for capability in capabilities:
            found = compiled(name, sizes, multiplier, stride, dtype, capability)
            assert found.asm['cubin'], name
            assert not narrow_addresses(found.asm['ttir']), name
            print(name, capability, dtype, sizes, len(found.asm['cubin']), flush=True)


SMALL = [(((3, 3), (1, 1)), 2, 2, 'fp16')]
LARGE = [
    *((((7, 7), (3, 3)), 1, 1, 'bf16'), (((7, 7), (3, 3)), 2, 2, 'bf16')),
    *((((7, 7), (3, 3), (7, 1), (1, 7)), 1, 1, 'bf16'), (((9, 9),), 1, 1, 'fp32')),
]

if __name__ == '__main__':
    assert triton.__version__
    large = '--large' in sys.argv
    numbers = [int(text) for text in sys.argv[1:] if text != '--large']
    for case in LARGE if large else SMALL:
        main(numbers, *case)
