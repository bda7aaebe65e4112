"""The shapes data set for mmseg configs: ``custom_imports`` names this module."""

from typing import ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from .scenes import CLASSES, PALETTE
from .shapes import ensure_shapes


@DATASETS.register_module()
class ShapesSegDataset(BaseSegDataset):
    """Shapes in ADE20K format, made on first use.

    As in ADE20K, label 0 is what nobody labelled (here the thin lines) and is ignored.

    Args:
        data_root (str): Where the data set is or is to be made.
        shapes (dict, optional): ``train``, ``val``, ``size`` and ``seed`` as
            :func:`~mmffnet.datasets.ensure_shapes` takes them. Defaults to None, its defaults.
        img_suffix (str): How the names of pictures end. Defaults to '.png'.
        reduce_zero_label (bool): Whether label 0 is ignored. Defaults to True.
        **kwargs: The other arguments of mmseg's ``BaseSegDataset``.
    """

    METAINFO: ClassVar[dict] = {
        'classes': ('background', *CLASSES),
        'palette': [(110, 110, 110), *PALETTE],
    }

    def __init__(
        self,
        *,
        data_root: str,
        shapes: dict | None = None,
        img_suffix: str = '.png',
        reduce_zero_label: bool = True,
        **kwargs,
    ) -> None:
        ensure_shapes(data_root, 'ade20k', **(shapes or {}))
        super().__init__(
            data_root=data_root,
            img_suffix=img_suffix,
            reduce_zero_label=reduce_zero_label,
            **kwargs,
        )
