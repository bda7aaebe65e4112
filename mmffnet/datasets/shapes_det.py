"""The shapes data set for mmdet configs: ``custom_imports`` names this module."""

from typing import ClassVar

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from .scenes import CLASSES, PALETTE
from .shapes import ensure_shapes


@DATASETS.register_module()
class ShapesDetDataset(CocoDataset):
    """Shapes in COCO format, made on first use.

    mmengine builds the data set before the evaluator of the same loop, so a ``CocoMetric`` finds
    its annotation file in place.

    Args:
        data_root (str): Where the data set is or is to be made.
        shapes (dict, optional): ``train``, ``val``, ``size`` and ``seed`` as
            :func:`~mmffnet.datasets.ensure_shapes` takes them. Defaults to None, its defaults.
        **kwargs: The other arguments of mmdet's ``CocoDataset``.
    """

    METAINFO: ClassVar[dict] = {'classes': CLASSES, 'palette': PALETTE}

    def __init__(self, *, data_root: str, shapes: dict | None = None, **kwargs) -> None:
        ensure_shapes(data_root, 'coco', **(shapes or {}))
        super().__init__(data_root=data_root, **kwargs)
