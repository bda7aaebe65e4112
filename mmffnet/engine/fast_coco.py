"""mmdet's COCO metric, evaluated by faster-coco-eval where it is installed.

The registry imports this module when a config names its class, so that mmdet is needed no sooner.
"""

from types import FunctionType

from mmdet.evaluation.metrics import CocoMetric, coco_metric
from pycocotools import cocoeval

from ..registry import METRICS

try:
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster
except ImportError:  # optional (the extra `fast`)
    COCOeval = cocoeval.COCOeval
else:

    class COCOeval(COCOeval_faster):  # type: ignore[no-redef]
        """Matches and accumulates in C++; the numbers of the whole are pycocotools' own.

        faster-coco-eval would take the mAP at the largest number of detections, which is 1000 in
        mmdet; pycocotools takes it at 100.
        """

        summarize = cocoeval.COCOeval.summarize


@METRICS.register_module()
class FastCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` with its arguments and numbers, in less time.

    Without faster-coco-eval it is ``CocoMetric``.
    """

    # mmdet takes the evaluator from the globals of its module: the same code gets others here,
    # and CocoMetric itself stays as it is
    compute_metrics = FunctionType(
        CocoMetric.compute_metrics.__code__, vars(coco_metric) | dict(COCOeval=COCOeval)
    )
