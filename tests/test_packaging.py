"""The wheel, the editable install and the list of pinned packages."""

import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mmffnet

ROOT = Path(__file__).parents[1]
FOLDERS = ('configs', 'mmffnet', 'mmffnet_cli', 'requirements', 'tools')
NOT_NEEDED = shutil.ignore_patterns('__pycache__')
# In a new process: mmcv.ops works before mmffnet is imported; then where do our configs lie?
CODE = """
import sys
import mmcv.ops
assert 'mmffnet' not in sys.modules
import mmffnet
print(mmffnet.config_path('detection/maskrcnn_ffnet2_coco'))
"""


def run(*command, cwd=None):
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy of what a distribution is made from: building writes into its source folder."""
    folder = tmp_path_factory.mktemp('checkout')
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=NOT_NEEDED)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope='module')
def wheel(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    options = ['--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir', folder]
    run(sys.executable, '-m', 'pip', 'wheel', *options, '.', cwd=checkout)
    (path,) = folder.iterdir()
    return path


@pytest.fixture
def environment(tmp_path):
    """The bin folder of a new virtual environment that sees the packages of this one."""
    run(sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'venv')
    site = sysconfig.get_path('purelib', 'venv', {'base': str(tmp_path / 'venv')})
    # Files named .pth there, such as the one of an editable mmffnet, have no effect.
    Path(site, 'outer.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return tmp_path / 'venv' / 'bin'


def install(environment, *what):
    options = ['--quiet', '--no-deps', '--no-index', '--no-build-isolation', '--ignore-installed']
    run(environment / 'python', '-m', 'pip', 'install', *options, *what)


def ours(environment):
    """What lies in the environment's site-packages and belongs to mmffnet."""
    return {path.name for path in environment.parent.glob('lib/*/site-packages/*mmffnet*')}


@pytest.mark.slow
def test_wheel_content(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith('.dist-info/METADATA'))
        metadata = message_from_bytes(archive.read(metadata))
        (entries,) = (n for n in names if n.endswith('.dist-info/entry_points.txt'))
        entries = archive.read(entries).decode()

    assert wheel.name == f'mmffnet-{mmffnet.__version__}-py3-none-any.whl'
    assert {'mmffnet-ops.pth', 'mmffnet_cli/main.py', 'mmffnet_ops_hook.py'} <= names
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob('mmffnet/**/*.py')} <= names
    assert {f'mmffnet/weights/ffnet-nano{task}.pth' for task in ('', '-seg')} <= names
    shipped = {name for name in names if name.startswith('mmffnet/.mim/')}
    expected = {'model-index.yml', 'tools/train.py', 'tools/test.py'}
    expected |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/**/*.[py][ym]*')}
    assert {f'mmffnet/.mim/{name}' for name in expected} <= shipped
    assert not any('/dev/' in name or '__pycache__' in name for name in names)
    assert {name.partition('/')[0] for name in names if '/' in name} == {
        'mmffnet',
        'mmffnet_cli',
        f'mmffnet-{mmffnet.__version__}.dist-info',
    }

    parser = configparser.ConfigParser()
    parser.read_string(entries)
    assert parser['console_scripts']['mmffnet'] == 'mmffnet_cli.main:main'
    required = [Requirement(text) for text in metadata.get_all('Requires-Dist')]
    assert [str(item) for item in required if item.marker is None] == ['torch>=2.6']
    assert set(metadata.get_all('Provides-Extra')) == {
        *('lite', 'det', 'seg', 'cls', 'all', 'export', 'hub', 'fast', 'web', 'docs', 'dev')
    }
    assert metadata['Requires-Python'] == '>=3.10'
    assert '# mmffnet' in metadata.get_payload()


@pytest.mark.slow
def test_installed_wheel(wheel, environment, tmp_path):
    install(environment, wheel)
    assert 'mmffnet-ops.pth' in ours(environment)
    assert 'detection/maskrcnn_ffnet2_coco.py' in run(environment / 'mmffnet', 'configs')
    path = Path(run(environment / 'python', '-c', CODE, cwd=tmp_path).strip())
    assert path.is_relative_to(environment.parent)
    assert path.parts[-5:-2] == ('mmffnet', '.mim', 'configs')
    assert path.is_file()

    uninstall = ('-m', 'pip', 'uninstall', '--quiet', '--yes', 'mmffnet')
    run(environment / 'python', *uninstall, cwd=tmp_path)
    assert ours(environment) == set()


@pytest.mark.slow
def test_editable_install(checkout, environment, tmp_path):
    install(environment, '--editable', checkout)
    assert 'mmffnet-ops.pth' in ours(environment)
    path = Path(run(environment / 'python', '-c', CODE, cwd=tmp_path).strip())
    assert path == checkout / 'configs' / 'detection' / 'maskrcnn_ffnet2_coco.py'

    uninstall = ('-m', 'pip', 'uninstall', '--quiet', '--yes', 'mmffnet')
    run(environment / 'python', *uninstall, cwd=tmp_path)
    assert ours(environment) == set()


@pytest.mark.slow
def test_the_pth_file_is_silent_without_its_module(wheel, environment, tmp_path):
    install(environment, wheel)
    (hook,) = environment.parent.glob('lib/*/site-packages/mmffnet_ops_hook.py')
    hook.unlink()
    command = [environment / 'python', '-c', 'print("started")']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ('started\n', '')


def pins():
    lines = (ROOT / 'requirements' / 'pins.txt').read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith('#')]
    return [pin for pin in found if pin.marker is None or pin.marker.evaluate()]


def normalise(name):
    return re.sub(r'[-_.]+', '-', name).lower()


def test_every_package_is_pinned_exactly_and_once():
    names = [pin.name for pin in pins()]
    assert sorted(set(names)) == sorted(names)
    assert all(re.fullmatch(r'==[\w.+]+', str(pin.specifier)) for pin in pins())
    assert not any(pin.url for pin in pins())


def test_the_pins_are_complete():
    """Nothing looks dependencies up at set-up time, so the list must hold all of them."""
    pinned = {pin.name for pin in pins()}
    for name in sorted(pinned):
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f'{name} is not installed: this is not the environment of `make test`')
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate({'extra': ''}):
                # opencv-python-headless stands in for it, see direct.in
                assert normalise(requirement.name) in {*pinned, 'opencv-python'}, name


def test_requirement_files_name_no_index():
    for path in (ROOT / 'requirements').iterdir():
        assert not re.search(r'://|^\s*-', path.read_text(), re.MULTILINE), path
