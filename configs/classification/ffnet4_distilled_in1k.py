"""FFNet-4 distilled on ImageNet: as FFNet-3. No official recipe; the drop path rate is our choice."""

_base_ = './ffnet4_in1k.py'

model = dict(
    type='mmffnet.DistilledClassifier',
    backbone=dict(drop_path_rate=0.25),
    teacher=dict(type='TimmClassifier', model_name='regnety_160'),
    teacher_checkpoint='https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth',
    distillation='hard',
    alpha=0.5,
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
