"""A web server for tests of downloads, which can do what real ones do on bad days."""

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer(ThreadingHTTPServer):
    """Serves ``files`` by the last part of the address, from memory.

    ``requests`` lists what was asked for: (name, value of the Range header). Each request uses up
    one of ``faults``: ``dict(status=503)``, ``dict(cut=N)`` to break off after N bytes,
    ``dict(stall=N)`` to fall silent there, ``dict(length=N)`` to claim another length (None: not to
    say it), ``dict(shift=N)`` to send another range than was asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.faults: list[dict] = []
        self.ranges = True
        self.closing = threading.Event()
        self.url = f'http://127.0.0.1:{self.server_port}'


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer

    def do_GET(self) -> None:
        server = self.server
        name, wanted = self.path.rpartition('/')[2], self.headers.get('Range')
        server.requests.append((name, wanted))
        fault = server.faults.pop(0) if server.faults else {}
        if fault.get('status') or name not in server.files:
            self.send_error(fault.get('status', 404))
            return
        body = server.files[name]
        total = len(body)
        start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1]) if wanted and server.ranges else 0
        if start and start >= total:
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{total}')
            self.end_headers()
            return
        start += fault.get('shift', 0)
        body = body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{total - 1}/{total}')
        length = fault.get('length', len(body))
        if length is not None:
            self.send_header('Content-Length', str(length))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client may be killed
            self.wfile.write(body[: fault.get('cut', fault.get('stall'))])
            self.wfile.flush()
            if 'stall' in fault:
                server.closing.wait(20)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def range_server() -> Iterator[RangeServer]:
    with RangeServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()
