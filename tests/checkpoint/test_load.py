"""Official weights load as they are, and a load that does not fit is an error."""

import copy
import hashlib
import logging
import os
import re
import stat
from argparse import Namespace

import official_reference as official
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn

import mmffnet
from mmffnet import checkpoint
from mmffnet.checkpoint import (
    convert_file,
    load_pretrained,
    load_strict,
    save_atomically,
)
from mmffnet.checkpoint.names import NameMap, OfficialFile, add_family, find_networks
from mmffnet.models.ffnet import FFNET_HEAD_NAMES, FFNET_NAMES, FFNET_SEG_NAMES

TINY = dict(depths=[1, 1, 2, 1], channels=[8, 16, 32, 64], stem_channels=8)


def build(arch=TINY, **kwargs):
    return MODELS.build(dict(type='FFNet', arch=arch, **kwargs))


def weights_of(backbone, seed=0):
    """Random weights under our names, the output norms left out as in a classifier."""
    generator = torch.Generator().manual_seed(seed)

    def values(key, like):
        if not like.is_floating_point():
            return like
        noise = torch.rand(like.shape, generator=generator)
        return (
            noise + 0.5 if key.endswith('var') else (noise - 0.5) / max(like[0].numel(), 2) ** 0.5
        )

    return {
        key: values(key, value)
        for key, value in backbone.state_dict().items()
        if not key.startswith('norm')
    }


def official_classifier(state, width=64):
    """What an official ImageNet checkpoint of this backbone holds."""
    renamed = {FFNET_NAMES.to_official(k): v for k, v in state.items()}
    norm = nn.BatchNorm2d(width)
    renamed.update({f'norm.{k}': v for k, v in norm.state_dict().items()})
    renamed.update({'head.weight': torch.rand(10, width), 'head.bias': torch.rand(10)})
    return renamed


def assert_arrived(model, state):
    own = model.state_dict()
    assert state
    for key, value in state.items():
        assert torch.equal(own[key], value), key


@pytest.fixture
def source():
    return weights_of(build())


