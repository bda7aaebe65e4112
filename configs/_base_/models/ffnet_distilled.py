"""FFNet distilled on ImageNet from RegNetY-16GF."""

_base_ = './ffnet_classifier.py'

model = dict(
    type='mmffnet.DistilledClassifier',
    teacher=dict(type='TimmClassifier', model_name='regnety_160'),
    teacher_checkpoint='https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth',
    distillation='hard',
    alpha=0.5,
)
