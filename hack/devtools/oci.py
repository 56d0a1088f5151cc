"""OCI image archives without a container engine: layers from folders, the same bytes for the same content.

Source: the OCI image specification (image-layout, manifest, config, layer).
"""

import gzip
import hashlib
import io
import json
import platform
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
COMPRESSION = 6


@dataclass(frozen=True)
class ImageConfig:
    """What an image is called and how it runs. user: "uid:gid"."""

    name: str
    tag: str
    entrypoint: Sequence[str]
    user: str = "0:0"
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """As a container runtime knows it once it is imported."""
        return f"docker.io/library/{self.name}:{self.tag}"


def seal_layer(root: Path, target: Path) -> None:
    """Turn the folder `root` into target/layer.tar.gz, target/digest (of that) and target/diff-id (of the tar)."""
    plain = target / "layer.tar"
    with tarfile.open(plain, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            _add(tar, path, str(path.relative_to(root)))
    packed = target / "layer.tar.gz"
    with (
        plain.open("rb") as source,
        packed.open("wb") as out,
        # no name, no time: the same content is the same archive
        gzip.GzipFile("", "wb", COMPRESSION, out, mtime=0) as compressed,
    ):
        shutil.copyfileobj(source, compressed, 1 << 20)
    for file, name in ((plain, "diff-id"), (packed, "digest")):
        with file.open("rb") as content:
            (target / name).write_text(hashlib.file_digest(content, "sha256").hexdigest())
    plain.unlink()


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """One entry, the same whoever made the file and when."""
    entry = tar.gettarinfo(path, arcname=name)
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    executable = entry.isdir() or entry.issym() or entry.mode & 0o111
    entry.mode = 0o1777 if name == "tmp" else 0o755 if executable else 0o644
    if entry.isreg():
        with path.open("rb") as content:
            tar.addfile(entry, content)
    else:
        tar.addfile(entry)


def write_archive(config: ImageConfig, layers: Sequence[Path], target: Path) -> None:
    """Write target/image.tar, for `ctr images import`, `docker load` or `skopeo copy oci-archive:...`.

    layers: folders that `seal_layer` filled, the lowest first.
    """
    packed = [(layer / "layer.tar.gz", (layer / "digest").read_text()) for layer in layers]
    document = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {
            "Entrypoint": list(config.entrypoint),
            "User": config.user,
            "Env": [f"{key}={value}" for key, value in config.environment.items()],
            "Labels": dict(config.labels),
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{(layer / 'diff-id').read_text()}" for layer in layers]},
    }
    texts: list[tuple[str, bytes]] = []

    def stored(kind: str, content: object) -> dict[str, object]:
        raw = json.dumps(content, sort_keys=True).encode()
        digest = hashlib.sha256(raw).hexdigest()
        texts.append((digest, raw))
        return _descriptor(kind, digest, len(raw))

    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": stored(CONFIG, document),
        "layers": [_descriptor(LAYER, digest, file.stat().st_size) for file, digest in packed],
    }
    names = {"io.containerd.image.name": config.reference, "org.opencontainers.image.ref.name": config.tag}
    index = {"schemaVersion": 2, "manifests": [stored(MANIFEST, manifest) | {"annotations": names}]}
    with tarfile.open(target / "image.tar", "w") as tar:
        _put(tar, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _put(tar, "index.json", json.dumps(index, sort_keys=True).encode())
        for digest, raw in texts:
            _put(tar, f"blobs/sha256/{digest}", raw)
        for file, digest in packed:
            entry = tarfile.TarInfo(f"blobs/sha256/{digest}")
            entry.mode, entry.size = 0o644, file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(entry, content)


def _descriptor(kind: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}


def _put(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.size = 0o644, len(content)
    tar.addfile(entry, io.BytesIO(content))
