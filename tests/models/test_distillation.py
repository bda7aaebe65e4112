"""Learning from a teacher: the losses, and what the teacher must not do."""

import copy
import sys
from urllib.error import HTTPError

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

import mmffnet  # noqa: F401 - registers the models
from mmffnet.errors import DamagedCheckpointError

pytest.importorskip('mmpretrain')
from mmpretrain.structures import DataSample

TINY = dict(depths=(1, 1, 1, 1), channels=(8, 16, 32, 64), stem_channels=8)


def classifier(**changes):
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='FFNet', arch=TINY, out_indices=3, out_norm_cfg=dict(type='BN')),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=64),
        data_preprocessor=dict(num_classes=4),
    )
    return {**model, **changes}


def build(**settings):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(settings)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A teacher's checkpoint, made by mmengine's rules, whose logits are far from uniform."""
    torch.manual_seed(1)
    teacher = build(**classifier())
    teacher.init_weights()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.01)
            module.running_var.uniform_(0.5, 1.5)
    teacher.head.fc.weight.data.normal_()
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save({'state_dict': teacher.state_dict(), 'meta': {}}, path)
    return str(path)


def student(weights, **changes):
    kind = 'mmffnet.DistilledClassifier'
    settings = dict(type=kind, teacher=classifier(), teacher_checkpoint=weights)
    model = build(**classifier(**{**settings, **changes}))
    model.init_weights()
    return model


def batch(size=4):
    inputs = torch.randn(size, 3, 32, 32)
    samples = [
        DataSample().set_gt_score(score) for score in torch.rand(size, 4).softmax(1)
    ]  # as after mixup
    return inputs, samples


def teacher_logits(weights, inputs):
    reference = build(**classifier()).eval()
    reference.load_state_dict(torch.load(weights)['state_dict'])
    with torch.no_grad():
        return reference(inputs)


@pytest.mark.parametrize('alpha', [0.0, 0.5, 0.3, 1.0])
@pytest.mark.parametrize(('kind', 'temperature'), [('hard', 1.0), ('soft', 1.0), ('soft', 3.0)])
def test_losses_are_the_stated_ones(weights, kind, temperature, alpha):
    model = student(weights, distillation=kind, alpha=alpha, temperature=temperature).eval()
    inputs, samples = batch()
    losses = model.loss(inputs, samples)
    assert losses.keys() == {'loss_cls', 'loss_distillation'}
    ours, theirs = model(inputs), teacher_logits(weights, inputs)
    target = torch.stack([sample.gt_score for sample in samples])
    base = -(target * ours.log_softmax(1)).sum(1).mean()
    if kind == 'hard':
        expected = -ours.log_softmax(1)[range(4), theirs.argmax(1)].mean()
    else:
        p, q = ((x / temperature).softmax(1) for x in (theirs, ours))
        # averaged over pictures and classes
        expected = temperature**2 * (p * (p / q).log()).mean()
    torch.testing.assert_close(losses['loss_cls'], (1 - alpha) * base)
    torch.testing.assert_close(losses['loss_distillation'], alpha * expected)


def test_the_teacher_sees_the_mixed_pictures_in_eval_mode_without_gradients(weights):
    augments = dict(augments=dict(type='Mixup', alpha=0.8))
    model = student(weights, train_cfg=augments).train()
    seen = {}

    def look(name):
        def hook(module, args, output=None):
            seen[name] = (args[0].clone(), module.training, torch.is_grad_enabled())

        return hook

    model.teacher.register_forward_pre_hook(look('teacher'))
    model.backbone.register_forward_pre_hook(look('student'))
    optimizer = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1))
    before = copy.deepcopy(model.teacher.state_dict())
    pictures = [torch.full((3, 32, 32), value, dtype=torch.uint8) for value in range(0, 240, 30)]
    samples = [DataSample().set_gt_label(number % 4) for number in range(8)]
    logs = model.train_step(
        dict(inputs=pictures, data_samples=samples), build_optim_wrapper(model, optimizer)
    )
    assert float(logs['loss']) == pytest.approx(
        float(logs['loss_cls'] + logs['loss_distillation']), rel=1e-5
    )
    (mixed, training, grad), (own, *student_state) = seen['teacher'], seen['student']
    assert torch.equal(mixed, own) and not torch.equal(own, torch.stack(pictures).float())
    assert (training, grad) == (False, False) and student_state == [True, True]
    after = model.teacher.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not any(p.requires_grad or p.grad is not None for p in model.teacher.parameters())


def test_the_teacher_is_no_part_of_the_model(weights):
    """Neither in checkpoints and averages nor in the optimizer; these are those of the student."""
    model = student(weights)
    plain = build(**classifier())
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    own = {id(p) for p in model.parameters()}
    assert not own & {id(p) for p in model.teacher.parameters()}
    model.train()
    assert not model.teacher.training
    assert copy.deepcopy(model).teacher is model.teacher


def test_testing_the_student_needs_no_teacher():
    model = build(
        **classifier(
            type='mmffnet.DistilledClassifier',
            teacher=classifier(),
            teacher_checkpoint='nowhere.pth',
        )
    ).eval()
    (result,) = model.predict(torch.rand(1, 3, 32, 32))
    assert result.pred_score.shape == (4,)
    with pytest.raises(RuntimeError, match='the teacher is built by init_weights'):
        model.loss(*batch())


def test_a_teacher_without_weights_is_an_error_before_training(weights, tmp_path):
    with pytest.raises(ValueError, match='teacher has no weights: set teacher_checkpoint'):
        student(None)
    partial = classifier(init_cfg=dict(type='Pretrained', checkpoint=weights))
    with pytest.raises(ValueError, match='teacher has no weights'):
        student(None, teacher=partial)  # mmengine would load whatever fits
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth does not exist'):
        student('nowhere.pth')
    other = classifier(head=dict(type='LinearClsHead', num_classes=7, in_channels=64))
    with pytest.raises(ValueError, match=r'teacher\.pth does not fit the teacher ImageClassifier'):
        student(weights, teacher=other)
    state = torch.load(weights)['state_dict']
    del state['head.fc.bias']
    torch.save(state, tmp_path / 'partial.pth')
    with pytest.raises(ValueError, match=r'partial\.pth does not fit .*head\.fc\.bias'):
        student(str(tmp_path / 'partial.pth'))


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (HTTPError('https://host/x.pth', 404, 'Not Found', None, None), OSError),
        (UnicodeDecodeError('utf-8', b'x', 0, 1, 'invalid'), ValueError),
        (RuntimeError('invalid hash value'), DamagedCheckpointError),
    ],
)
def test_a_teacher_that_cannot_be_read(monkeypatch, error, expected):
    """Whatever arguments errors of that type are made of."""

    def load(*args, **kwargs):
        raise error

    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', load)
    with pytest.raises(expected, match=r'^teacher_checkpoint some\.pth: ') as caught:
        student('some.pth')
    assert type(caught.value) is expected and caught.value.__cause__ is error


def test_a_teacher_with_other_classes_is_an_error(tmp_path):
    settings = classifier(head=dict(type='LinearClsHead', num_classes=7, in_channels=64))
    path = str(tmp_path / 'seven.pth')
    torch.save(build(**settings).state_dict(), path)
    with pytest.raises(ValueError, match=r'\(4, 7\), the student of \(4, 4\)'):
        student(path, teacher=settings).loss(*batch())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(distillation='medium'), "distillation must be one of .* got 'medium'"),
        (dict(alpha=1.5), 'alpha must be a number from 0 to 1, got 1.5'),
        (dict(temperature=0), 'temperature must be a positive number, got 0'),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        student('unread.pth', **settings)


def test_a_teacher_from_timm(tmp_path):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    original = timm.create_model('test_resnet', num_classes=4).eval()
    path = str(tmp_path / 'timm.pth')
    torch.save({'model': original.state_dict()}, path)  # as the files of DeiT are
    teacher = dict(type='TimmClassifier', model_name='test_resnet', num_classes=4)
    model = student(path, teacher=teacher).eval()
    inputs, samples = batch()
    inputs = F.interpolate(inputs, scale_factor=2)
    with torch.no_grad():
        theirs = original(inputs)
    expected = F.cross_entropy(model(inputs), theirs.argmax(1))
    torch.testing.assert_close(2 * model.loss(inputs, samples)['loss_distillation'], expected)


def test_the_official_teacher_is_known_to_timm():
    timm = pytest.importorskip('timm')
    cfg = timm.get_pretrained_cfg('regnety_160.deit_in1k')
    assert cfg.url == 'https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth'
    assert (cfg.mean, cfg.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_without_mmpretrain_the_error_says_what_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, 'mmffnet.models.distillation', raising=False)
    monkeypatch.setitem(sys.modules, 'mmpretrain.models', None)
    message = 'DistilledClassifier is a classifier for mmpretrain, which cannot be imported'
    stand_in = MODELS.get('mmffnet.DistilledClassifier')
    with pytest.raises(ImportError, match=message):
        stand_in()


def test_pretrained_weights_of_timm_are_kept(tmp_path):
    """timm's own init_weights() would draw new ones."""
    timm = pytest.importorskip('timm')
    there = timm.create_model('test_vit', num_classes=4).state_dict()
    torch.save(there, tmp_path / 'vit.pth')
    overlay = dict(file=str(tmp_path / 'vit.pth'), num_classes=4, hf_hub_id=None, url='')
    teacher = dict(type='TimmClassifier', model_name='test_vit', pretrained=True, num_classes=4)
    model = student(None, teacher=dict(teacher, pretrained_cfg_overlay=overlay))
    found = model.teacher.model.state_dict()
    assert found.keys() == there.keys()
    assert all(torch.equal(found[name], value) for name, value in there.items())
