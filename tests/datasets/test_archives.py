import hashlib
import io
import multiprocessing
import os
import random
import resource
import signal
import stat
import sys
import time
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from range_server import range_server

from mmffnet.datasets.archives import (
    PreparationError,
    Progress,
    check_space,
    download,
    show_bytes,
    stage_of,
    unpack,
    verify,
)

DATA = random.Random(0).randbytes(1_000_000)
fork = multiprocessing.get_context('fork')


@pytest.fixture
def server():
    with range_server() as server:
        server.files['a.zip'] = DATA
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / 'store' / 'a.zip.part'


def make_zip(path, files):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def fetch(server, target, **kwargs):
    download(f'{server.url}/a.zip', target, **{'pause': 0, **kwargs})


def test_a_download_says_how_far_it_is(server, target, capsys):
    fetch(server, target, size=len(DATA))
    assert target.read_bytes() == DATA
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 11
    assert all(line.startswith('downloading a.zip: ') for line in lines)
    assert '1.0 MB of 1.0 MB (100 %)' in lines[-1]


def test_a_broken_connection_is_taken_up_where_it_broke(server, target):
    server.faults = [{'cut': 300_000}, {'status': 503}, {'cut': 100_000}]
    fetch(server, target)
    assert target.read_bytes() == DATA
    ranges = [None, 'bytes=300000-', 'bytes=300000-', 'bytes=400000-']
    assert server.requests == [('a.zip', wanted) for wanted in ranges]


def test_a_silent_connection_is_given_up(server, target):
    server.faults = [{'stall': 600_000}]
    fetch(server, target, timeout=0.2)
    assert target.read_bytes() == DATA
    assert server.requests == [('a.zip', None), ('a.zip', f'bytes={2 << 18}-')]


def test_only_attempts_that_bring_nothing_count(server, target):
    server.faults = [{'cut': 50_000}] * 10
    fetch(server, target, attempts=1)
    assert target.read_bytes() == DATA


def test_a_killed_download_is_continued_by_the_next_call(server, target):
    server.faults = [{'stall': 700_000}]
    child = fork.Process(target=fetch, args=(server, target))
    child.start()
    deadline = time.monotonic() + 10
    while not (target.is_file() and target.stat().st_size >= 2 << 18):
        assert time.monotonic() < deadline and child.is_alive()
        time.sleep(0.01)
    child.kill()
    child.join()
    assert DATA.startswith(target.read_bytes())
    fetch(server, target)
    assert target.read_bytes() == DATA
    assert server.requests[1:] == [('a.zip', f'bytes={2 << 18}-')]


def test_a_server_without_ranges_sends_all_of_it_again(server, target):
    server.ranges = False
    server.faults = [{'cut': 300_000}]
    fetch(server, target)
    assert target.read_bytes() == DATA
    assert len(server.requests) == 2


def test_what_is_complete_is_not_asked_for_again(server, target):
    fetch(server, target)
    fetch(server, target, size=len(DATA))
    assert len(server.requests) == 1
    fetch(server, target)  # of unknown length: the server says that there is no more
    assert server.requests[1:] == [('a.zip', f'bytes={len(DATA)}-')]
    assert target.read_bytes() == DATA


@pytest.mark.parametrize('fault', [{'cut': 0, 'shift': 7}, {'shift': 7}])
def test_the_wrong_part_of_the_file_is_not_appended(server, target, fault):
    server.faults = [{'cut': 1000}, fault]
    fetch(server, target)
    assert target.read_bytes() == DATA
    assert server.requests[-1] == ('a.zip', None)


def test_a_longer_file_is_begun_again(server, target):
    target.parent.mkdir()
    target.write_bytes(DATA + b'more')
    fetch(server, target)
    assert target.read_bytes() == DATA


def test_a_server_that_says_no_length(server, target, capsys):
    server.faults = [{'length': None}]
    fetch(server, target)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize('status', [403, 404])
def test_what_is_refused_is_not_asked_for_again(server, target, status):
    server.faults = [{'status': status}]
    with pytest.raises(ConnectionError, match=str(status)):
        fetch(server, target)
    assert len(server.requests) == 1
    assert not target.parent.exists()


def test_no_connection(server, target):
    server.faults = [{'status': 500}] * 9
    with pytest.raises(ConnectionError, match='500'):
        fetch(server, target, attempts=3)
    assert len(server.requests) == 3
    with pytest.raises(ConnectionError, match='refused'):
        download('http://127.0.0.1:9/a.zip', target, attempts=2, pause=0)


def test_a_file_of_another_length_is_not_downloaded(server, target):
    with pytest.raises(PreparationError, match='is 1000000 bytes long, not 999999'):
        fetch(server, target, size=999_999)
    assert not target.exists()


def test_a_download_too_large_for_the_disk_does_not_begin(server, target):
    server.faults = [{'length': 10**18}]
    with pytest.raises(PreparationError, match=r'^1000000000.0 GB are needed on the disk of /.*'):
        fetch(server, target)
    assert not target.exists()


