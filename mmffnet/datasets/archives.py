"""What COCO, ADE20K and Cityscapes consist of, and where they are published."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Archive:
    """A zip archive of a data set."""

    name: str
    url: str
    files: Mapping[str, int]  # patterns below the data set's folder, and how many files match them
    size: int | None = None
    checksum: str | None = None  # such as 'md5:0123...'
    register: str | None = None  # where to register, if it can be fetched by hand alone


@dataclass(frozen=True)
class DataSet:
    """A data set, its folder and its archives."""

    name: str
    folder: str
    archives: tuple[Archive, ...]
    train_ids: Mapping[str, int] = field(default_factory=dict)  # files that are made, as above


_COCO = DataSet(
    'coco',
    'coco',
    (
        Archive(
            'annotations_trainval2017.zip',
            'http://images.cocodataset.org/annotations/annotations_trainval2017.zip',
            {'annotations/instances_train2017.json': 1, 'annotations/instances_val2017.json': 1},
            252907541,
            'sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268',
        ),
        Archive(
            'val2017.zip',
            'http://images.cocodataset.org/zips/val2017.zip',
            {'val2017/*.jpg': 5000},
            815585330,
            'sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05',
        ),
        Archive(
            'train2017.zip',
            'http://images.cocodataset.org/zips/train2017.zip',
            {'train2017/*.jpg': 118287},
            19336861798,
            'sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929',
        ),
    ),
)

_ADE20K = DataSet(
    'ade20k',
    'ade',
    (
        Archive(
            'ADEChallengeData2016.zip',
            'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
            {
                'ADEChallengeData2016/images/training/*.jpg': 20210,
                'ADEChallengeData2016/images/validation/*.jpg': 2000,
                'ADEChallengeData2016/annotations/training/*.png': 20210,
                'ADEChallengeData2016/annotations/validation/*.png': 2000,
            },
            checksum='md5:7328b3957e407ddae1d3cbf487f149ef',
        ),
    ),
)

_REGISTER = 'https://www.cityscapes-dataset.com/register/'
_CITYSCAPES = DataSet(
    'cityscapes',
    'cityscapes',
    (
        Archive(
            'gtFine_trainvaltest.zip',
            'https://www.cityscapes-dataset.com/file-handling/?packageID=1',
            {
                'gtFine/train/*/*_gtFine_labelIds.png': 2975,
                'gtFine/val/*/*_gtFine_labelIds.png': 500,
            },
            252567705,
            'md5:4237c19de34c8a376e9ba46b495d6f66',
            _REGISTER,
        ),
        Archive(
            'leftImg8bit_trainvaltest.zip',
            'https://www.cityscapes-dataset.com/file-handling/?packageID=3',
            {
                'leftImg8bit/train/*/*_leftImg8bit.png': 2975,
                'leftImg8bit/val/*/*_leftImg8bit.png': 500,
            },
            11592327197,
            'md5:0a6e97e94b616a514066c9e2adb0c97f',
            _REGISTER,
        ),
    ),
    {
        'gtFine/train/*/*_gtFine_labelTrainIds.png': 2975,
        'gtFine/val/*/*_gtFine_labelTrainIds.png': 500,
    },
)

DATASETS = {dataset.name: dataset for dataset in (_COCO, _ADE20K, _CITYSCAPES)}
