"""FFNet-1 distilled on ImageNet from RegNetY-16GF: the official recipe."""

_base_ = './ffnet1_in1k.py'

model = dict(
    type='mmffnet.DistilledClassifier',
    backbone=dict(drop_path_rate=0.02),
    teacher=dict(type='TimmClassifier', model_name='regnety_160'),
    teacher_checkpoint='https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth',
    distillation='hard',
    alpha=0.5,
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
