import hashlib
import io
import multiprocessing
import resource
import signal
import stat
import time
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmffnet.datasets.archives import Archive
from mmffnet.datasets.prepare import unpack, verify
from mmffnet.errors import UsageError

DATA = bytes(range(256))
fork = multiprocessing.get_context('fork')


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


def test_unpack(tmp_path, capsys):
    files = {'x/1': b'one', 'x/y/2': b'two' * 100_000, 'x/empty': b''}
    path = make_zip(tmp_path / 'a.zip', {**files, 'z/3': b'other', 'README': b'other'})
    unpack(path, tmp_path / 'out', ['x'])
    assert tree(tmp_path / 'out') == files
    assert f'unpacking {path}' in capsys.readouterr().out


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
    (out / 'x' / '1').write_bytes(b'on')
    with pytest.raises(UsageError, match=rf'^{out}/x/1 differs from that in .*a\.zip: '):
        unpack(path, out, ['x'])
    assert tree(out) == {'x/1': b'on'}
    unpack(path, out, ['x'], force=True)
    assert tree(out) == {'x/1': b'one', 'x/2': b'two', 'x/3': b'three'}


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
    wanted = {name.partition('/')[0] for name in names} - {''}
    try:
        unpack(folder / 'a.zip', out, wanted)
    except (UsageError, OSError):
        assert {path.name for path in out.glob('*')} <= {'.a.zip.unpacking'}
    outside = [path for path in folder.rglob('*') if path.is_file() and out not in path.parents]
    assert outside == [folder / 'a.zip']


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
    with pytest.raises(UsageError, match=r'a\.zip is damaged \('):
        unpack(path, tmp_path / 'out', ['x'])
    assert tree(tmp_path) == {'a.zip': bytes(data)}


def test_an_encrypted_file_is_refused(tmp_path):
    path = make_zip(tmp_path / 'a.zip', {'x/1': b'one'})
    data = bytearray(path.read_bytes())
    data[data.index(b'PK\1\2') + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match='encrypted'):
        unpack(path, tmp_path / 'out', ['x'])


def test_an_archive_too_large_for_the_disk_is_not_unpacked(tmp_path):
    path = tmp_path / 'a.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('x/1', b'one')
        archive.filelist[0].file_size = 10**18
    with pytest.raises(UsageError, match='make room or choose a folder on another disk'):
        unpack(path, tmp_path / 'out', ['x'])
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
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
    stage = out / '.a.zip.unpacking'
    (stage / 'x').mkdir(parents=True)
    (out / 'x' / 'y').rename(stage / 'x' / 'y')
    unpack(path, out, ['x'])
    assert tree(out) == files
    assert not stage.exists()


@pytest.mark.parametrize(
    'name', ['../evil', '/evil', 'x/../../evil', 'C:/evil', 'C:evil', 'x\\..\\evil', '//h/s/evil']
)
def test_no_path_leads_out_of_the_folder(name, tmp_path):
    path = make_zip(tmp_path / 'a.zip', {'x/1': b'one', name: b'evil'})
    out = tmp_path / 'out'
    unpack(path, out, ['x'])
    assert all(out / 'x' in place.parents for place in tmp_path.rglob('*') if place.name == 'evil')
    assert tree(out)['x/1'] == b'one'


@pytest.mark.parametrize('kind', [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_device_becomes_a_file(kind, tmp_path):
    info = zipfile.ZipInfo('x/evil')
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    path = make_zip(tmp_path / 'a.zip', {'x/1': b'one', info: b'/etc/passwd'})
    unpack(path, tmp_path / 'out', ['x'])
    assert (tmp_path / 'out' / 'x' / 'evil').lstat().st_size == len('/etc/passwd')
    assert stat.S_ISREG((tmp_path / 'out' / 'x' / 'evil').lstat().st_mode)


def test_a_full_disk_is_reported_with_the_place(tmp_path):
    path = make_zip(tmp_path / 'b.zip', {'x/big': bytes(1_000_000)})
    receiver, sender = fork.Pipe(duplex=False)

    def body():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            unpack(path, tmp_path / 'out', ['x'])
        except OSError as error:
            sender.send(str(error))

    child = fork.Process(target=body)
    child.start()
    child.join(20)
    assert receiver.poll()
    assert receiver.recv() == f"[Errno 27] File too large: '{tmp_path}/out/.b.zip.unpacking'"
    unpack(path, tmp_path / 'out', ['x'])
    assert tree(tmp_path / 'out') == {'x/big': bytes(1_000_000)}


def test_verify(tmp_path):
    path = tmp_path / 'a.zip'
    path.write_bytes(DATA)

    def check(size=None, checksum=None):
        verify(path, Archive('a.zip', 'http://there/a.zip', {}, size, checksum))

    check()
    check(len(DATA), f'md5:{hashlib.md5(DATA).hexdigest()}')
    check(None, f'sha256:{hashlib.sha256(DATA).hexdigest()}')
    with pytest.raises(UsageError, match=f'has {len(DATA)} bytes instead of 5: fetch http'):
        check(5)
    with pytest.raises(UsageError, match=r'has the md5 [0-9a-f]{32} instead of 0123: fetch http'):
        check(None, 'md5:0123')
