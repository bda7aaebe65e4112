import dataclasses
import fcntl
import hashlib
import importlib
import io
import json
import multiprocessing
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from range_server import range_server

from mmffnet.datasets.archives import DATASETS, Archive, DataSet
from mmffnet.datasets.prepare import make_train_ids, prepare
from mmffnet.errors import UsageError

fork = multiprocessing.get_context('fork')
COUNTS = {'train': 3, 'training': 3, 'val': 2, 'validation': 2}
# The 19 classes of Cityscapes, as its authors number them in the label images.
CITYSCAPES_IDS = {
    'road': 7,
    'sidewalk': 8,
    'building': 11,
    'wall': 12,
    'fence': 13,
    'pole': 17,
    'traffic light': 19,
    'traffic sign': 20,
    'vegetation': 21,
    'terrain': 22,
    'sky': 23,
    'person': 24,
    'rider': 25,
    'car': 26,
    'truck': 27,
    'bus': 28,
    'train': 31,
    'motorcycle': 32,
    'bicycle': 33,
}


def picture(suffix):
    pixels = np.random.randint(0, 34, (8, 16) if suffix == '.png' else (8, 16, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, 'PNG' if suffix == '.png' else 'JPEG')
    return data.getvalue()


def content(pattern, number):
    """What an archive holds where a pattern must match so many files."""
    for index in range(number):
        name = pattern.replace('*/*', f'town/town_{index:06}').replace('*', f'{index:012}')
        if name.endswith('.json'):
            split = 'train' if 'train' in name else 'val'
            yield name, json.dumps(annotations(COUNTS[split])).encode()
        else:
            yield name, picture(Path(name).suffix)


def annotations(number):
    ids = range(number)
    box = {'bbox': [1, 1, 5, 5], 'area': 25, 'iscrowd': 0, 'category_id': 1, 'segmentation': []}
    return {
        'images': [{'id': i, 'file_name': f'{i:012}.jpg', 'width': 160, 'height': 80} for i in ids],
        'annotations': [{'id': i + 1, 'image_id': i, **box} for i in ids],
        'categories': [{'id': 1, 'name': 'person'}],
    }


def small(files):
    return {
        pattern: next((COUNTS[part] for part in pattern.split('/') if part in COUNTS), None)
        or (1 if pattern.endswith('.json') else COUNTS[pattern.partition('2017')[0]])
        for pattern in files
    }


@pytest.fixture
def server():
    with range_server() as server:
        yield server


@pytest.fixture
def shrink(server):
    """Makes a small data set of the same layout, and has the server offer its archives."""

    def shrink(name, **changes):
        dataset = DATASETS[name]
        archives = []
        for archive in dataset.archives:
            files = small(archive.files)
            data = io.BytesIO()
            with zipfile.ZipFile(data, 'w') as file:
                file.writestr('README', archive.name)
                for pattern, number in files.items():
                    for member, body in content(pattern, number):
                        file.writestr(member, body)
            server.files[archive.name] = data.getvalue()
            new = dict(
                url=f'{server.url}/{archive.name}',
                files=files,
                size=len(data.getvalue()),
                checksum='sha256:' + hashlib.sha256(data.getvalue()).hexdigest(),
                register=None,
            )
            archives.append(dataclasses.replace(archive, **(new | changes)))
        return dataclasses.replace(
            dataset, archives=tuple(archives), train_ids=small(dataset.train_ids)
        )

    return shrink


def quick(dataset, root, *args, **kwargs):
    return prepare(dataset, root, *args, **{'pause': 0, **kwargs})


def state(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob('*')}


def build(base, part, root):
    """The data set of a base config of mmdet or mmseg, with the data below another root."""
    package = base.partition('::')[0]
    folder = Path(importlib.import_module(package).__file__).parent
    cfg = Config.fromfile(folder / '.mim' / 'configs' / '_base_' / base.partition('::')[2])
    dataset = cfg[f'{part}_dataloader'].dataset
    assert dataset.data_root.startswith('data/')
    dataset.data_root = str(root / dataset.data_root.removeprefix('data/'))
    dataset.pop('filter_cfg', None)
    module = importlib.import_module(f'{package}.datasets')
    return getattr(module, dataset.pop('type'))(**{**dataset, 'pipeline': []})


@pytest.mark.parametrize(
    ('name', 'base'),
    [
        ('coco', 'mmdet::datasets/coco_instance.py'),
        ('ade20k', 'mmseg::datasets/ade20k.py'),
        ('cityscapes', 'mmseg::datasets/cityscapes.py'),
    ],
)
@pytest.mark.slow
def test_the_base_configs_find_what_is_prepared(name, base, shrink, tmp_path, capsys):
    folder = quick(shrink(name), tmp_path)
    for part, number in (('train', 3), ('val', 2)):
        dataset = build(base, part, tmp_path)
        assert len(dataset) == number
        for index in range(number):
            info = dataset.get_data_info(index)
            assert Path(info['img_path']).is_file()
            if info.get('seg_map_path'):
                with Image.open(info['seg_map_path']) as labels, Image.open(info['img_path']) as im:
                    assert labels.size == im.size
    out = capsys.readouterr().out
    assert out.startswith(f'{name}: {folder} lacks ')
    assert f'{name}: complete in {folder} (' in out
    assert f'The archives in {tmp_path}/archives are not needed any more.' in out
    names = {path.name for path in folder.iterdir()} | {path.name for path in tmp_path.iterdir()}
    assert not any(name.startswith('.') for name in names)


@pytest.mark.parametrize('name', DATASETS)
def test_what_is_complete_is_left_alone(name, shrink, server, tmp_path, capsys):
    dataset = shrink(name)
    folder = quick(dataset, tmp_path)
    before, asked = state(tmp_path), len(server.requests)
    capsys.readouterr()
    server.files.clear()
    for archive in (tmp_path / 'archives').iterdir():
        archive.unlink()
    before = state(tmp_path)
    assert quick(dataset, tmp_path) == folder
    assert state(tmp_path) == before
    assert len(server.requests) == asked
    assert capsys.readouterr().out.startswith(f'{name}: complete in {folder} (')


def test_only_what_is_lacking_is_fetched(shrink, server, tmp_path):
    dataset = shrink('coco')
    folder = quick(dataset, tmp_path)
    (folder / 'val2017' / '000000000001.jpg').unlink()
    (folder / 'val2017' / '.hidden.jpg').touch()
    before = state(folder / 'val2017')
    for archive in (tmp_path / 'archives').iterdir():
        archive.unlink()
    server.requests.clear()
    quick(dataset, tmp_path)
    assert server.requests == [('val2017.zip', None)]
    after = state(folder / 'val2017')
    assert len(list((folder / 'val2017').glob('0*.jpg'))) == 2
    before.pop(folder / 'val2017', None)
    assert before.items() <= after.items()


def test_archives_that_are_there_are_taken(shrink, server, tmp_path):
    dataset = shrink('ade20k')
    store = tmp_path / 'elsewhere'
    store.mkdir()
    (store / 'ADEChallengeData2016.zip').write_bytes(server.files['ADEChallengeData2016.zip'])
    quick(dataset, tmp_path / 'data', store)
    assert server.requests == []
    assert [path.name for path in (tmp_path / 'data').iterdir()] == ['ade']


def test_without_a_connection_each_file_is_named(shrink, server, tmp_path):
    dataset = shrink('coco', url='http://127.0.0.1:9/file')
    with pytest.raises(UsageError) as caught:
        quick(dataset, tmp_path / 'data')
    names = ['annotations_trainval2017.zip', 'val2017.zip', 'train2017.zip']
    for name, problem in zip(names, str(caught.value).splitlines(), strict=True):
        assert re.match(rf'{name} cannot be downloaded \(.*Connection refused.*\): fetch', problem)
        assert 'fetch http://127.0.0.1:9/file by other means and put it at ' in problem
        assert problem.endswith(f'{tmp_path}/data/archives/{name}')
    assert [path.name for path in (tmp_path / 'data').iterdir()] == ['.coco.lock']


def test_what_came_before_the_connection_was_lost_is_kept(shrink, server, tmp_path):
    dataset = shrink('coco')
    size = dataset.archives[1].size
    server.faults = [{}, {'cut': size - 10}, *[{'status': 503}] * 3]
    with pytest.raises(UsageError) as caught:
        quick(dataset, tmp_path, attempts=3)
    assert [problem.partition(' ')[0] for problem in str(caught.value).splitlines()] == [
        'val2017.zip',
        'train2017.zip',
    ]
    assert not (tmp_path / 'coco').exists()
    server.requests.clear()
    quick(dataset, tmp_path)
    assert server.requests == [('val2017.zip', f'bytes={size - 10}-'), ('train2017.zip', None)]


def test_a_damaged_download_is_not_kept(shrink, server, tmp_path):
    dataset = shrink('ade20k')
    name = dataset.archives[0].name
    good = server.files[name]
    server.files[name] = good[:1000] + b'!' + good[1001:]
    with pytest.raises(UsageError, match=r'has the sha256 [0-9a-f]{64} instead of [0-9a-f]{64}: '):
        quick(dataset, tmp_path)
    assert list((tmp_path / 'archives').iterdir()) == []
    server.files[name] = good
    quick(dataset, tmp_path)


def test_another_archive_is_accepted_only_when_asked(shrink, server, tmp_path):
    dataset = shrink('ade20k', checksum='md5:0123', size=7)
    path = tmp_path / 'archives' / 'ADEChallengeData2016.zip'
    path.parent.mkdir()
    path.write_bytes(server.files[path.name])
    with pytest.raises(UsageError, match='bytes instead of 7: fetch http://'):
        quick(dataset, tmp_path)
    assert path.is_file()
    quick(dataset, tmp_path, checksum=False)


def test_archives_at_hand_are_looked_at_before_others_are_fetched(shrink, server, tmp_path):
    dataset = shrink('coco')
    path = tmp_path / 'archives' / dataset.archives[-1].name
    path.parent.mkdir()
    path.write_bytes(b'something else')
    with pytest.raises(UsageError, match=f'{path.name} .*: fetch http://'):
        quick(dataset, tmp_path)
    assert server.requests == []


def test_an_archive_of_unknown_checksum_is_checked_inside(shrink, server, tmp_path):
    dataset = shrink('ade20k', checksum=None, size=None)
    name = dataset.archives[0].name
    good = server.files[name]
    server.files[name] = good[:1000] + b'!' + good[1001:]
    with pytest.raises(UsageError, match='is damaged'):
        quick(dataset, tmp_path)
    assert list((tmp_path / 'ade').iterdir()) == []


def test_a_disk_that_is_too_small_is_noticed_before_the_download(shrink, server, tmp_path):
    with pytest.raises(UsageError, match=r'^6000000000.0 GB are needed'):
        quick(shrink('coco', size=10**18), tmp_path)
    assert server.requests == []


def test_files_too_many_are_named(shrink, server, tmp_path):
    folder = quick(shrink('ade20k'), tmp_path)
    extra = folder / 'ADEChallengeData2016' / 'images' / 'validation' / 'mine.jpg'
    extra.touch()
    with pytest.raises(UsageError, match=r'validation/\*.jpg matches 3 files instead of 2'):
        quick(shrink('ade20k'), tmp_path)


def test_files_too_few_in_the_archives_are_named(shrink, tmp_path):
    dataset = shrink('coco')
    train = dataclasses.replace(dataset.archives[2], files={'train2017/*.jpg': 118287})
    dataset = dataclasses.replace(dataset, archives=(*dataset.archives[:2], train))
    for _ in range(2):
        with pytest.raises(UsageError, match=r'lacks 118284 of 118287 train2017/\*.jpg, although'):
            quick(dataset, tmp_path)


def test_a_second_process_is_told_to_wait(shrink, server, tmp_path):
    dataset = shrink('coco')
    with (tmp_path / '.coco.lock').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r'lock .*\.coco\.lock.* could not be acquired'):
            quick(dataset, tmp_path)
    quick(dataset, tmp_path)


