"""Archives are unpacked whole, into their own folder, or not at all."""

import stat
import zipfile
from pathlib import Path

import pytest

from bpt_rl.data import unzip
from bpt_rl.data.unzip import extract_zip
from bpt_rl.types import UserError

FILES = {"buffer/episode_000000_5.npz": b"five", "buffer/deep/er/a": b"", "README": b"x" * 3000}


def _archive(path: Path, files: dict[str, bytes | zipfile.ZipInfo]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            if isinstance(content, zipfile.ZipInfo):
                archive.writestr(content, b"/etc/passwd")
            else:
                archive.writestr(name, content)
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads" / "proto.zip"


def _is_untouched(tmp_path: Path) -> bool:
    return sorted(tmp_path.rglob("*")) in (
        [tmp_path / "downloads", tmp_path / "downloads" / "proto.zip"],
        [tmp_path / "downloads"],
    )


def test_every_file_finds_its_place(path, tmp_path):
    _archive(path, FILES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.mkdir("empty")
    assert extract_zip(path, tmp_path / "walker" / "proto") == 3
    for name, content in FILES.items():
        assert (tmp_path / "walker" / "proto" / name).read_bytes() == content
    assert [folder.name for folder in (tmp_path / "walker").iterdir()] == ["proto"]


def test_an_empty_folder_is_filled(path, tmp_path):
    (tmp_path / "out").mkdir()
    assert extract_zip(_archive(path, FILES), tmp_path / "out") == 3
    assert (tmp_path / "out" / "README").read_bytes() == FILES["README"]


def test_a_folder_that_holds_something_is_left_alone(path, tmp_path):
    with pytest.raises(UserError, match="is there already"):
        extract_zip(_archive(path, FILES), tmp_path / "downloads")
    assert _is_untouched(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../passwd",
        "a/../../passwd",
        "..",
        "a\\..\\b",
        "C:\\windows",
        "C:/windows",
        "//server/share",
    ],
)
def test_paths_that_lead_out(path, tmp_path, name):
    with pytest.raises(UserError, match="a path that leads out of its folder"):
        extract_zip(_archive(path, FILES | {name: b"evil"}), tmp_path / "out")
    assert _is_untouched(tmp_path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices(path, tmp_path, kind):
    odd = zipfile.ZipInfo("buffer/link")
    odd.external_attr = (kind | 0o777) << 16
    with pytest.raises(UserError, match="holds a link or device: 'buffer/link'"):
        extract_zip(_archive(path, FILES | {"link": odd}), tmp_path / "out")
    assert _is_untouched(tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice(path, tmp_path):
    _archive(path, FILES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README", b"other")
    with pytest.raises(UserError, match="holds 'README' twice"):
        extract_zip(path, tmp_path / "out")


def test_a_file_where_another_has_its_folder(path, tmp_path):
    with pytest.raises(UserError, match=r"proto\.zip cannot be unpacked into .*out: .*File exists"):
        extract_zip(_archive(path, {"a": b"1", "a/b": b"2"}), tmp_path / "out")
    assert _is_untouched(tmp_path)


def test_more_than_compression_explains(path, tmp_path, monkeypatch):
    monkeypatch.setattr(unzip, "HARMLESS_BYTES", 1000)
    monkeypatch.setattr(unzip, "MOST_COMPRESSION", 100)
    with pytest.raises(UserError, match=r"1 files of 1000000 bytes; nothing is compressed that well"):
        extract_zip(_archive(path, {"zeros": bytes(10**6)}), tmp_path / "out")
    assert _is_untouched(tmp_path)


def test_more_than_the_disk_holds(path, tmp_path, monkeypatch):
    monkeypatch.setattr(unzip.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match=r"no room on the disk for what .*3004 bytes, 100 are free"):
        extract_zip(_archive(path, FILES), tmp_path / "out")


def test_a_flipped_bit_is_found_by_the_archive_s_own_checksums(path, tmp_path):
    content = bytearray(_archive(path, {"a": b"0123456789abcdef" * 9}).read_bytes())
    content[40] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"proto\.zip is no ZIP archive, or damaged"):
        extract_zip(path, tmp_path / "out")
    assert _is_untouched(tmp_path)


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_an_archive_that_is_cut_short(path, tmp_path, share):
    content = _archive(path, FILES).read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"proto\.zip is no ZIP archive, or damaged"):
        extract_zip(path, tmp_path / "out")
    assert _is_untouched(tmp_path)


def test_no_archive(path, tmp_path):
    with pytest.raises(UserError, match=r"there is no archive .*proto\.zip"):
        extract_zip(path, tmp_path / "out")


def test_an_encrypted_archive(path, tmp_path):
    content = bytearray(_archive(path, {"a": b"secret"}).read_bytes())
    content[6] |= 1  # The flag in the file's own header, and in the table of contents.
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged .*encrypted"):
        extract_zip(path, tmp_path / "out")


def test_ctrl_c_leaves_nothing(path, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipExtFile, "read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract_zip(_archive(path, FILES), tmp_path / "out")
    assert _is_untouched(tmp_path)
