"""What is found and read."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy_models import make_video

from mmffnet.errors import UsageError
from mmffnet.inference import find_sources, sources


def test_what_is_found(pictures, tmp_path):
    folder = tmp_path / 'photos'
    (folder / 'deep').mkdir(parents=True)
    (folder / 'results').mkdir()
    for name in ('a.png', 'b.PNG', 'deep/a.png', 'results/old.png'):
        shutil.copy(pictures[0], folder / name)
    (folder / 'notes.txt').write_text('')
    video = make_video(folder / 'clip.mp4')

    def names(*inputs):
        found = find_sources(list(inputs), out_dir=folder / 'results')
        return [source.name for source in found]

    assert names(folder) == ['a.png', 'b.PNG', 'deep/a.png']
    assert names(f'{folder}/*') == ['a.png', 'b.PNG', 'clip.mp4']
    assert names(str(folder / '**' / '*.png')) == ['a.png', 'deep/a.png']
    assert names(video, pictures[0], folder / 'notes.txt') == ['clip.mp4', '000.png', 'notes.txt']
    array = np.zeros((4, 6, 3), np.uint8)
    assert [s.name for s in find_sources(array)] == ['array']
    assert names(array, array) == ['array', 'array_2']
    assert [s.name for s in find_sources(str(pictures[1]))] == ['001.png']


def test_names_lead_back_to_the_pictures(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('x/a.png', 'x/a.jpg', 'y/a.png'):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(pictures[0], name)

    def names(*inputs):
        return [(s.file_name, s.name) for s in find_sources(list(inputs))]

    assert names('x') == [('a.jpg', 'a.jpg'), ('a.png', 'a_2.png')]
    assert names('*/*') == [
        ('x/a.jpg', 'x/a.jpg'), ('x/a.png', 'x/a_2.png'), ('y/a.png', 'y/a.png')
    ]  # fmt: skip
    assert names('x/a.png', 'y/a.png') == [('x/a.png', 'a.png'), ('y/a.png', 'a_2.png')]


@pytest.mark.parametrize(
    ('item', 'message'),
    [
        ('empty', "the folder 'empty' has no pictures"),
        ('no*.jpg', r"no picture or video matches the pattern 'no\*.jpg'"),
        ('none.jpg', "there is no picture, folder or video 'none.jpg'"),
        ('77', 'there is no camera 77'),
        ([], 'nothing to look at'),
        (np.zeros((4, 4), np.uint8), r'an array must be a picture \(H, W, 3\)'),
    ],
)
def test_what_is_not_there(tmp_path, monkeypatch, capfd, item, message):
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    Path('empty', 'notes.txt').write_text('')
    with pytest.raises(UsageError, match=message):
        find_sources(item)
    assert not capfd.readouterr().err  # OpenCV would have much to say about cameras


def test_what_is_read(pictures, tmp_path, capfd):
    half = tmp_path / 'half.png'
    half.write_bytes(pictures[0].read_bytes()[:4000])
    (tmp_path / 'empty.jpg').write_bytes(b'')
    (tmp_path / 'text.jpg').write_text('not a picture')
    bad_video = tmp_path / 'bad.mp4'
    bad_video.write_bytes(b'no video')
    clip = make_video(tmp_path / 'clip.mp4', frames=4, fps=8)
    paths = [pictures[1], half, tmp_path / 'empty.jpg', tmp_path / 'text.jpg', bad_video, clip]
    found = find_sources(paths)
    read = [item for source in found for item in sources.read(source)]
    good, *bad = read[:5]
    np.testing.assert_array_equal(good.pixels, cv2.imread(str(pictures[1])))
    assert [Path(one.where).name for one in bad] == [p.name for p in paths[1:5]]
    assert 'empty' in bad[1].why and 'not a picture' in bad[2].why and 'video' in bad[3].why
    frames = read[5:]
    assert [f.name for f in frames] == [f'clip/{i:06d}.png' for i in range(4)]
    assert frames[0].video.fps == 8 and [f.frame for f in frames] == [0, 1, 2, 3]
    assert sources.count(found[:4]) == 4 and sources.count(found[5:]) == 4
    cut = tmp_path / 'cut.avi'
    writer = cv2.VideoWriter(str(cut), cv2.VideoWriter.fourcc(*'MJPG'), 8, (160, 120))
    for _ in range(20):
        writer.write(np.random.randint(0, 256, (120, 160, 3), np.uint8))
    writer.release()
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    *frames, last = sources.read(*find_sources(cut))
    assert 2 < len(frames) < 18
    assert last.why == f'it ends after {len(frames)} of 20 frames'
    # libpng has a way of its own to say that a file is too short
    assert 'WARN' not in capfd.readouterr().err