def test_killed_at_any_moment_it_is_completed_by_the_next_call(shrink, server, tmp_path):
    dataset = shrink('cityscapes')
    begin = time.monotonic()
    run_for(60, dataset, tmp_path / 'whole')
    duration = time.monotonic() - begin
    killed = 0
    for moment in range(8):
        root = tmp_path / str(moment)
        # ever earlier, so that a first run that happened to be slow still leaves some to be killed
        killed += run_for(duration * 0.6**moment, dataset, root)
        quick(dataset, root)
        assert {path.relative_to(root): path.read_bytes() for path in root.rglob('*.png')} == {
            path.relative_to(tmp_path / 'whole'): path.read_bytes()
            for path in (tmp_path / 'whole').rglob('*.png')
        }
    assert killed >= 2


def run_for(seconds, dataset, root):
    child = fork.Process(target=quick, args=(dataset, root))
    child.start()
    child.join(seconds)
    child.kill()
    child.join()
    return child.exitcode != 0


def test_what_must_be_fetched_by_hand(tmp_path):
    with pytest.raises(UsageError) as caught:
        prepare(DATASETS['cityscapes'], tmp_path / 'data')
    for name, number, problem in zip(
        ['gtFine_trainvaltest.zip', 'leftImg8bit_trainvaltest.zip'],
        [1, 3],
        str(caught.value).splitlines(),
        strict=True,
    ):
        assert problem == (
            f'{name} cannot be downloaded (register at '
            'https://www.cityscapes-dataset.com/register/ first): fetch '
            f'https://www.cityscapes-dataset.com/file-handling/?packageID={number} by other means '
            f'and put it at {tmp_path}/data/archives/{name}'
        )


