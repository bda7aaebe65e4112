"""The device that the tests of models run on."""

from collections.abc import Iterator

import pytest
from mmcv_operators import DEVICES
from torch.backends import cudnn


@pytest.fixture(scope='session', params=DEVICES)
def device(request) -> Iterator[str]:
    """'cpu', and where there is a GPU 'cuda' as well, exact and repeatable."""
    with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield request.param
