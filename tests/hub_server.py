"""A server that speaks the HTTP interface of the Hugging Face Hub, as far as its client uses it.

Files, revisions and commits of models, in memory: reading (resolve, with the redirect of large
files), creating and committing (preupload, LFS, commit), tokens, private and gated repositories.
Not there: Xet, so a client needs HF_HUB_DISABLE_XET=1.

``python tests/hub_server.py 8000`` serves an empty one until it is interrupted.
"""

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = 'hf_the_owner'
LARGE = 10_000  # bytes from which a file is stored apart


@dataclass
class Repository:
    """Commits by hash, each with all of its files, and the heads of branches."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = 'main') -> str:
        before = self.commits.get(self.refs.get(branch, ''), {})
        text = repr((len(self.commits), sorted(files)))
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name] = {**before, **files}
        self.refs[branch] = name
        return name


class HubServer(ThreadingHTTPServer):
    """``requests`` lists what was asked for, ``down`` makes it answer 503 to everything."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(('127.0.0.1', port), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.down = False
        self.url = f'http://127.0.0.1:{self.server_port}'

    def add(self, name: str, files: dict[str, bytes], branch: str = 'main', **kind: bool) -> str:
        """Makes a repository if need be, and a commit; returns its hash."""
        repository = self.repositories.setdefault(name, Repository(**kind))
        return repository.commit(files, branch)

    def files(self, name: str) -> dict[str, bytes]:
        repository = self.repositories[name]
        return repository.commits[repository.refs['main']]


class Refused(Exception):
    def __init__(self, status: int, code: str, text: str = '') -> None:
        self.status, self.code, self.text = status, code, text or code