def write_labels(folder, pixels, name='town_000000_000001'):
    path = folder / 'gtFine' / 'train' / 'town' / f'{name}_gtFine_labelIds.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path, path.with_name(path.name.replace('labelIds', 'labelTrainIds'))


def test_training_ids_are_those_of_the_classes_of_mmseg(tmp_path):
    from mmseg.datasets import CityscapesDataset

    classes = CityscapesDataset.METAINFO['classes']
    assert set(classes) == set(CITYSCAPES_IDS)
    _, made = write_labels(tmp_path, np.arange(34, dtype=np.uint8).reshape(2, 17))
    make_train_ids(tmp_path)
    with Image.open(made) as labels:
        found = np.asarray(labels)
    assert found.shape == (2, 17) and found.dtype == np.uint8
    expected = np.full(34, 255)
    for name, label in CITYSCAPES_IDS.items():
        expected[label] = classes.index(name)
    np.testing.assert_array_equal(found.ravel(), expected)


def test_training_ids_that_are_there_are_kept(tmp_path):
    _, made = write_labels(tmp_path, np.zeros((4, 4), np.uint8))
    made.write_bytes(b'mine')
    _, other = write_labels(tmp_path, np.zeros((4, 4), np.uint8), 'town_000000_000002')
    make_train_ids(tmp_path)
    assert made.read_bytes() == b'mine'
    assert other.is_file()


