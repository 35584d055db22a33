"""Fetches datasets to where their ids are looked for."""

from pathlib import Path

from bpt_rl.data import d4rl_catalogue, ids
from bpt_rl.types import UserError

# ExoRL's own script and OGBench's own library fetch from these places.
EXORL_URL = "https://dl.fbaipublicfiles.com/exorl"
OGBENCH_URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"


def fetch(text: str, *, sha256: str | None = None) -> str:
    """Fetches a dataset, going on where an earlier attempt stopped, and returns where it is.

    Args:
        text: its id.
        sha256: what the file's checksum must be.

    Raises:
        UserError: it is no id of a dataset that can be fetched, it cannot be reached, or is not what was expected.
    """
    named = ids.parse(text)
    if named.scheme == ids.GENERATED:
        raise UserError("generated histories are made when they are asked for; there is nothing to fetch")
    if not named.name:
        raise UserError(
            f"{text} is on this machine already, at {named.path}; name a dataset by its id to fetch it"
        )
    if sha256 and named.scheme == "minari":
        raise UserError("Minari's library checks its datasets itself; leave out --sha256")
    match named.scheme:
        case "minari":
            return _minari(named.name)
        case "d4rl":
            assert named.path is not None
            return str(_file(d4rl_catalogue.find(named.name).url, named.path, sha256))
        case "ogbench":
            assert named.path is not None
            return str(_file(f"{OGBENCH_URL}/{named.name}.npz", named.path, sha256))
        case _:
            return str(_exorl(named.name, sha256))


def _file(url: str, path: Path, sha256: str | None) -> Path:
    from bpt_rl.data.download import download

    path.parent.mkdir(parents=True, exist_ok=True)
    download(url, path, sha256=sha256)
    return path


def _minari(name: str) -> str:
    from bpt_rl.data import minari

    if name not in minari.list_local():
        minari.download(name)
    return f"Minari's folder, as {name}"


def _exorl(name: str, sha256: str | None) -> Path:
    """Fetches the archive of one domain and algorithm, and unpacks it."""
    from bpt_rl.data.unzip import extract_zip

    domain, slash, algorithm = name.partition("/")
    if not slash or "/" in algorithm:
        raise UserError(
            f"ExoRL's datasets are called exorl:DOMAIN/ALGORITHM, such as exorl:walker/proto; got {name!r}"
        )
    folder = ids.exorl_folder() / domain / algorithm
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it to fetch the episodes again")
    archive = _file(f"{EXORL_URL}/{domain}/{algorithm}.zip", folder.with_suffix(".zip"), sha256)
    extract_zip(archive, folder)
    archive.unlink()
    return folder
