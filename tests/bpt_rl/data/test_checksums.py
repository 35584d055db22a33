"""What sha256sum would say, and what is said of a file that changed."""

import pytest

from bpt_rl.data import checksums
from bpt_rl.types import UserError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"abc")
    return path


def test_a_checksum_is_that_of_the_standard(path):
    assert checksums.file_digest(path) == ABC


def test_long_files_are_read_in_blocks(path, monkeypatch):
    path.write_bytes(bytes(range(250)) * 3)
    whole = checksums.file_digest(path)
    monkeypatch.setattr(checksums, "_BLOCK_BYTES", 7)
    assert checksums.file_digest(path) == whole


def test_a_file_without_a_checksum_is_believed(path):
    checksums.require_unchanged(path)
    assert checksums.read_sidecar(path) is None


def test_an_unchanged_file_passes(path):
    checksums.write_sidecar(path, ABC)
    checksums.require_unchanged(path)
    assert (path.parent / "file.bin.sha256").read_text() == f"{ABC}  file.bin\n"
    assert sorted(found.name for found in path.parent.iterdir()) == ["file.bin", "file.bin.sha256"]


@pytest.mark.parametrize("line", [f"{ABC} *file.bin\n", ABC.upper(), f"\\{ABC}  file\\n.bin"])
def test_other_ways_of_writing_a_checksum(path, line):
    checksums.sidecar(path).write_text(line)
    assert checksums.read_sidecar(path) == ABC


def test_a_changed_file_is_refused(path):
    checksums.write_sidecar(path, ABC)
    path.write_bytes(b"abd")
    with pytest.raises(UserError, match=rf"file\.bin is not what it was: .*file\.bin\.sha256 says {ABC}"):
        checksums.require_unchanged(path)


@pytest.mark.parametrize("content", [b"", b"<html>", ABC[:-1].encode(), (ABC + "0").encode(), b"\xff\xfe"])
def test_what_is_no_checksum_is_refused(path, content):
    checksums.sidecar(path).write_bytes(content)
    with pytest.raises(UserError, match=r"file\.bin\.sha256 holds no SHA-256"):
        checksums.require_unchanged(path)