@pytest.mark.parametrize(
    'pixels',
    [
        np.full((4, 4), 34, np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((4, 4), np.uint16),
    ],
)
def test_what_is_no_label_image_is_named(pixels, tmp_path):
    path, made = write_labels(tmp_path, pixels)
    with pytest.raises(UsageError, match=f'^{path} .* no label image'):
        make_train_ids(tmp_path)
    assert not made.exists()


@pytest.mark.parametrize('data', [b'', b'no picture'])
def test_a_damaged_label_image_is_named(data, tmp_path):
    path, _ = write_labels(tmp_path, np.zeros((4, 4), np.uint8))
    path.write_bytes(data)
    with pytest.raises(UsageError, match=f'^{path} is damaged'):
        make_train_ids(tmp_path)


def test_a_data_set_of_ones_own(server, tmp_path):
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as file:
        file.writestr('notes/1.txt', 'one')
    server.files['notes.zip'] = data.getvalue()
    archive = Archive('notes.zip', f'{server.url}/notes.zip', {'notes/*.txt': 1})
    folder = quick(DataSet('notes', 'mine', (archive,)), str(tmp_path))
    assert (folder / 'notes' / '1.txt').read_text() == 'one'


def test_the_official_numbers():
    totals = {
        name: {n for one in dataset.archives for n in one.files.values() if n > 1}
        for name, dataset in DATASETS.items()
    }
    assert totals == {
        'coco': {118287, 5000},
        'ade20k': {20210, 2000},
        'cityscapes': {2975, 500},
    }
    lengths = {'md5': 32, 'sha256': 64}
    for dataset in DATASETS.values():
        for archive in dataset.archives:
            algorithm, _, digest = archive.checksum.partition(':')
            assert len(digest) == lengths[algorithm] and int(digest, 16)
            assert archive.register or archive.url.endswith(f'/{archive.name}')
