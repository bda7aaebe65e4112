"""Fixtures for trainings that are killed, stopped and resumed."""

from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def undisturbed(toy, tmp_path_factory) -> dict[bool, Path]:
    """Work directories of whole trainings: by epoch (True) and by iteration (False)."""
    folders = {}
    for by_epoch in (True, False):
        folder = folders[by_epoch] = tmp_path_factory.mktemp('undisturbed')
        child = toy.Child(folder / 'log', toy.toy_config(folder, by_epoch))
        assert child.wait() == 0, child.text
    return folders
