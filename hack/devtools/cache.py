"""A cache of built things on disk, shared by all checkouts of one user."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """Return the cache's directory; it need not exist yet."""
    if own := os.environ.get("VFIO_MIGRATION_CACHE"):
        return Path(own).absolute()
    if user := os.environ.get("XDG_CACHE_HOME"):
        return Path(user).absolute() / "vfio-migration"
    return Path.home() / ".cache" / "vfio-migration"


def content_key(paths: Iterable[Path], *extra: str) -> str:
    """Return 16 hex digits that change with a file's name or content, or with any of extra.

    Only the last part of each path counts, so that all checkouts agree.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    parts = [part for path in sorted(paths) for part in (path.name.encode(), path.read_bytes())]
    for part in [*parts, b"", *(text.encode() for text in extra)]:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:16]


def build_once(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the directory cache_root()/name-key, calling build to fill it if it is not there yet.

    build gets an empty directory beside the final one, which takes its final name only when build
    returns. Others who want the same meanwhile, in this process or another, wait. A build that fails
    or is killed leaves nothing that is ever returned.

    Raises:
        OSError: the cache cannot be written.
        Exception: whatever build raises.
    """
    root = cache_root()
    final, partial = root / f"{name}-{key}", root / f"{name}-{key}.partial"
    if final.is_dir():
        return final
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f"{name}-{key}.lock"):
        if final.is_dir():
            return final
        shutil.rmtree(partial, ignore_errors=True)  # of a builder that was killed
        partial.mkdir()
        try:
            build(partial)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file that exists only while somebody holds or wants it."""
    while True:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_still(lock.fileno(), path):
                continue  # the one before us removed it: lock the file that others see now
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_still(descriptor: int, path: Path) -> bool:
    """Say whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