_ROUTES = (
    ('GET', r'/api/models/(?P<name>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?', 'info'),
    ('GET', r'/api/models/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)', 'tree'),
    ('GET', r'/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)', 'resolve'),
    ('GET', r'/stored/(?P<oid>\w+)', 'stored_file'),
    ('PUT', r'/stored/(?P<oid>\w+)', 'store'),
    ('POST', r'/api/repos/create', 'create'),
    ('POST', r'/api/validate-yaml', 'validate'),
    ('POST', r'/api/models/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)', 'preupload'),
    ('POST', r'/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch', 'batch'),
    ('POST', r'/api/models/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)', 'commit'),
)


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = 'HTTP/1.1'

    def answer(self) -> None:
        method = 'GET' if self.command == 'HEAD' else self.command
        path = urlsplit(self.path).path
        self.server.requests.append(f'{self.command} {self.path}')
        self.body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        try:
            if self.server.down:
                raise Refused(503, '', 'down for maintenance')
            for wanted, pattern, handle in _ROUTES:
                if method == wanted and (match := re.fullmatch(pattern, path)):
                    found = {
                        k: v if v is None else unquote(v) for k, v in match.groupdict().items()
                    }
                    getattr(self, handle)(**found)
                    return
            raise Refused(404, '', f'no route for {self.command} {path}')
        except Refused as error:
            headers = {'X-Error-Message': error.text}
            if error.code:
                headers['X-Error-Code'] = error.code
            self.reply(json.dumps({'error': error.text}).encode(), error.status, **headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def reply_json(self, content: object, status: int = 200) -> None:
        self.reply(json.dumps(content).encode(), status, **{'Content-Type': 'application/json'})

    def is_owner(self) -> bool:
        return self.headers.get('Authorization') == f'Bearer {TOKEN}'

    def check_owner(self) -> None:
        if not self.is_owner():
            raise Refused(401, '', 'Invalid username or password.')

    def find(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.is_owner()):
            # the hub does not tell strangers whether there is such a repository
            raise Refused(404 if self.is_owner() else 401, 'RepoNotFound', 'Repository not found')
        if repository.gated and not self.is_owner():
            raise Refused(401, 'GatedRepo', f'Access to model {name} is restricted.')
        commit = repository.refs.get(revision or 'main', revision or 'main')
        if commit not in repository.commits:
            if revision in (None, 'main'):
                return '', {}
            raise Refused(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return commit, repository.commits[commit]

    def info(self, name: str, revision: str | None) -> None:
        commit, files = self.find(name, revision)
        siblings = [{'rfilename': file} for file in files]
        private = self.server.repositories[name].private
        self.reply_json(dict(id=name, sha=commit, private=private, siblings=siblings, tags=[]))

    def tree(self, name: str, revision: str) -> None:
        _, files = self.find(name, revision)
        self.reply_json(
            [
                dict(type='file', path=file, size=len(body), oid=hashlib.sha1(body).hexdigest())
                for file, body in files.items()
            ]
        )

    def resolve(self, name: str, revision: str, file: str) -> None:
        commit, files = self.find(name, revision)
        headers = {'X-Repo-Commit': commit}
        if file not in files:
            raise Refused(404, 'EntryNotFound', 'Entry not found')
        body = files[file]
        if len(body) < LARGE:
            self.reply(body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', **headers)
            return
        oid = hashlib.sha256(body).hexdigest()
        self.server.stored[oid] = body
        headers |= {'X-Linked-Etag': f'"{oid}"', 'X-Linked-Size': str(len(body))}
        # another name of this machine stands for the storage, which is another host
        place = f'http://localhost:{self.server.server_port}/stored/{oid}'
        self.reply(b'', 302, Location=place, **headers)

    def stored_file(self, oid: str) -> None:
        if self.headers.get('Authorization'):
            raise Refused(400, '', 'a token was sent to the storage')
        self.reply(self.server.stored[oid])

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, '', 'another content than was announced')
        self.server.stored[oid] = self.body
        self.reply(b'')

    def create(self) -> None:
        self.check_owner()
        wanted = json.loads(self.body)
        name = f'{wanted["organization"]}/{wanted["name"]}'
        if name.startswith('others/'):
            raise Refused(403, '', 'You don\'t have the rights to create a model under "others"')
        there = name in self.server.repositories
        if not there:
            private = wanted.get('visibility') == 'private' or bool(wanted.get('private'))
            self.server.repositories[name] = Repository(private)
        self.reply_json(dict(url=f'{self.server.url}/{name}', name=name), 409 if there else 200)

    def validate(self) -> None:
        content = json.loads(self.body)['content']
        header = yaml.safe_load(content.split('---\n')[1])
        if not {'library_name', 'tags'} <= set(header):
            raise Refused(400, '', 'invalid card')
        self.reply_json(dict(errors=[], warnings=[]))

    def preupload(self, name: str, revision: str) -> None:
        self.check_owner()
        self.find(name, revision)
        self.reply_json(
            dict(
                files=[
                    dict(
                        path=file['path'],
                        uploadMode='lfs' if file['size'] >= LARGE else 'regular',
                        shouldIgnore=False,
                    )
                    for file in json.loads(self.body)['files']
                ]
            )
        )

    def batch(self, name: str) -> None:
        self.check_owner()
        objects = json.loads(self.body)['objects']
        for one in objects:
            if one['oid'] not in self.server.stored:
                upload = dict(href=f'{self.server.url}/stored/{one["oid"]}')
                one['actions'] = dict(upload=upload)
        self.reply_json(dict(transfer='basic', objects=objects))

    def commit(self, name: str, revision: str) -> None:
        self.check_owner()
        self.find(name, revision)
        files = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item['value']
            if item['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            elif item['key'] == 'lfsFile':
                files[value['path']] = self.server.stored[value['oid']]
        commit = self.server.add(name, files, revision)
        url = f'{self.server.url}/{name}/commit/{commit}'
        self.reply_json(dict(success=True, commitOid=commit, commitUrl=url))

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def hub_server() -> Iterator[HubServer]:
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


if __name__ == '__main__':
    with HubServer(int(sys.argv[1])) as hub, contextlib.suppress(KeyboardInterrupt):
        print(f'{hub.url}, where {TOKEN} may write', flush=True)
        hub.serve_forever()
