"""A disk that refuses is one message with the file's name; every other error is left as it is."""

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from bpt_rl.disk import writing
from bpt_rl.types import UserError

PLACE = Path("outputs/metrics.csv")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(errno.ENOSPC, "full"),
            r"no room on the disk for outputs/metrics\.csv \(No space left on device\)",
        ),
        (
            OSError(errno.EDQUOT, "", "other.csv"),
            r"no room on the disk for other\.csv \(Disk quota exceeded\)",
        ),
        (OSError(errno.EFBIG, "big"), r"metrics\.csv \(File too large\): free some space, lift the limit"),
        (
            OSError(errno.EROFS, ""),
            r"metrics\.csv cannot be written \(Read-only file system\): choose a place",
        ),
        (
            PermissionError(errno.EACCES, "", "config.yaml"),
            r"config\.yaml cannot be written \(Permission denied\)",
        ),
        # What safetensors raises, which writes the arrays of checkpoints.
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            r"no room on the disk for outputs/metrics\.csv \(No space left on device\)",
        ),
    ],
)
def test_a_disk_that_refuses_is_named_with_the_file_and_a_way_out(error, expected):
    with pytest.raises(UserError, match=expected) as caught, writing(PLACE):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        OSError("no number"),
        FileNotFoundError(errno.ENOENT, "nothing there"),
        ValueError("os_error_code='2'"),
        UserError("no room, [os_error_code='28']"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, writing(PLACE):
        raise error
    assert caught.value is error