def in_child(function, *args):
    """The text of the error that a function raises in a process whose files must stay small."""
    receiver, sender = fork.Pipe(duplex=False)

    def body():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            function(*args)
        except OSError as error:
            sender.send(str(error))

    child = fork.Process(target=body)
    child.start()
    child.join(20)
    return receiver.recv() if receiver.poll() else None


def test_a_full_disk_is_reported_with_the_name_of_the_file(server, target, tmp_path):
    assert in_child(fetch, server, target) == f"[Errno 27] File too large: '{target}'"
    fetch(server, target)
    assert target.read_bytes() == DATA
    path = make_zip(tmp_path / 'b.zip', {'x/big': DATA})
    name = stage_of('b.zip', tmp_path) / 'x' / 'big'
    assert in_child(unpack, path, tmp_path, ['x']) == f"[Errno 27] File too large: '{name}'"
    unpack(path, tmp_path, ['x'])
    assert (tmp_path / 'x' / 'big').read_bytes() == DATA


def test_verify(tmp_path):
    path = tmp_path / 'a.zip'
    path.write_bytes(DATA)
    verify(path, None, None)
    verify(path, len(DATA), f'md5:{hashlib.md5(DATA).hexdigest()}')
    verify(path, None, f'sha256:{hashlib.sha256(DATA).hexdigest()}')
    with pytest.raises(PreparationError, match='has 1000000 bytes instead of 5'):
        verify(path, 5, None)
    with pytest.raises(PreparationError, match=r'its MD5 is [0-9a-f]{32} instead of 0123$'):
        verify(path, None, 'md5:0123')


def test_unpack(tmp_path, capsys):
    files = {'x/1': b'one', 'x/y/2': b'two' * 100_000, 'x/empty': b''}
    path = make_zip(tmp_path / 'a.zip', {**files, 'z/3': b'other', 'README': b'other'})
    unpack(path, tmp_path / 'out', ['x'])
    assert tree(tmp_path / 'out') == files
    assert 'unpacking a.zip: 300.0 kB of 300.0 kB (100 %)' in capsys.readouterr().err


def test_what_is_there_is_not_written_again(tmp_path):
    path = make_zip(tmp_path / 'a.zip', {'x/1': b'one', 'x/2': b'two', 'x/3': b'three'})
    out = tmp_path / 'out'
    unpack(path, out, ['x'])
    (out / 'x' / '2').unlink()
    (out / 'x' / 'mine').write_bytes(b'mine')
    before = (out / 'x' / '1').stat().st_mtime_ns
    unpack(path, out, ['x'])
    assert (out / 'x' / '1').stat().st_mtime_ns == before
    assert tree(out) == {'x/1': b'one', 'x/2': b'two', 'x/3': b'three', 'x/mine': b'mine'}


def test_what_differs_is_replaced_only_by_force(tmp_path):
    path = make_zip(tmp_path / 'a.zip', {'x/1': b'one', 'x/2': b'two', 'x/3': b'three'})
    out = tmp_path / 'out'
    (out / 'x').mkdir(parents=True)
    (out / 'x' / '1').write_bytes(b'ONE')
    with pytest.raises(PreparationError, match=rf'^{out}/x/1 differs from what .*a\.zip holds'):
        unpack(path, out, ['x'])
    (out / 'x' / '2').write_bytes(b'tw')
    with pytest.raises(PreparationError, match='x/1 and 1 more differ from'):
        unpack(path, out, ['x'])
    assert tree(out) == {'x/1': b'ONE', 'x/2': b'tw'}
    unpack(path, out, ['x'], force=True)
    assert tree(out) == {'x/1': b'one', 'x/2': b'two', 'x/3': b'three'}


@pytest.mark.parametrize(
    'name', ['../evil', '/evil', 'x/../../evil', 'C:/evil', 'C:evil', 'x\\..\\evil', '//h/s/evil']
)
def test_a_path_out_of_the_folder_is_refused(name, tmp_path):
    path = make_zip(tmp_path / 'a.zip', {'x/1': b'one', name: b'evil'})
    before = tree(tmp_path)
    with pytest.raises(PreparationError, match='leads out of its folder: fetch the archive from'):
        unpack(path, tmp_path / 'out', ['x', name.partition('/')[0]])
    assert tree(tmp_path) == before