@pytest.fixture
def log(caplog):
    """Messages of mmengine's current logger."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_instance('test_checkpoint', logger_name='test_checkpoint')
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)


# --------------------------------------------------------------------------- names


@pytest.mark.parametrize('name', ['det_ffnet_1', 'det_ffnet_4', 'cls_ffnet_3'])
def test_every_official_name_has_exactly_one_of_ours(name):
    kind, _, variant = name.partition('_')
    keys = [key for key, _ in official.official_keys(variant, kind)]
    ours = [FFNET_NAMES.to_ours(key) for key in keys]
    assert len(set(ours)) == len(ours)
    assert [FFNET_NAMES.to_official(key) for key in ours] == keys
    own = set(build(variant.replace('_', '')).state_dict())
    assert own - set(ours) == (set() if kind == 'det' else {k for k in own if k[:4] == 'norm'})
    # our names keep their meaning to themselves: no single letters, no bare numbers of layers
    assert not any(re.search(r'patch_embed|\.c\.|\.bn\.|fc\d|conv1\.conv1', key) for key in ours)


@pytest.mark.parametrize(
    ('kind', 'variant', 'names', 'digest'),
    [
        ('cls', 'ffnet_1', FFNET_NAMES, '3afd4f2176f9e52b'),
        ('cls', 'ffnet_2', FFNET_NAMES, 'e563f93fb08f9b59'),
        ('cls', 'ffnet_3', FFNET_NAMES, '40ae1ee0cebdad54'),
        ('cls', 'ffnet_4', FFNET_NAMES, '256d4f905d766805'),
        ('det', 'ffnet_1', FFNET_NAMES, 'e4b238fee1d96420'),
        ('det', 'ffnet_2', FFNET_NAMES, '8dc96c4ebf021eae'),
        ('det', 'ffnet_3', FFNET_NAMES, 'b1b04005412c130c'),
        ('det', 'ffnet_4', FFNET_NAMES, '64e182b5346ed1ad'),
        ('seg', 'ffnet_seg_pretrain', FFNET_SEG_NAMES, 'b5a104d24843ca09'),
        ('head', 'ade20k', FFNET_HEAD_NAMES, 'c1dd93d072e1dcc8'),
        ('head', 'cityscapes', FFNET_HEAD_NAMES, '4635128007f127b6'),
    ],
)
def test_names_are_those_of_version_0_1(kind, variant, names, digest):
    """The hashes are those of the list of both names that version 0.1 made."""
    keys = [key for key, _ in official.official_keys(variant, kind)]
    ours = [names.to_ours(key) for key in keys]
    pairs = [f'{key} {name}' for key, name in zip(keys, ours, strict=True)]
    assert hashlib.sha256('\n'.join(pairs).encode()).hexdigest().startswith(digest), pairs[:9]
    assert [names.to_official(name) for name in ours] == keys
    assert find_networks(keys, official=True) == {'': names}
    assert find_networks(ours, official=False) == {'': names}


def test_name_map():
    names = NameMap(
        {'stem.': 'patch_embed.proj.'},
        ('stages.{i}.blocks.{j}.', 'network.{2*i}.{j}.', {'token_norm.': 'norm1.'}),
        ('stages.{i}.downsample.', 'network.{2*i-1}.proj.', {}),
        ('norm{i}.', 'norm{2*i}.', {}),
    )
    pairs = {
        'stem.weight': 'patch_embed.proj.weight',
        'stages.0.blocks.12.token_norm.bias': 'network.0.12.norm1.bias',
        'stages.3.blocks.0.gate': 'network.6.0.gate',
        'stages.2.downsample.weight': 'network.3.proj.weight',
        'norm3.bias': 'norm6.bias',
        'head.bias': 'head.bias',
    }
    for ours, theirs in pairs.items():
        assert (names.to_official(ours), names.to_ours(theirs)) == (theirs, ours)
    # no number of a stage, no number at all
    for other in ('network.3.1.norm1.bias', 'norm5.bias', 'network.a.0.x', 'norm.bias'):
        assert names.to_ours(other) == other


def test_axes_of_size_one_do_not_matter(source):
    flat = {FFNET_NAMES.to_official(k): v for k, v in source.items()}
    flat = {k: v.flatten(1) if v.shape[2:] == (1, 1) else v for k, v in flat.items()}
    assert sum(v.ndim == 2 for v in flat.values()) > 10
    backbone = build(out_norm_cfg=None)
    backbone.load_state_dict(flat)
    assert_arrived(backbone, source)
    wrong = dict(flat, **{'stages.0.0.token_mixer.0.main.fc.c.weight': torch.rand(1, 8)})
    with pytest.raises(RuntimeError, match=r'stages\.0\.blocks\.0\.token_mixer\.query\.conv'):
        backbone.load_state_dict(wrong)


def test_files_that_no_program_can_download(monkeypatch):
    by_hand = OfficialFile('https://example.org/page', by_hand=True)
    monkeypatch.setitem(checkpoint.OFFICIAL_WEIGHTS, 'far', by_hand)
    with pytest.raises(ValueError, match=r'far.* by hand from https://example\.org/page'):
        load_pretrained(build(), 'mmffnet://far')
    with pytest.raises(ValueError, match='ffnet1'):
        add_family(weights={'ffnet1': OfficialFile('https://example.org')})


@given(st.text(st.characters(codec='ascii'), max_size=40))
def test_other_names_come_back_as_they_are(name):
    if not name.startswith(('stages.', 'patch_embed.', 'stem.')):
        assert FFNET_NAMES.to_ours(name) == name == FFNET_NAMES.to_official(name)


# --------------------------------------------------------------------------- init_cfg


@pytest.mark.parametrize('entry', ['state_dict', 'state_dict_ema', 'model', None])
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('names', ['official', 'ours'])
def test_init_cfg_loads_every_kind_of_file(entry, prefix, names, source, tmp_path, log):
    state = official_classifier(source) if names == 'official' else source
    state = {prefix + k: v for k, v in state.items()}
    content = state if entry is None else {entry: state, 'epoch': 3, 'args': Namespace(lr=0.1)}
    torch.save(content, tmp_path / 'weights.pth.tar')
    backbone = build(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth.tar')))
    backbone.init_weights()
    assert_arrived(backbone, source)
    assert (backbone.norm2.weight == 1).all()
    (line,) = [r.getMessage() for r in log.records if 'weights.pth.tar: loaded' in r.getMessage()]
    count = len([k for k in source if not k.endswith('num_batches_tracked')])
    assert f'loaded {count} of {count + 8} tensors into FFNet' in line
    assert 'new, not in the checkpoint: norm0.*, norm1.*, norm2.*, norm3.*' in line
    assert ('not in this network: norm.*, head.*' in line) == (names == 'official')
    assert not [r for r in log.records if r.levelno > logging.INFO]


def test_the_raw_weights_win_unless_the_average_is_asked_for(source, tmp_path):
    average = weights_of(build(), seed=1)
    path = str(tmp_path / 'both.pth')
    torch.save({'state_dict': source, 'state_dict_ema': average}, path)
    for use_ema, expected in ((False, source), (True, average)):
        backbone = build(init_cfg=dict(type='Pretrained', checkpoint=path, use_ema=use_ema))
        backbone.init_weights()
        assert_arrived(backbone, expected)
    torch.save({'state_dict': source}, path)
    with pytest.raises(ValueError, match='has no state_dict_ema or model_ema; it has state_dict'):
        load_pretrained(build(), path, use_ema=True)
    torch.save({'model_ema': source}, path)
    with pytest.raises(ValueError, match=r'it has model_ema .use_ema=True takes it'):
        load_pretrained(build(), path)


def test_a_file_with_a_bare_tensor(tmp_path):
    torch.save(torch.ones(3), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a\.pth holds no weights'):
        load_pretrained(build(), str(tmp_path / 'a.pth'))


@pytest.mark.parametrize('prefix', [None, 'backbone', 'backbone.'])
def test_the_backbone_of_a_whole_model(prefix, source, tmp_path):
    state = {'backbone.' + k: v for k, v in source.items()}
    state['decode_head.conv_seg.weight'] = torch.rand(3, 3)
    torch.save({'state_dict': state, 'meta': {'epoch': 1}}, tmp_path / 'segmentor.pth')
    backbone = build()
    load_pretrained(backbone, str(tmp_path / 'segmentor.pth'), prefix=prefix)
    assert_arrived(backbone, source)


def test_wrappers_leave_no_trace_in_names(source, tmp_path):
    state = {'module._orig_mod.' + key: value for key, value in source.items()}
    torch.save({'state_dict': state}, tmp_path / 'compiled.pth')
    backbone = build()
    load_pretrained(backbone, str(tmp_path / 'compiled.pth'))
    assert_arrived(backbone, source)


def test_classifier_backbone_takes_the_final_norm(source, tmp_path, log):
    state = official_classifier(source)
    state['norm.running_mean'] = torch.rand(64)
    torch.save({'state_dict': state}, tmp_path / 'a.pth')
    backbone = build(out_indices=3, out_norm_cfg=dict(type='BN'))
    load_pretrained(backbone, str(tmp_path / 'a.pth'))
    assert torch.equal(backbone.norm3.running_mean, state['norm.running_mean'])
    assert 'not in this network: head.*' in log.text and 'norm' not in log.text


def test_a_backbone_with_fewer_stages_leaves_the_others_out(source, tmp_path, log):
    torch.save(official_classifier(source), tmp_path / 'a.pth')
    backbone = build(out_indices=1)
    load_pretrained(backbone, str(tmp_path / 'a.pth'))
    assert_arrived(backbone, {k: source[k] for k in backbone.state_dict() if k in source})
    assert 'not in this network: norm.*, head.*, stages.2.*, stages.3.*' in log.text


def test_a_deployed_backbone_loads_official_weights(source, tmp_path):
    torch.save({'state_dict': official_classifier(source)}, tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    trained, deployed = build(init_cfg=init_cfg), build(init_cfg=init_cfg, deploy=True)
    x = torch.rand(1, 3, 64, 64)
    for model in (trained, deployed):
        model.init_weights()
        model.eval()
    for a, b in zip(trained(x), deployed(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------- what does not fit


def refused(content, tmp_path, match, arch=TINY, **kwargs):
    torch.save(content, tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match=match) as error:
        load_pretrained(build(arch), str(tmp_path / 'bad.pth'), **kwargs)
    assert 'bad.pth' in str(error.value)


WIDER, DEEPER = dict(TINY, channels=[16, 32, 64, 128]), dict(TINY, depths=[1, 1, 3, 1])


@pytest.mark.parametrize(
    ('arch', 'strict'),
    [(WIDER, True), (WIDER, False), (DEEPER, True), ('ffnet1', True), ('ffnet1', False)],
)
def test_another_variant_is_refused(arch, strict, source, tmp_path):
    state = official_classifier(source)
    refused(state, tmp_path, 'does not fit FFNet', arch, strict=strict)


def test_missing_and_unexpected_tensors_are_named(source, tmp_path):
    state = official_classifier(source)
    missing = dict(state)
    del missing['stages.2.2.channel_mixer.main.fc1.bias']
    refused(missing, tmp_path, r'1 missing \(stages.2.blocks.1.channel_mixer.expand.bias\)')
    refused({**state, 'stages.0.0.gate': torch.rand(1)}, tmp_path, r'1 unexpected \(stages.0.')
    wrong = dict(state)
    wrong['patch_embed.0.c.weight'] = torch.rand(8, 4, 3, 3)
    refused(wrong, tmp_path, r'size mismatch for stem.conv1.conv.weight')
    lightning = {'model.backbone.' + key: value for key, value in state.items()}
    refused(
        lightning, tmp_path, r"0 of \d+ tensors .*is it prefix='model\.backbone\.' that you mean"
    )


def test_files_without_weights(tmp_path, source):
    refused({'epoch': 3, 'note': 'no weights'}, tmp_path, 'has no state_dict or model')
    refused({'state_dict': {}}, tmp_path, 'no weights')
    refused({'state_dict': {'a': 3}}, tmp_path, 'no weights')
    refused({'layer1.weight': torch.rand(3)}, tmp_path, 'does not fit')
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth'):
        load_pretrained(build(), 'nowhere.pth')


def test_hybrids_load_what_they_have(source, tmp_path, log):
    torch.save(official_classifier(source), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    mixers = [None, None, None, dict(type='SelfAttention')]
    with pytest.raises(ValueError, match=r'missing \(stages.3.blocks.0.token_mixer.qkv'):
        build(token_mixer=mixers, init_cfg=init_cfg).init_weights()
    hybrid = build(token_mixer=mixers, init_cfg=dict(init_cfg, strict=False))
    hybrid.init_weights()
    assert_arrived(hybrid, {k: v for k, v in source.items() if 'stages.3.blocks' not in k})
    warnings = [r.getMessage() for r in log.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and 'missing (stages.3.blocks.0.token_mixer.qkv' in warnings[0]


# --------------------------------------------------------------------------- whole models


@pytest.mark.parametrize('names', ['official', 'ours'])
@pytest.mark.parametrize('prefix', ['backbone.', 'a.b.c.'])
def test_names_are_translated_at_any_depth(names, prefix, source):
    class Holder(nn.Module):
        def __init__(self, path):
            super().__init__()
            first, _, rest = path.partition('.')
            self.add_module(first, Holder(rest) if rest else build(out_norm_cfg=None))

    model = Holder(prefix.rstrip('.'))
    rename = FFNET_NAMES.to_official if names == 'official' else str
    state = {prefix + rename(k): v for k, v in source.items()}
    kept = dict(state)
    result = model.load_state_dict(state)
    assert not result.missing_keys and not result.unexpected_keys
    assert_arrived(model, {prefix + k: v for k, v in source.items()})
    assert state == kept


def test_official_detector_loads_through_load_from(tmp_path):
    """As Runner does it, into a real Mask R-CNN."""
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS as DETECTORS
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    cfg = Config.fromfile(mmffnet.config_path('detection/maskrcnn_ffnet2_coco.py')).model
    cfg.backbone.update(arch=TINY, init_cfg=None, norm_cfg=dict(type='BN'))
    cfg.neck.update(in_channels=TINY['channels'], out_channels=16)
    cfg.rpn_head.update(in_channels=16, feat_channels=16)
    for head in ('bbox_roi_extractor', 'mask_roi_extractor'):
        cfg.roi_head[head].out_channels = 16
    cfg.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16)
    cfg.roi_head.mask_head.update(in_channels=16, conv_out_channels=16)
    with DefaultScope.overwrite_default_scope('mmdet'):
        source, target = DETECTORS.build(cfg), DETECTORS.build(cfg)
    generator = torch.Generator().manual_seed(0)
    for param in source.parameters():
        param.data.copy_(torch.rand(param.shape, generator=generator))
    state = source.state_dict()
    official_state = checkpoint.convert_names(state, 'official')
    assert any(k.startswith('backbone.patch_embed.0.c') for k in official_state)
    torch.save({'state_dict': official_state, 'meta': {}}, tmp_path / 'detector.pth')
    load_checkpoint(target, str(tmp_path / 'detector.pth'), strict=True)
    assert_arrived(target, state)


@pytest.mark.parametrize(
    ('arch', 'blocks'), [(WIDER, '1 of 16 channels'), (DEEPER, '3 of 32 channels')]
)
def test_load_from_refuses_another_variant(arch, blocks, source, tmp_path):
    model = nn.Module()
    model.backbone = build(arch)
    state = {'backbone.' + k: v for k, v in official_classifier(source).items()}
    torch.save({'state_dict': state}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=f'another variant .*backbone.*2 of 32 channels.*{blocks}'):
        load_checkpoint(model, str(tmp_path / 'other.pth'))


def test_load_whole(source):
    model = nn.Module()
    model.backbone = build(out_norm_cfg=None)
    model.head = nn.Linear(3, 2)
    state = {'backbone.' + key: value for key, value in official_classifier(source).items()}
    state |= {'head.weight': torch.rand(2, 3), 'head.bias': torch.rand(2)}
    for key in [key for key in state if re.match(r'backbone\.(norm|head)\.', key)]:
        del state[key]
    assert load_strict(model, {'state_dict': {**state, 'other': torch.rand(1)}}, 'x') == ['other']
    assert torch.equal(model.head.bias, state['head.bias'])
    assert_arrived(model.backbone, source)

    other_head = {**state, 'head.weight': torch.rand(5, 3)}
    with pytest.raises(ValueError, match=r'x does not fit .* size mismatch for head\.weight'):
        load_strict(model, other_head, 'x')
    load_strict(model, other_head, 'x', r'backbone\.')
    for bare in (source, official_classifier(source)):
        with pytest.raises(ValueError, match=r'fill \d+ of .* bare backbone .*init_cfg=dict\('):
            load_strict(model, bare, 'x', r'backbone\.')
    del other_head['backbone.patch_embed.0.c.weight']
    with pytest.raises(ValueError, match=r'fill 1 of \d+ tensors: backbone\.stem\.conv1\.conv\.w'):
        load_strict(model, other_head, 'x', r'backbone\.')


# --------------------------------------------------------------------------- short names


def test_short_names(tmp_path, monkeypatch, source):
    """Through torch.hub's cache, where the file would be after a download."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    folder = tmp_path / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    torch.save({'state_dict': official_classifier(source)}, folder / 'ffnet_2_distillation.pth.tar')
    backbone = build(init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnet2-distilled'))
    backbone.init_weights()
    assert_arrived(backbone, source)
    with pytest.raises(ValueError, match=r"'ffnet7'; there are .*ffnet1, ffnet2"):
        load_pretrained(build(), 'mmffnet://ffnet7')


@pytest.mark.parametrize('own', ['ffnet-nano', 'ffnet-nano-seg'])
def test_weights_that_come_with_the_package(own, tmp_path, monkeypatch):
    path = checkpoint.OWN_WEIGHTS[own]
    assert path.stat().st_size < 3 * 2**20
    state = checkpoint.read_checkpoint(path)['state_dict']
    backbone = build('nano', init_cfg=dict(type='Pretrained', checkpoint=f'mmffnet://{own}'))
    backbone.init_weights()
    name = 'stages.2.blocks.1.token_mixer.query.conv.weight'
    assert torch.equal(backbone.state_dict()[name], state[f'backbone.{name}'].float())
    monkeypatch.setitem(checkpoint.OWN_WEIGHTS, own, tmp_path / 'gone.pth')
    with pytest.raises(FileNotFoundError, match='gone'):
        load_pretrained(backbone, f'mmffnet://{own}')


def test_official_files_have_distinct_addresses():
    files = checkpoint.OFFICIAL_WEIGHTS
    urls = [file.url for file in files.values()]
    assert len(set(urls)) == len(urls)
    ffnet = [name for name in files if re.search(r'ffnet\d|ffnetseg', name)]
    assert len(ffnet) == 17
    release = 'https://github.com/ysj9909/FFNet/releases/'
    assert all(checkpoint.official_url(name).startswith(release) for name in ffnet)


# --------------------------------------------------------------------------- files


def test_conversion_there_and_back_is_bit_exact(source, tmp_path):
    state = {'backbone.' + k: v for k, v in official_classifier(source).items()}
    state['neck.weight'] = torch.rand(3)
    torch.save({'state_dict': state}, tmp_path / 'official.pth')
    report = convert_file(str(tmp_path / 'official.pth'), tmp_path / 'ours.pth', 'ours')
    assert f'{len(state)} tensors, {len(source)} renamed to our names' in report
    assert 'kept backbone.*, neck.*' in report
    convert_file(str(tmp_path / 'ours.pth'), tmp_path / 'back.pth', 'official')
    ours = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    back = torch.load(tmp_path / 'back.pth', weights_only=True)['state_dict']
    assert set(ours) >= {'backbone.' + k for k in source}
    assert list(back) == list(state)
    assert all(torch.equal(back[k], state[k]) for k in state)


def test_a_classifier_gets_its_official_final_norm_back(source, tmp_path):
    torch.save(official_classifier(source), tmp_path / 'official.pth')
    backbone = build(out_indices=3, out_norm_cfg=dict(type='BN'))
    load_pretrained(backbone, str(tmp_path / 'official.pth'))
    converted = checkpoint.convert_names(backbone.state_dict(), 'official')
    expected = {k for k in official_classifier(source) if not k.startswith('head.')}
    assert set(converted) == expected


def test_conversion_refuses_what_it_cannot_do(source, tmp_path):
    torch.save(source, tmp_path / 'ours.pth')
    with pytest.raises(ValueError, match=r'ours.pth: no network of mmffnet with official names'):
        convert_file(str(tmp_path / 'ours.pth'), tmp_path / 'x.pth', 'ours')
    fused = mmffnet.reparameterize(build()).state_dict()
    torch.save(fused, tmp_path / 'fused.pth')
    with pytest.raises(ValueError, match='re-parameterised'):
        convert_file(str(tmp_path / 'fused.pth'), tmp_path / 'x.pth', 'official')
    with pytest.raises(ValueError, match="to must be 'ours' or 'official'"):
        checkpoint.convert_names(source, 'mine')
    (tmp_path / 'x.pth').write_text('mine')
    with pytest.raises(FileExistsError, match=r'x\.pth exists already'):
        convert_file(str(tmp_path / 'ours.pth'), tmp_path / 'x.pth', 'official')
    assert (tmp_path / 'x.pth').read_text() == 'mine'


def test_saving_is_atomic(tmp_path):
    path = tmp_path / 'new' / 'a.pth'
    save_atomically({'a': torch.ones(2)}, path)
    assert torch.load(path, weights_only=True)['a'].sum() == 2
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        save_atomically({}, path)
    with pytest.raises(Exception, match=r'(?i)pickle'):
        save_atomically({'a': lambda: 0}, path, force=True)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ['a.pth']
    save_atomically({'a': torch.zeros(2)}, path, force=True)
    assert torch.load(path, weights_only=True)['a'].sum() == 0


def test_saving_leaves_the_umask_alone(tmp_path, monkeypatch):
    """It belongs to the whole process, whose other threads create files as well."""
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, 'umask', lambda mask: pytest.fail('the umask was changed'))
            save_atomically({}, tmp_path / 'a.pth')
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'a.pth').stat().st_mode) == 0o640


def test_copies_of_a_network_load_on_their_own(source):
    twin = copy.deepcopy(build(out_norm_cfg=None))
    twin.load_state_dict({FFNET_NAMES.to_official(k): v for k, v in source.items()})
    assert_arrived(twin, source)
