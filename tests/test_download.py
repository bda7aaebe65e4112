import errno
import multiprocessing
import random
import resource
import time

import pytest
from range_server import range_server

from mmffnet.download import download_file
from mmffnet.errors import UsageError

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


def fetch(server, target, **kwargs):
    download_file(f'{server.url}/a.zip', target, **{'pause': 0, **kwargs})


def test_a_download_says_how_far_it_is(server, target, capsys):
    fetch(server, target)
    assert target.read_bytes() == DATA
    shown = capsys.readouterr().err
    assert 'a.zip' in shown and '100%' in shown and '1.00M' in shown
    assert shown.count('\r') <= 10, 'no line for each chunk in a log file'


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
        download_file('http://127.0.0.1:9/a.zip', target, attempts=2, pause=0)


def test_a_download_too_large_for_the_disk_does_not_begin(server, target):
    server.faults = [{'length': 10**18}]
    with pytest.raises(UsageError, match=r'^1000000000.0 GB are needed on the disk of /.*'):
        fetch(server, target)
    assert not target.exists()


def test_a_full_disk_is_an_error_at_once(server, target):
    receiver, sender = fork.Pipe(duplex=False)

    def body():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            fetch(server, target)
        except OSError as error:
            sender.send(error.errno)

    child = fork.Process(target=body)
    child.start()
    child.join(20)
    assert receiver.poll() and receiver.recv() == errno.EFBIG
    assert len(server.requests) == 1
    fetch(server, target)
    assert target.read_bytes() == DATA
