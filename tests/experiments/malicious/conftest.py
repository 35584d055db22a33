"""Nothing of a stranger runs in any test here: what would run leaves a marker."""

import pickle
import pickletools
from pathlib import Path

import pytest

from tests.experiments.malicious.strangers import SECRET, Touch


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "marker"


@pytest.fixture(autouse=True)
def _nothing_ran(marker, monkeypatch):
    monkeypatch.setenv("BPT_TEST_SECRET_KEY", SECRET)
    yield
    assert not marker.exists()


@pytest.fixture
def pickled(marker) -> bytes:
    """A pickle that touches the marker when it is read: it calls what `Touch` says, which is tried here by hand."""
    data = pickle.dumps(Touch(marker))
    assert "REDUCE" in {code.name for code, _, _ in pickletools.genops(data)}
    function, arguments = Touch(marker).__reduce__()
    function(*arguments)
    assert marker.exists()
    marker.unlink()
    return data
