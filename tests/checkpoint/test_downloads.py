"""Checkpoints from http(s) addresses, read from a local web server."""

import os
import socket
import threading
import types
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from mmffnet.checkpoint import files


@pytest.fixture
def checkpoint(server):
    """Address of a good checkpoint."""
    torch.save({'state_dict': {'weight': torch.ones(100, 10)}}, server.www / 'a.pth')
    return f'{server.url}/a.pth'


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server over tmp_path/www; torch.hub keeps what it downloads in tmp_path/hub."""
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / 'www'))

        def log_message(self, *args):
            requests.append(self.path)

    (tmp_path / 'www').mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{http.server_port}'
        yield types.SimpleNamespace(url=address, www=tmp_path / 'www', requests=requests)
        http.shutdown()


def test_http_checkpoint_is_downloaded_once_with_a_progress_bar(
    server, checkpoint, tmp_path, capfd
):
    url = f'{checkpoint}?version=1'
    for _ in range(2):
        content = CheckpointLoader.load_checkpoint(url)
        assert content['state_dict']['weight'].shape == (100, 10)
    assert server.requests == ['/a.pth?version=1']
    assert [p.name for p in (tmp_path / 'hub' / 'hub' / 'checkpoints').iterdir()] == ['a.pth']
    assert '100' in capfd.readouterr().err
    # The loaders of 'torchvision://' and others find it under this name.
    assert mmengine_checkpoint.load_from_http is files.load_from_http
    assert mmengine_checkpoint.load_from_http(url, model_dir=str(tmp_path / 'other'))
    assert (tmp_path / 'other' / 'a.pth').is_file()


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f'touch {self.target}',)


def test_downloaded_file_that_asks_for_code_is_refused(server, tmp_path):
    target = tmp_path / 'executed'
    torch.save(Malicious(target), server.www / 'bad.pth')
    with pytest.raises(ValueError, match=r'refused .*posix\.system'):
        CheckpointLoader.load_checkpoint(f'{server.url}/bad.pth')
    assert not target.exists()


def test_download_errors_name_the_address_and_the_place(server, tmp_path):
    place = tmp_path / 'hub' / 'hub' / 'checkpoints'
    with pytest.raises(ConnectionError, match=r'none\.pth \(HTTP Error 404') as error:
        files.download(f'{server.url}/none.pth')
    assert str(place / 'none.pth') in str(error.value)
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{unused.getsockname()[1]}/b.pth'
        with pytest.raises(ConnectionError, match=r'cannot download http.*refused.*put it at'):
            CheckpointLoader.load_checkpoint(url)
    assert not place.exists()
    with pytest.raises(ValueError, match='names no file'):
        files.download(server.url)


def test_what_ends_too_early_is_not_kept(server, checkpoint, tmp_path, monkeypatch):
    whole = (server.www / 'a.pth').read_bytes()

    def send_half(self, source, target):
        target.write(whole[: len(whole) // 2])

    monkeypatch.setattr(SimpleHTTPRequestHandler, 'copyfile', send_half)
    with pytest.raises(ConnectionError, match=rf'ended after {len(whole) // 2} of {len(whole)} b'):
        files.download(checkpoint, tmp_path / 'kept')
    assert not list((tmp_path / 'kept').iterdir())
    monkeypatch.undo()
    assert files.download(checkpoint, tmp_path / 'kept').read_bytes() == whole


@pytest.mark.dist
def test_only_rank_0_downloads(server, checkpoint, toy, tmp_path):
    code = (
        'import torch.distributed as dist; from mmffnet.checkpoint import files\n'
        'dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)\n'
        'print(files.download(url))'
    )
    known = dict(file=str(tmp_path / 'store'), url=checkpoint)
    ranks = [
        toy.Child(tmp_path / f'{i}.log', code, dict(known, rank=i), function=toy.run_code)
        for i in range(2)
    ]
    for process in ranks:
        assert process.wait() == 0, process.text
        assert process.text.strip().endswith('a.pth')
    assert server.requests == ['/a.pth']