@settings(max_examples=200, deadline=None)
@given(names=st.lists(st.text('ax./\\:C\0é', min_size=1, max_size=9), min_size=1, unique=True))
def test_no_name_leads_out_of_the_folder(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp('any')
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as archive:
        for name in names:
            info = zipfile.ZipInfo('?')
            info.filename = name
            archive.writestr(info, b'x')
    (folder / 'a.zip').write_bytes(data.getvalue())
    out = folder / 'one' / 'two' / 'out'
    wanted = {name.partition('/')[0] for name in names}
    try:
        unpack(folder / 'a.zip', out, wanted)
    except (PreparationError, OSError):
        assert not any(path.name != stage_of('a.zip', out).name for path in out.glob('*'))
    outside = [path for path in folder.rglob('*') if path.is_file() and out not in path.parents]
    assert outside == [folder / 'a.zip']


@pytest.mark.parametrize('kind', [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_device_is_refused(kind, tmp_path):
    info = zipfile.ZipInfo('x/evil')
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    path = make_zip(tmp_path / 'a.zip', {'x/1': b'one', info: b'/etc/passwd'})
    with pytest.raises(PreparationError, match="'x/evil' in it is a link or a device"):
        unpack(path, tmp_path / 'out', ['x'])
    assert not (tmp_path / 'out').exists()


def test_an_encrypted_file_is_refused(tmp_path):
    path = make_zip(tmp_path / 'a.zip', {'x/1': b'one'})
    data = bytearray(path.read_bytes())
    data[data.index(b'PK\1\2') + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(PreparationError, match='encrypted'):
        unpack(path, tmp_path / 'out', ['x'])


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_a_name_that_is_there_twice_is_refused(tmp_path):
    path = make_zip(
        tmp_path / 'a.zip', {zipfile.ZipInfo('x/1'): b'1', zipfile.ZipInfo('x/1'): b'2'}
    )
    with pytest.raises(PreparationError, match="'x/1' in it is there twice"):
        unpack(path, tmp_path / 'out', ['x'])


def damage(data):
    data[data.index(b'needle')] ^= 1


def truncate(data):
    del data[len(data) // 2 :]


def unknown_method(data):
    data[data.index(b'PK\1\2') + 10] = 77


@pytest.mark.parametrize('change', [damage, truncate, unknown_method, bytearray.clear])
def test_nothing_of_a_damaged_archive_is_left(change, tmp_path):
    path = make_zip(tmp_path / 'a.zip', {'x/1': b'one', 'x/2': b'a needle in the hay'})
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    with pytest.raises(PreparationError, match=r'a\.zip is damaged \('):
        unpack(path, tmp_path / 'out', ['x'])
    assert tree(tmp_path) == {'a.zip': bytes(data)}


def test_another_archive_is_refused(tmp_path):
    path = make_zip(tmp_path / 'a.zip', {'other/x': b'one'})
    with pytest.raises(PreparationError, match='another archive: there is no x/ in it'):
        unpack(path, tmp_path / 'out', ['other', 'x'])


def test_an_archive_too_large_for_the_disk_is_not_unpacked(tmp_path):
    path = tmp_path / 'a.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('x/1', b'one')
        archive.filelist[0].file_size = 10**18
    with pytest.raises(PreparationError, match='make room or choose a folder on another disk'):
        unpack(path, tmp_path / 'out', ['x'])
    assert not (tmp_path / 'out').exists()


def test_killed_at_any_moment_a_folder_is_complete_or_not_there(tmp_path):
    files = {f'x/{name}': bytes([name]) * 20_000 for name in range(100)}
    path = make_zip(tmp_path / 'a.zip', files)
    begin = time.monotonic()
    run_for(60, path, tmp_path / 'whole')
    duration = time.monotonic() - begin
    killed = 0
    for moment in range(10):
        out = tmp_path / f'out{moment}'
        killed += run_for(duration * 0.6**moment, path, out)
        assert not (out / 'x').exists() or tree(out / 'x') == tree(tmp_path / 'whole' / 'x')
        unpack(path, out, ['x'])
        assert tree(out) == files
    assert killed >= 3


def run_for(seconds, path, out):
    """Unpack in a process that is killed after this time; tell whether it was."""
    child = fork.Process(target=unpack, args=(path, out, ['x']))
    child.start()
    child.join(seconds)
    child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def test_killed_while_moving_into_a_folder_that_was_there(tmp_path):
    files = {'x/1': b'one', 'x/2': b'two', 'x/y/3': b'three'}
    path = make_zip(tmp_path / 'a.zip', files)
    out = tmp_path / 'out'
    unpack(path, out, ['x'])
    stage = stage_of('a.zip', out)
    (stage / 'x').mkdir(parents=True)
    (out / 'x' / 'y').rename(stage / 'x' / 'y')
    unpack(path, out, ['x'])
    assert tree(out) == files
    assert not stage.exists()


def test_space_is_summed_for_each_disk(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    check_space((tmp_path, free // 10), (tmp_path / 'not' / 'there', free // 10))
    with pytest.raises(PreparationError, match='are needed'):
        check_space((tmp_path, free * 3 // 4), (tmp_path / 'not' / 'there', free * 3 // 4))


@pytest.mark.parametrize(
    ('number', 'text'),
    [(0, '0 bytes'), (999, '999 bytes'), (1000, '1.0 kB'), (19336861798, '19.3 GB')],
)
def test_numbers_of_bytes_are_readable(number, text):
    assert show_bytes(number) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_in_a_terminal_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    with Progress('counting', 1000, unit='files') as bar:
        for _ in range(1000):
            bar.add(1)
    text = sys.stderr.getvalue()
    assert text.startswith('\r') and text.count('\n') == 1
    assert 'counting: 1000 files of 1000 files (100 %)' in text.rpartition('\r')[2]
