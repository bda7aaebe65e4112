"""The shapes data set for mmpretrain configs: ``custom_imports`` names this module."""

from typing import ClassVar

from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS

from .scenes import CLASSES
from .shapes import ensure_shapes


@DATASETS.register_module()
class ShapesClsDataset(CustomDataset):
    """Shapes as a folder for each class, made on first use.

    Args:
        data_root (str): Where the data set is or is to be made.
        shapes (dict, optional): ``train``, ``val``, ``size`` and ``seed`` as
            :func:`~mmffnet.datasets.ensure_shapes` takes them. Defaults to None, its defaults.
        **kwargs: The other arguments of mmpretrain's ``CustomDataset``.
    """

    METAINFO: ClassVar[dict] = {'classes': CLASSES}

    def __init__(self, *, data_root: str, shapes: dict | None = None, **kwargs) -> None:
        ensure_shapes(data_root, 'folder', **(shapes or {}))
        super().__init__(data_root=data_root, **kwargs)
