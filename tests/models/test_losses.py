"""ClassDiceLoss against its formula."""

import pytest
import torch
from mmengine.registry import MODELS

from mmffnet.models import ClassDiceLoss


def test_formula():
    torch.manual_seed(0)
    pred = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    target = torch.randint(0, 3, (2, 4, 5))
    target[0, :2] = 255
    weight = torch.rand(2, 4, 5)
    loss = MODELS.build(dict(type='mmffnet.ClassDiceLoss', loss_weight=2.0, smooth=0.5))
    expected = 0.0
    for c in range(3):
        overlap = sizes = 0.0
        for n, y, x in (target != 255).nonzero().tolist():
            p, t, w = pred[n, :, y, x].softmax(0)[c], float(target[n, y, x] == c), weight[n, y, x]
            overlap += p * t * w
            sizes += (p * p + t) * w
        expected += 2.0 * (1 - (2 * overlap + 0.5) / (sizes + 0.5)) / 3
    assert float(loss(pred, target, weight)) == pytest.approx(float(expected), abs=1e-12)
    assert loss.loss_name == 'loss_dice'


def test_perfect_absent_and_ignored():
    target = torch.tensor([[[0, 1], [1, 255]]])
    pred = torch.zeros(1, 3, 2, 2)
    pred.scatter_(1, target.where(target != 255, 0)[:, None], 100.0)
    pred.requires_grad_()
    loss = ClassDiceLoss()(pred, target)
    assert float(loss) == pytest.approx(0, abs=1e-6)  # the third class is nowhere
    ClassDiceLoss()(pred * 0.01, target).backward()
    assert pred.grad[..., 1, 1].abs().max() == 0 < pred.grad[..., 0, 0].abs().max()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_large_maps_and_half_precision(dtype):
    """Sums over many pixels do not lose what they are made of."""
    target = torch.zeros(1, 512, 1024, dtype=torch.long)
    target[..., 512:] = 1
    pred = torch.tensor([1.0, -1.0]).repeat_interleave(512).expand(1, 1, 512, 1024)
    pred = torch.cat([pred, -pred], 1)
    loss = float(ClassDiceLoss()(pred.to(dtype), target))
    assert loss == pytest.approx(float(ClassDiceLoss()(pred.double(), target)), abs=1e-5)


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match='at least 2 classes'):
        ClassDiceLoss()(torch.rand(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long))


def test_in_a_decode_head_of_mmseg():
    pytest.importorskip('mmseg')
    from mmseg.models.decode_heads import FCNHead

    losses = [dict(type='CrossEntropyLoss'), dict(type='mmffnet.ClassDiceLoss', loss_weight=0.5)]
    head = FCNHead(in_channels=4, channels=4, num_convs=0, num_classes=3, loss_decode=losses)
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 1, 8, 8))
    sample = type('Sample', (), dict(gt_sem_seg=None))
    samples = [sample() for _ in labels]
    for one, label in zip(samples, labels, strict=True):
        one.gt_sem_seg = type('Map', (), dict(data=label))()
    found = head.loss_by_feat(logits, samples)
    assert set(found) == {'loss_ce', 'loss_dice', 'acc_seg'}
    expected = 0.5 * ClassDiceLoss()(logits, labels.squeeze(1))
    assert torch.allclose(found['loss_dice'], expected)
