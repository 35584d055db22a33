"""Downloads that go on where they were cut off, and end whole or not at all.

Bytes go to `FILE.part`, and what tells whether the server still has the same file (its entity tag or its date) to
`FILE.part.json`. When all are there, the checksum is compared (where it is known) and kept beside the file, and the
part takes the file's name.
"""

import errno
import fcntl
import http.client
import json
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from bpt_rl.data import checksums
from bpt_rl.tracking.progress import Progress, show_progress
from bpt_rl.types import UserError

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0
# Seconds before the next attempt; an attempt that brought bytes starts the list anew.
WAITS = (1.0, 2.0, 4.0, 8.0)
BLOCK_BYTES = 2**18
# What files begin with, by suffix: what is sent in place of a file is most often a page that says so.
_HDF5, _ZIP = (b"\x89HDF\r\n\x1a\n",), (b"PK\x03\x04", b"PK\x05\x06")
_BEGINNINGS = {".hdf5": _HDF5, ".h5": _HDF5, ".zip": _ZIP, ".npz": _ZIP}
_LONGEST_BEGINNING = 8
_TRY_AGAIN = (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS)


def download(url: str, path: Path, *, sha256: str | None = None) -> str:
    """Fetches a file, and returns its SHA-256; a file that is there already is not fetched again.

    Args:
        url: of HTTP or HTTPS.
        path: of the file.
        sha256: of its contents, where it is known.

    Raises:
        UserError: the server cannot be reached or does not have the file, sends something else, or the disk is full;
            says where to put the file by hand. What came so far is kept, and a second call goes on from there.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UserError(f"cannot download {url!r}; expected a URL that begins with http:// or https://")
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    with _opened_alone(part) as file:
        if path.exists():
            logger.info("%s is there already", path)
            return _checked_digest(path, sha256 or checksums.read_sidecar(path))
        _Download(url, path, part, file).run()
        os.fsync(file.fileno())
        digest = _checked_digest(part, sha256)
        checksums.write_sidecar(path, digest)
        part.replace(path)
        _validator_path(part).unlink(missing_ok=True)
    return digest


@dataclass(frozen=True)
class _Validator:
    """What tells whether a server still has the file that a part is the beginning of."""

    url: str
    etag: str
    last_modified: str

    @property
    def condition(self) -> str:
        """For If-Range: a weak entity tag does not promise the same bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class _Download:
    """One file on its way; `file` is the open part."""

    def __init__(self, url: str, path: Path, part: Path, file: IO[bytes]):
        self.url, self.path, self.part, self.file = url, path, part, file

    def run(self) -> None:
        """Fetches the file in as many attempts as it takes."""
        waits = iter(WAITS)
        while True:
            before = self._have()
            try:
                if self._attempt():
                    return
                reason: Any = "the connection was cut"
            except urllib.error.HTTPError as error:
                with error:
                    if error.code < 500 and error.code not in _TRY_AGAIN:
                        raise self._refused(f"answers {error.code} {error.reason}") from error
                    reason = error
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                reason = getattr(error, "reason", error) or error
            if self._have() > before:
                waits = iter(WAITS)
            wait = next(waits, None)
            if wait is None:
                raise self._refused(f"cannot be reached ({reason})")
            logger.warning("%s: %s; trying again in %g s", self.url, reason, wait)
            time.sleep(wait)

    def _attempt(self) -> bool:
        """Asks for what is missing, and returns whether all of it came."""
        have = self._have()
        validator = _read_validator(self.part, self.url) if have else None
        headers = {"Accept-Encoding": "identity", "User-Agent": "bpt-rl"}
        if validator and validator.condition:
            headers |= {"Range": f"bytes={have}-", "If-Range": validator.condition}
        try:
            response = _opener().open(
                urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT_SECONDS
            )
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            with error:  # The part is as long as the file, or longer.
                total = _total_bytes(error.headers)
            if total != have:
                self._start_again()
            return total == have
        with response:
            if response.status != http.client.PARTIAL_CONTENT:
                have = 0
            elif _first_byte(response.headers) != have:
                self._start_again()
                return False
            return self._receive(response, have)

    def _receive(self, response: Any, have: int) -> bool:
        """Writes what comes after the first `have` bytes, and returns whether that is all there is."""
        total = _total_bytes(response.headers)
        if not have:
            self._start_again()
            beginning = response.read(_LONGEST_BEGINNING)
            self._require_kind(beginning, response.headers.get_content_type())
            _write_validator(self.part, self.url, response.headers)
            have = self._write(beginning)
        else:
            logger.info("%s: going on after %d bytes", self.path.name, have)
        if total is not None:
            self._require_room(total - have)
        with _progress(self.path.name, total) as progress:
            while block := response.read(BLOCK_BYTES):
                have += self._write(block)
                if progress is not None:
                    progress.update(have, {})
        return total is None or have == total

    def _have(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def _start_again(self) -> None:
        self.file.truncate(0)
        self.file.seek(0)

    def _write(self, block: bytes) -> int:
        left = memoryview(block)
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise self._no_room(f"({error.strerror})") from error
        return len(block)

    def _require_room(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if num_bytes > free:
            raise self._no_room(f"{num_bytes} bytes are to come, {free} are free")

    def _no_room(self, what: str) -> UserError:
        return UserError(
            f"no room on the disk for {self.path}: {what}; free some space and download it again, it goes on after "
            f"{self._have()} bytes"
        )

    def _require_kind(self, beginning: bytes, content_type: str) -> None:
        """Refuses what is not of the kind that the name says."""
        expected = _BEGINNINGS.get(self.path.suffix, ())
        is_page = content_type == "text/html" or beginning.lstrip().startswith(b"<")
        if (expected and not beginning.startswith(expected)) or (not expected and is_page):
            raise self._refused(
                f"sends something else in its place ({content_type}, begins with {beginning!r}), most likely a page "
                f"that says why"
            )

    def _refused(self, what: str) -> UserError:
        return UserError(
            f"{urlsplit(self.url).hostname} {what}: {self.url}. If this machine has no way there, or the file has "
            f"moved, fetch it elsewhere and put it at {self.path}"
        )


@contextmanager
def _opened_alone(part: Path) -> Iterator[IO[bytes]]:
    """Opens a part unless another process is writing to it; an empty one is removed when the block ends."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        opened = part.open("ab", buffering=0)
    except OSError as error:
        raise UserError(
            f"cannot write to {part.parent} ({error.strerror}); choose another folder to download to"
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is downloading {part.name.removesuffix('.part')} to {part}; wait for it"
            ) from error
        try:
            yield file
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()


def _opener() -> urllib.request.OpenerDirector:
    """An opener that knows HTTP and HTTPS only, wherever it is sent on to."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _progress(name: str, total: int | None) -> Any:
    """A display, or none where the length is not known."""
    nothing: nullcontext[Progress | None] = nullcontext(None)
    return nothing if total is None else show_progress(f"downloading {name}", total, rate_name="bytes")


def _total_bytes(headers: Any) -> int | None:
    """Length of the whole file, also where only a part of it is sent."""
    match = re.fullmatch(r"bytes .*/(\d+)", headers.get("Content-Range", ""))
    length = match[1] if match else headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _first_byte(headers: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _validator_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_validator(part: Path, url: str, headers: Any) -> None:
    validator = _Validator(url, headers.get("ETag", ""), headers.get("Last-Modified", ""))
    _validator_path(part).write_text(json.dumps(asdict(validator)))


def _read_validator(part: Path, url: str) -> _Validator | None:
    try:
        validator = _Validator(**json.loads(_validator_path(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return validator if validator.url == url else None


def _checked_digest(path: Path, expected: str | None) -> str:
    found = checksums.file_digest(path)
    if expected and found != expected.lower():
        is_part = path.suffix == ".part"
        if is_part:  # Nothing can be gained by going on from there.
            path.unlink()
        raise UserError(
            f"{path} has the SHA-256 {found}, expected {expected.lower()}: it was changed on the way or on a disk, or "
            f"it is another file; {'' if is_part else 'remove it and '}download it again"
        )
    return found
