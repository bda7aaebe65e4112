"""Fixtures for all tests."""

import gc
import importlib
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import official_reference
import pytest
import quick_configs  # noqa: F401
import reference_numbers
import torch
from mmengine.registry import DefaultScope
from tqdm import tqdm

# A forked process that a test kills while it draws a bar would keep the lock of all processes.
tqdm.set_lock(threading.RLock())

if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'  # read when triton is imported


def pytest_collection_finish() -> None:
    # Modules stay: mmengine collects garbage for each data set, and would look through all of them.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def _one_thread() -> None:
    # More threads gain little on small maps, and waiting for each other they take twenty times as
    # long when the machine is busy.
    torch.set_num_threads(1)
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # for the processes that tests start


@pytest.fixture(scope='session', autouse=True)
def _packages_by_path() -> Iterator[None]:
    from mmffnet.config_types import packages_by_path  # after what is set above

    with packages_by_path():  # as the tools read configs
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_default_scope() -> Iterator[None]:
    # A runner leaves its scope behind, where later tests would find it.
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session')
def official() -> ModuleType:
    """The independent implementation of the official networks, `tests/official_reference.py`."""
    return official_reference


@pytest.fixture(scope='session')
def numbers() -> ModuleType:
    """The committed compact numbers and the measure of deviation, `tests/reference_numbers.py`."""
    return reference_numbers


@pytest.fixture(scope='session')
def fixture_dir() -> Path:
    """The folder with the full outputs of the official code, too large to be committed."""
    root = os.environ.get('MMFFNET_TEST_DATA')
    if not root:
        pytest.skip('MMFFNET_TEST_DATA is not set: no full outputs of the official code')
    folder = Path(root) / 'fixtures'
    if not any(folder.glob('*.out.npz')):
        pytest.skip(f'MMFFNET_TEST_DATA: there is no {folder}/*.out.npz')
    return folder


@pytest.fixture(scope='session')
def toy() -> ModuleType:
    """`tests/toy_training.py`, which processes can import, too."""
    tests = str(Path(__file__).parent)
    os.environ['PYTHONPATH'] = os.pathsep.join([tests, os.environ.get('PYTHONPATH', '')])
    return importlib.import_module('toy_training')


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium, driven by selenium."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='pip install selenium')
    names = ('chromium', 'chromium-browser', 'google-chrome')
    program = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which('chromedriver')
    if not program or not driver:
        pytest.skip('no chromium or chromedriver: apt-get install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = program
    # containers have neither a sandbox nor much shared memory
    for option in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage'):
        options.add_argument(option)
    options.add_argument('--window-size=1300,1000')
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()
