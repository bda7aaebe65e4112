"""Packaging: the package, its configs and tools, and the hook that completes mmcv-lite.

Everything that is not plain metadata is here for one of two reasons:

- configs, tools and model-index.yml travel inside the wheel as ``mmffnet/.mim`` (OpenMMLab's
  convention); an editable install finds them in the checkout instead, see ``mmffnet_cli/paths.py``;
- ``mmffnet-ops.pth`` lands beside the package, in editable installs too, so that ``mmcv.ops`` works
  without mmcv's compiled extension even where mmdet is imported before mmffnet.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ('configs', 'tools', 'model-index.yml')

# Python runs this line at every start: it must be silent where the module is gone.
PTH_NAME = 'mmffnet-ops.pth'
PTH_LINE = (
    'import sys; exec("try:\\n    import mmffnet_ops_hook\\nexcept ImportError:\\n    pass")\n'
)

# Only torch: mmengine and mmcv go by different distribution names (official or onedl; full or
# lite), and naming one would install it over the other. `import mmffnet` says what is missing.
REQUIRES = ['torch>=2.6']
EXTRAS = {
    'lite': [
        'mmcv-lite>=2.0.1,<2.2',
        'mmengine>=0.10.4,<1',
        'setuptools<82',  # mmengine imports pkg_resources
        'torchvision>=0.21',
    ],
    'det': ['mmdet>=3.2,<4'],
    'seg': ['mmsegmentation>=1.2.1,<2', 'ftfy', 'regex'],
    'cls': ['mmpretrain>=1.1,<2'],
}
# without 'lite': mmcv-lite would land on top of a full mmcv
EXTRAS['all'] = sorted({name for key in EXTRAS if key != 'lite' for name in EXTRAS[key]})
EXTRAS['export'] = ['coremltools', 'onnx', 'onnxruntime', 'onnxscript', 'openvino']
EXTRAS['hub'] = ['huggingface_hub>=0.34', 'safetensors']
EXTRAS['fast'] = ['faster-coco-eval>=1.8']
EXTRAS['web'] = ['gradio>=6']
EXTRAS['docs'] = ['furo', 'myst-parser', 'sphinx']
EXTRAS['dev'] = [
    'hypothesis',
    'ipykernel',
    'lmdb',
    'model-index',
    'mypy',
    'nbclient',
    'pre-commit',
    'pytest',
    'pytest-timeout',
    'pytest-xdist',
    'ruff',
    'selenium',
    'timm',
]


class BuildPy(build_py):
    """Adds what setuptools has no declaration for."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            site_packages = Path(self.get_finalized_command('install').install_lib)
        else:
            site_packages = Path(self.build_lib)
            self.ship(site_packages / 'mmffnet' / '.mim')
        site_packages.mkdir(parents=True, exist_ok=True)
        (site_packages / PTH_NAME).write_text(PTH_LINE)

    def ship(self, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)  # a build folder may hold files deleted since
        target.mkdir(parents=True)
        ignore = shutil.ignore_patterns('__pycache__', '*.pyc', 'dev')
        for name in SHIPPED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=ignore)
            else:
                shutil.copy2(source, target)


def version() -> str:
    source = (ROOT / 'mmffnet' / 'version.py').read_text(encoding='utf-8')
    found = re.search(r"^__version__ = '([^']+)'$", source, re.MULTILINE)
    if found is None:
        raise RuntimeError('mmffnet/version.py must define __version__')
    return found[1]


setup(
    name='mmffnet',
    version=version(),
    description='FFNet / MetaMixer backbones for OpenMMLab 2.x (arXiv 2406.02021)',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    url='https://arxiv.org/abs/2406.02021',
    license='Apache-2.0',
    classifiers=[
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['mmffnet', 'mmffnet.*', 'mmffnet_cli']),
    package_data={'mmffnet': ['py.typed', 'weights/*.pth']},
    py_modules=['mmffnet_ops_hook'],
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={'console_scripts': ['mmffnet = mmffnet_cli.main:main']},
    cmdclass={'build_py': BuildPy},
    zip_safe=False,
)
