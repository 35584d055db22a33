"""Downloads from a server in a thread that cuts, forgets, lies and refuses."""

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bpt_rl.data import checksums, download
from bpt_rl.types import UserError

CONTENT = b"\x89HDF\r\n\x1a\n" + np.random.default_rng(0).bytes(100_003)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What a server has, and how it behaves.

    Attributes:
        cuts: after how many bytes it hangs up, answer by answer; then it does not.
        statuses: what it answers, one by one, before it sends anything.
    """

    content: bytes = CONTENT
    etag: str = '"one"'
    last_modified: str = ""
    knows_ranges: bool = True
    tells_length: bool = True
    content_type: str = "application/octet-stream"
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    location: str = ""
    ranges: list[str | None] = field(default_factory=list)
    before_sending: Callable[[], None] = lambda: None
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/folder/data.hdf5"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.ranges.append(asked)
        self.before_sending()
        if self.statuses:
            handler.send_response(self.statuses.pop(0))
            if self.location:
                handler.send_header("Location", self.location)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        condition = handler.headers.get("If-Range")
        if not self.knows_ranges or (condition and condition not in (self.etag, self.last_modified)):
            first = 0
        if first >= len(self.content) > 0 and asked:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.end_headers()
            return
        handler.send_response(206 if first else 200)
        if first:
            handler.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content)}")
        if self.tells_length:
            handler.send_header("Content-Length", str(len(self.content) - first))
        for name, value in (("ETag", self.etag), ("Last-Modified", self.last_modified)):
            if value:
                handler.send_header(name, value)
        handler.send_header("Content-Type", self.content_type)
        handler.end_headers()
        stop = first + self.cuts.pop(0) if self.cuts else len(self.content)
        handler.wfile.write(self.content[first:stop])


@pytest.fixture
def server() -> Iterator[Server]:
    behaviour = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behaviour.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        behaviour.port = running.server_port
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield behaviour
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _in_no_time(monkeypatch):
    monkeypatch.setattr(download, "WAITS", (0.0, 0.01))
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 5.0)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "datasets" / "data.hdf5"


def _names(path: Path) -> list[str]:
    return sorted(found.name for found in path.parent.iterdir())


def test_a_file_arrives_with_its_checksum_and_nothing_else(server, path):
    assert download.download(server.url, path) == SHA256
    assert path.read_bytes() == CONTENT
    assert _names(path) == ["data.hdf5", "data.hdf5.sha256"]
    assert checksums.sidecar(path).read_text() == f"{SHA256}  data.hdf5\n"
    checksums.require_unchanged(path)


def test_what_is_there_is_not_fetched_again(server, path):
    download.download(server.url, path)
    assert download.download(server.url, path) == SHA256
    assert len(server.ranges) == 1
    assert _names(path) == ["data.hdf5", "data.hdf5.sha256"]


def test_what_is_there_and_changed_is_not_taken_for_the_file(server, path):
    download.download(server.url, path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(
        UserError, match=r"data\.hdf5 has the SHA-256 .*expected .*remove it and download it again"
    ):
        download.download(server.url, path)
    checksums.sidecar(path).unlink()
    with pytest.raises(UserError, match="expected"):
        download.download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT[:-1]


@pytest.mark.parametrize(
    "validator", [{"etag": '"one"'}, {"etag": "", "last_modified": "Sat, 01 Jan 2022 00:00:00 GMT"}]
)
def test_a_connection_that_is_cut_goes_on_where_it_was(server, path, validator):
    vars(server).update(validator)
    server.cuts = [30_000, 50_000, 1, 1, 1]
    assert download.download(server.url, path) == SHA256
    assert server.ranges[:3] == [None, "bytes=30000-", "bytes=80000-"]
    assert len(server.ranges) == 6  # More attempts than there are waits: each of them brought something.


def test_what_one_call_left_the_next_goes_on_with(server, path):
    server.statuses, server.cuts = [], [30_000]
    server.before_sending = lambda: setattr(server, "statuses", [404] if len(server.ranges) == 2 else [])
    with pytest.raises(UserError, match="answers 404"):
        download.download(server.url, path)
    assert _names(path) == ["data.hdf5.part", "data.hdf5.part.json"]
    assert (path.parent / "data.hdf5.part").read_bytes() == CONTENT[:30_000]
    assert download.download(server.url, path, sha256=SHA256.upper()) == SHA256
    assert server.ranges == [None, "bytes=30000-", "bytes=30000-"]
    assert path.read_bytes() == CONTENT


def test_ctrl_c_keeps_what_came(server, path, monkeypatch):
    class Interrupted:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def update(self, done, fields):
            del done, fields
            raise KeyboardInterrupt

    monkeypatch.setattr(download, "BLOCK_BYTES", 10_000)
    with monkeypatch.context() as patched:
        patched.setattr(download, "_progress", lambda name, total: Interrupted())
        with pytest.raises(KeyboardInterrupt):
            download.download(server.url, path)
    assert _names(path) == ["data.hdf5.part", "data.hdf5.part.json"]
    assert download.download(server.url, path) == SHA256
    assert server.ranges == [None, "bytes=10008-"]


def test_a_server_without_ranges_begins_again(server, path):
    server.knows_ranges, server.cuts = False, [30_000]
    assert download.download(server.url, path) == SHA256
    assert server.ranges == [None, "bytes=30000-"]


def test_a_file_that_changed_on_the_server_begins_again(server, path):
    server.cuts = [30_000]

    def change() -> None:
        if len(server.ranges) == 2:
            server.content, server.etag = CONTENT[:8] + b"2" * 90_000, '"two"'

    server.before_sending = change
    assert download.download(server.url, path) == hashlib.sha256(CONTENT[:8] + b"2" * 90_000).hexdigest()


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_promise_of_the_same_bytes_it_begins_again(server, path, etag):
    server.etag, server.cuts = etag, [30_000]
    assert download.download(server.url, path) == SHA256
    assert server.ranges == [None, None]


@pytest.mark.parametrize("content", ["{", "[]", '{"url": 3}', "{}"])
def test_a_part_of_unknown_origin_is_not_gone_on_with(server, path, content):
    path.parent.mkdir()
    part = path.with_name("data.hdf5.part")
    part.write_bytes(b"something else")
    part.with_name("data.hdf5.part.json").write_text(content)
    assert download.download(server.url, path) == SHA256
    assert server.ranges == [None]


def test_a_part_of_another_url_is_not_gone_on_with(server, path):
    path.parent.mkdir()
    path.with_name("data.hdf5.part").write_bytes(b"something else")
    known = {"url": "http://elsewhere/data.hdf5", "etag": '"one"', "last_modified": ""}
    path.with_name("data.hdf5.part.json").write_text(json.dumps(known))
    assert download.download(server.url, path) == SHA256
    assert server.ranges == [None]


@pytest.mark.parametrize(("extra", "ranges"), [(b"", 1), (b"!!", 2)])
def test_a_part_that_is_whole_or_longer(server, path, extra, ranges):
    path.parent.mkdir()
    path.with_name("data.hdf5.part").write_bytes(CONTENT + extra)
    known = {"url": server.url, "etag": '"one"', "last_modified": ""}
    path.with_name("data.hdf5.part.json").write_text(json.dumps(known))
    assert download.download(server.url, path) == SHA256
    assert len(server.ranges) == ranges


def test_a_length_that_is_not_told(server, path):
    server.tells_length = False
    assert download.download(server.url, path) == SHA256


def test_a_server_that_is_busy_is_asked_again(server, path):
    server.statuses = [503, 429]
    assert download.download(server.url, path) == SHA256


def test_a_server_that_stays_busy_is_given_up(server, path):
    server.statuses = [503] * 9
    with pytest.raises(UserError, match=r"127\.0\.0\.1 cannot be reached .*503.*put it at .*data\.hdf5"):
        download.download(server.url, path)
    assert len(server.ranges) == 3
    assert _names(path) == []


def test_a_connection_that_is_cut_at_the_same_place_again_and_again_is_given_up(server, path):
    server.cuts = [30_000] + [0] * 9
    with pytest.raises(UserError, match=r"cannot be reached \(the connection was cut\)"):
        download.download(server.url, path)
    assert server.ranges == [None, "bytes=30000-", "bytes=30000-"]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_file_that_is_not_there(server, path, status):
    server.statuses = [status]
    with pytest.raises(UserError, match=rf"answers {status} .*fetch it elsewhere and put it at .*data\.hdf5"):
        download.download(server.url, path)
    assert len(server.ranges) == 1


def test_no_network(path):
    with pytest.raises(UserError, match=r"cannot be reached .*127\.0\.0\.1:9/data\.hdf5.*put it at"):
        download.download("http://127.0.0.1:9/data.hdf5", path)
    assert _names(path) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.hdf5", b"<!DOCTYPE html><html>Sign in"),
        ("data.npz", CONTENT),
        ("data.zip", b"%PDF-1.4 ........."),
        ("data.csv", b"\n <html>moved</html>"),
        ("data.h5", b""),
    ],
)
def test_a_page_in_place_of_a_file(server, tmp_path, name, content):
    server.content = content
    with pytest.raises(UserError, match=r"127\.0\.0\.1 sends something else in its place"):
        download.download(server.url, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_another_kind_of_file_is_believed(server, tmp_path):
    server.content = b"a,b\n1,2\n"
    download.download(server.url, tmp_path / "data.csv")
    assert (tmp_path / "data.csv").read_bytes() == b"a,b\n1,2\n"


def test_a_wrong_checksum_leaves_nothing(server, path):
    with pytest.raises(UserError, match=r"has the SHA-256 .*expected 000"):
        download.download(server.url, path, sha256="0" * 64)
    assert [name for name in _names(path) if not name.endswith(".json")] == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a", "file:///etc/passwd", "data.hdf5", "http:///a", ""])
def test_other_addresses(path, url):
    with pytest.raises(UserError, match="expected a URL that begins with http"):
        download.download(url, path)


def test_being_sent_on_is_followed_but_not_to_another_kind_of_server(server, path):
    server.statuses, server.location = [302], server.url + "?again"
    assert download.download(server.url, path) == SHA256
    path.unlink()
    server.statuses, server.location = [302] * 9, "file:///etc/passwd"
    with pytest.raises(UserError):
        download.download(server.url, path)


def test_two_processes_do_not_write_into_one_file(server, path):
    path.parent.mkdir()
    with (
        download._opened_alone(path.with_name("data.hdf5.part")),
        pytest.raises(UserError, match=r"another process is downloading data\.hdf5"),
    ):
        download.download(server.url, path)
    assert download.download(server.url, path) == SHA256


def test_a_disk_that_is_too_small(server, path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"no room on the disk for .*100003 bytes are to come, 1000 are free"):
        download.download(server.url, path)


def test_a_disk_that_fills_up(server, path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            if self.file.seek(0, os.SEEK_END) >= 8:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    real = download._Download
    monkeypatch.setattr(
        download, "_Download", lambda url, path, part, file: real(url, path, part, Full(file))
    )
    with pytest.raises(UserError, match=r"no room on the disk for .*No space left.*it goes on after 8 bytes"):
        download.download(server.url, path)


def test_a_folder_that_nothing_can_be_written_to(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        download.download(server.url, tmp_path / "file" / "data.hdf5")


def test_the_environment_may_name_a_proxy(server, path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert download.download("http://nowhere.invalid/data.hdf5", path) == SHA256


def test_progress_counts_bytes(server, path, monkeypatch):
    calls = []

    class Display:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def update(self, done, fields):
            calls.append((done, fields))

    monkeypatch.setattr(download, "BLOCK_BYTES", 60_000)
    monkeypatch.setattr(
        download, "show_progress", lambda *args, **options: calls.append((*args, options)) or Display()
    )
    download.download(server.url, path)
    assert calls == [
        ("downloading data.hdf5", 100_011, {"rate_name": "bytes"}),
        (60_008, {}),
        (100_011, {}),
    ]
