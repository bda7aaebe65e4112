"""The synthetic shapes data set.

``ensure_shapes`` needs mmengine, for COCO's format pycocotools as well. The classes that read the
data in a config live in ``shapes_det`` (mmdet), ``shapes_seg`` (mmseg) and ``shapes_cls``
(mmpretrain), each imported only by the configs that name it in ``custom_imports``.
"""

from .scenes import CLASSES, PALETTE
from .shapes import ensure_shapes

__all__ = ['CLASSES', 'PALETTE', 'ensure_shapes']
