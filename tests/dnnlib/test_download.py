"""Downloads into the cache, from a local server: complete or not at all, offline the second time."""

import contextlib
import hashlib
import http.server
import threading
import time

import pytest

from dnnlib import download

CONTENT = bytes(range(256)) * 5000  # more than one chunk
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """/good... serves CONTENT, /short breaks off, /flaky breaks off the first time, the rest is 404.

    /endless has no end, /drip sends a byte now and then, /elsewhere points to a file of this machine.
    """

    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.startswith('/moved'):
            self.send_response(302)
            self.send_header('Location', '/good')
            self.end_headers()
            return
        if self.path.startswith('/elsewhere'):
            self.send_response(302)
            self.send_header('Location', 'file:///etc/passwd')
            self.end_headers()
            return
        if self.path.startswith(('/endless', '/drip')):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # until the other side gives up
                while True:
                    self.wfile.write(CONTENT if self.path.startswith('/endless') else b'x')
                    time.sleep(0 if self.path.startswith('/endless') else 0.02)
            return
        known = self.path.startswith(('/good', '/short', '/flaky', '/chunked'))
        self.send_response(200 if known else 404)
        body = CONTENT if known else b'not here'
        if not self.path.startswith('/chunked'):
            self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        short = self.path.startswith('/short') or self.path.startswith('/flaky') and len(self.server.requests) == 1
        self.wfile.write(body[:len(body) // 2] if short else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path / 'cache'))
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.requests = []
    server.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def cached(tmp_path):
    return list((tmp_path / 'cache').glob('*')) if (tmp_path / 'cache').exists() else []


def fails(url, kind, message, sha256=None):
    with pytest.raises(kind, match=message) as caught:
        download.fetch(url, sha256, quiet=True)
    assert '\n' not in str(caught.value) and url in str(caught.value)


@pytest.mark.parametrize('page', ['/good/net.pkl', '/chunked/net.pkl', '/moved/net.pkl'])
def test_once_from_the_web_then_from_the_cache(server, tmp_path, page):
    path = download.fetch(server.url + page, SHA256, quiet=True)
    assert path.read_bytes() == CONTENT and path.name.endswith('-net.pkl') and cached(tmp_path) == [path]
    count = len(server.requests)
    assert download.fetch(server.url + page, quiet=True) == path
    assert download.fetch(server.url + page, SHA256, quiet=True) == path
    assert len(server.requests) == count


def test_the_bar_shows_rate_and_name(server, capsys):
    download.fetch(server.url + '/good/net.pkl')
    shown = capsys.readouterr()
    assert 'net.pkl' in shown.err and '100%' in shown.err and not shown.out


def test_two_urls_of_one_name_are_two_files(server, tmp_path):
    one, two = (download.fetch(server.url + page, quiet=True) for page in ('/good/a/net.pkl', '/good/b/net.pkl?x=1'))
    assert one != two and len(cached(tmp_path)) == 2


def test_odd_names_stay_in_the_cache(server, tmp_path):
    for page in ('/good', '/good/', '/good/x/..', '/good/a%2F..%2Fb c'):
        assert download.fetch(server.url + page, quiet=True).parent == tmp_path / 'cache'


def test_offline(server, tmp_path):
    url = server.url + '/good/net.pkl'
    path = download.fetch(url, quiet=True)
    server.shutdown()
    server.server_close()
    assert download.fetch(url, SHA256, quiet=True) == path
    fails(server.url + '/good/other.pkl', OSError, 'no connection.*download it elsewhere and give the local path')
    assert cached(tmp_path) == [path]


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    fails(server.url + '/good', ValueError, f'has SHA-256 {SHA256}, expected 00', sha256='00')
    assert not cached(tmp_path) and len(server.requests) == 1


def test_a_damaged_cache_is_replaced(server):
    path = download.fetch(server.url + '/good', SHA256, quiet=True)
    path.write_bytes(b'damaged')
    assert download.fetch(server.url + '/good', SHA256, quiet=True).read_bytes() == CONTENT


def test_a_body_cut_short_leaves_nothing(server, tmp_path):
    fails(server.url + '/short', OSError, 'the connection broke')
    assert not cached(tmp_path) and len(server.requests) == download.TRIES


def test_a_second_try(server):
    assert download.fetch(server.url + '/flaky', SHA256, quiet=True).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_missing_page(server, tmp_path):
    fails(server.url + '/nothing', OSError, 'the server says 404 Not Found')
    assert not cached(tmp_path) and len(server.requests) == 1


def test_no_host(server):
    fails('http://127.0.0.1:1/net.pkl', OSError, 'no connection')


def test_an_unwritable_cache(server, tmp_path, monkeypatch):
    (tmp_path / 'file').write_bytes(b'')
    monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path / 'file' / 'cache'))
    with pytest.raises(OSError):
        download.fetch(server.url + '/good', quiet=True)


def test_a_path_is_no_url(tmp_path):
    assert download.fetch(tmp_path / 'x.pkl') == tmp_path / 'x.pkl'
    assert not download.is_url('C:/x.pkl') and not download.is_url('/https/x') and download.is_url('https://x/y')


def test_a_file_without_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'MAX_UNKNOWN', 3 << 20)
    fails(server.url + '/endless', ValueError, 'does not end after 3,145,728 bytes')
    assert not cached(tmp_path) and len(server.requests) == 1


def test_a_file_that_is_too_long(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'MAX_BYTES', 1 << 20)
    fails(server.url + '/good', ValueError, 'has 1,280,000 bytes, more than any network')
    assert not cached(tmp_path)


def test_a_byte_now_and_then(server, tmp_path, monkeypatch):
    """Each byte would restart the timeout of the connection."""
    monkeypatch.setattr(download, 'PATIENCE_SEC', 0.1)
    fails(server.url + '/drip', OSError, 'the connection broke')
    assert not cached(tmp_path) and len(server.requests) == download.TRIES


def test_a_way_to_a_local_file(server, tmp_path):
    fails(server.url + '/elsewhere', OSError, 'no connection')
    assert not cached(tmp_path)
