"""Planning, running, resuming and comparing, with a classifier of noise."""

import csv
import json

import pytest
from mmengine.registry import MODELS

from mmffnet.benchmark import accuracy
from mmffnet.benchmark.accuracy import Job, describe, own_entries, plan, rows, run, save
from mmffnet.benchmark.metafiles import Entry
from mmffnet.checkpoint import save_atomically
from mmffnet.engine.runner import build_runner
from mmffnet.errors import UsageError


@pytest.fixture
def toys(toy, tmp_path, monkeypatch):
    """A config, its checkpoint, and the score that it gets."""
    monkeypatch.setitem(accuracy.METRICS, 'score', ('mean', 100.0))
    cfg = toy.toy_config(tmp_path / 'test')
    cfg.dump(tmp_path / 'toy.py')
    model = MODELS.build(cfg.model)
    save_atomically(dict(state_dict=model.state_dict()), tmp_path / 'toy.pth')
    cfg.load_from = str(tmp_path / 'toy.pth')
    score = build_runner(cfg).test()['mean']
    return str(tmp_path / 'toy.py'), str(tmp_path / 'toy.pth'), 100 * score


def done(entry, tta=False, **metrics):
    job = Job(entry, tta, None, {})
    job.outcome = dict(metrics=metrics, parameters=2_500_000, macs=6_000_000_000, size=[64, 96])
    return job


def test_differences():
    entry = Entry('a', dataset='COCO', published={'box AP': 51.8, 'mask AP': 44.9})
    table = rows([done(entry, **{'coco/bbox_mAP': 0.517, 'coco/segm_mAP': 0.451})])
    assert [row['measured'] for row in table] == [51.7, 45.1]
    assert [row['difference'] for row in table] == [-0.1, 0.2]
    assert [row['outside'] for row in table] == [False, True]
    text = describe(table)
    assert '| a     | COCO | mask AP |     44.90 |    45.10 |  +0.20 (!) |' in text
    assert '6.0 at 64x96' in text and ' 2.50 |' in text
    assert text.endswith('(!) 1 of 2 differ by more than 0.1 points.\n')


def test_augmented_numbers_have_rows_of_their_own():
    entry = Entry('a', published={'mIoU': 47.1, 'mIoU(ms+flip)': 47.8})
    table = rows([done(entry, mIoU=47.15), done(entry, tta=True, mIoU=47.5)])
    assert [(r['metric'], r['difference']) for r in table] == [
        ('mIoU', 0.05),
        ('mIoU(ms+flip)', -0.3),
    ]


def test_augmentation_for_what_is_published(tmp_path):
    both, one = {'mIoU': 47.1, 'mIoU(ms+flip)': 47.8}, {'mIoU(ms+flip)': 51.5}
    entries = [Entry('both', published=both), Entry('one', published=one), Entry('none')]
    for tta, expected in (
        (False, [('both', False), ('one', True), ('none', False)]),
        (True, [('both', False), ('both', True), ('one', True), ('none', False)]),
    ):
        assert [(job.entry.name, job.tta) for job in plan(entries, tmp_path, tta=tta)] == expected


def test_a_metric_that_is_not_given():
    (row,) = rows([done(Entry('a', published={'box AP': 51.8}), other=1.0)])
    assert row['measured'] is None and not row['outside']
    assert row['note'] == 'the evaluator gave no box AP' and row['status'] == 'missing'
    entry = Entry('a', published={'box AP': 51.8, 'mask AP': 44.0})
    box, mask = rows([done(entry, **{'coco/segm_mAP': 0.44})])
    assert box['note'] and (mask['note'], mask['status']) == ('', 'done')


def test_models_of_one_name(tmp_path):
    pairs = ['a/config.py', 'a/epoch_12.pth', 'b/config.py', 'b/epoch_12.pth']
    with pytest.raises(UsageError, match='config/epoch_12 and another model would write the same'):
        plan(own_entries(pairs), tmp_path)


@pytest.mark.slow
def test_what_is_missing(tmp_path, monkeypatch):
    pytest.importorskip('mmseg')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    url = 'https://example.com/some.pth'
    entries = [
        Entry('no config', weights=url, published={'Top 1 Accuracy': 81.3}),
        Entry('no data', 'segmentation/upernet_ffnet2_ade20k.py', 'none.pth'),
        Entry('address', 'segmentation/semfpn_nano_shapes.py', url),
        Entry('official', 'segmentation/semfpn_nano_shapes.py', 'mmffnet://ffnet2'),
    ]
    jobs = plan(entries, tmp_path / 'out', tta=True)
    table = rows(jobs)
    assert [row['status'] for row in table] == ['missing', 'missing', 'to download', 'to download']
    assert table[0]['note'] == f'it has no config; to be downloaded: {url}'
    assert "the data folder 'data/ade/ADEChallengeData2016' does not exist" in table[1]['note']
    assert "there is no checkpoint file 'none.pth'" in table[1]['note']
    cache = tmp_path / 'hub' / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    (cache / 'ffnet_2.pth.tar').touch()
    assert [row['status'] for row in rows(jobs)][2:] == ['to download', 'to run']
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_failing_going_on_and_resuming(toys, tmp_path):
    config, checkpoint, score = toys
    broken = tmp_path / 'broken.pth'
    broken.write_bytes(b'no checkpoint')
    entries = [
        Entry('broken', config, str(broken), published={'score': 1.0}),
        Entry('good', config, checkpoint, 'noise', {'score': round(score + 0.3, 2)}),
    ]
    out, said = tmp_path / 'out', []
    jobs = plan(entries, out)
    assert [row['status'] for row in rows(jobs)] == ['to run', 'to run']
    run(jobs, said.append)
    table = rows(jobs)
    assert [row['status'] for row in table] == ['failed', 'done']
    assert table[0]['note'].startswith(f'cannot read {broken} (13 bytes)')
    assert table[1]['measured'] == pytest.approx(score, abs=0.006)
    assert table[1]['difference'] == pytest.approx(-0.3, abs=0.01) and table[1]['outside']
    assert len([text for text in said if 'running, log in' in text]) == 2

    text = save(jobs, out)
    assert (out / 'accuracy.md').read_text() == text
    with (out / 'accuracy.csv').open() as file:
        assert [row['status'] for row in csv.DictReader(file)] == ['failed', 'done']
    content = json.loads((out / 'accuracy.json').read_text())
    assert content['environment']['torch'] and len(content['rows']) == 2

    # what is done stays done, as long as nothing changes
    assert [job.outcome is None for job in plan(entries, out)] == [True, False]
    assert plan(entries, out, fuse=True)[1].outcome is None
    assert plan(entries, out, cfg_options=['test_dataloader.batch_size=2'])[1].outcome is None
    (tmp_path / 'toy.pth').touch()
    again = plan(entries, out)
    assert again[1].outcome is None
    result = json.loads((out / 'good.json').read_text())
    (out / 'good.json').write_text(json.dumps(result)[:-9])  # half written
    assert plan(entries, out)[1].outcome is None


def test_own_models():
    entries = own_entries(['a/x.py', 'a/1.pth', 'b/x.py', 'b/2.pth'])
    assert [entry.name for entry in entries] == ['x/1', 'x/2']
    assert (entries[1].config, entries[1].weights) == ('b/x.py', 'b/2.pth')
    with pytest.raises(UsageError, match=r'there is none for x\.py'):
        own_entries(['x.py'])
