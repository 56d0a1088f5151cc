"""The project's images without a container engine and without a registry, as OCI archives.

Three layers: this machine's Python with the libraries that it needs, the pinned packages of one side, the project
itself. Byte code is compiled into them and never checked against its source, since a read-only image cannot write it
anew. operator/Dockerfile and agent/Dockerfile make the same from a base image.
"""

import compileall
import os
import platform
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from devtools.cache import build_once, content_key
from devtools.gobuild import build_program
from devtools.oci import ImageConfig, seal_layer, write_archive

ROOT = Path(__file__).resolve().parents[2]
PREFIX = Path("/usr/local")
APP = "/app"
SOURCES = [Path(__file__), Path(__file__).with_name("oci.py")]
# of the standard library: what no server needs
UNUSED = frozenset({"site-packages", "test", "idlelib", "tkinter", "ensurepip", "lib2to3", "turtledemo", "__pycache__"})
UNUSED_PARTS = ("config-", "_tkinter.", "_test", "_xxtest", "_ctypes_test.")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PASSWD = "root:x:0:0:root:/root:/sbin/nologin\nvfio:x:65532:65532:vfio:/tmp:/sbin/nologin\n"


class ImageError(RuntimeError):
    """An image cannot be built; the message says what is missing."""


@dataclass(frozen=True)
class Image:
    """What an image holds. scripts: command -> module whose main() it runs. user: "uid:gid"."""

    name: str
    requirements: Path
    packages: Sequence[Path]
    scripts: Mapping[str, str]
    entry: str
    user: str
    description: str

    def config(self) -> ImageConfig:
        """How it runs."""
        release = version("vfio-migration")
        environment = {
            "PATH": f"{APP}/bin:{PREFIX}/bin",
            "PYTHONPATH": f"{APP}:{APP}/packages",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/tmp",
            "SSL_CERT_FILE": str(CERTIFICATES),
        }
        labels = {
            "org.opencontainers.image.title": self.name,
            "org.opencontainers.image.description": self.description,
            "org.opencontainers.image.version": release,
            "org.opencontainers.image.licenses": "Apache-2.0",
        }
        return ImageConfig(self.name, release, [self.entry], self.user, environment, labels)


OPERATOR = Image(
    "vfio-operator",
    ROOT / "requirements/operator.txt",
    (ROOT / "api/vfio_api", ROOT / "operator/vfio_operator", ROOT / "cli/vfio_cli"),
    {
        "vfio-operator": "vfio_operator.__main__",
        "vfio-operator-uninstall": "vfio_operator.uninstall",
        "kubectl-vfio": "vfio_cli.__main__",
        "kubectl_complete-vfio": "vfio_cli.completion",
    },
    "vfio-operator",
    "65532:65532",
    "Operator of VFIO workload migration for Kubernetes",
)
AGENT = Image(
    "vfio-agent",
    ROOT / "requirements/agent.txt",
    (ROOT / "api/vfio_api", ROOT / "agent/vfio_agent"),
    {
        "vfio-agent": "vfio_agent.__main__",
        "vfio-keeper": "vfio_agent.keeper",
        "vfio-simulator": "vfio_agent.devices.simulator",
    },
    "vfio-agent",
    "0:0",
    "Node agent of VFIO workload migration for Kubernetes",
)
IMAGES = (OPERATOR, AGENT)
PAUSE = ImageConfig("pause", "1", ["/pause"], "65535:65535")


def build_image(image: Image) -> Path:
    """The image as an OCI archive in the cache, built if its content is new. Raises ImageError, OSError."""
    layers = [_python_layer(), _packages_layer(image.requirements), _project_layer(image)]
    key = content_key([layer / "digest" for layer in layers], repr(image.config()))
    return build_once(f"image-{image.name}", key, lambda to: write_archive(image.config(), layers, to)) / "image.tar"


def pause_image() -> Path:
    """The image of pods' sandboxes, for nodes of tests. Raises what `build_program` raises."""
    program = build_program("pause", "pause")

    def build(target: Path) -> None:
        with_root(target, lambda root: shutil.copy(program, root / "pause"))
        write_archive(PAUSE, [target], target)

    return build_once("image-pause", content_key([*SOURCES, program]), build) / "image.tar"


def with_root(target: Path, stage: Callable[[Path], object]) -> None:
    """Have `stage` fill a folder, and make it target's layer."""
    root = target / "root"
    root.mkdir()
    stage(root)
    seal_layer(root, target)
    shutil.rmtree(root)


def _python_layer() -> Path:
    """The interpreter that runs this, its standard library, and every shared library that they load."""
    key = content_key([*SOURCES, Path(os.path.realpath(sys.executable))], sys.version, platform.platform())
    return build_once("image-layer-python", key, lambda target: with_root(target, _stage_python))


def _packages_layer(requirements: Path) -> Path:
    key = content_key([*SOURCES, requirements], sys.version, platform.machine())
    return build_once(
        f"image-layer-{requirements.stem}-packages",
        key,
        lambda target: with_root(target, lambda root: _stage_packages(root, requirements)),
    )


def _project_layer(image: Image) -> Path:
    sources = [file for package in image.packages for file in sorted(package.rglob("*.py"))]
    key = content_key([*SOURCES, *sources], repr(image.config()), sys.version)
    return build_once(
        f"image-layer-{image.name}", key, lambda target: with_root(target, lambda root: _stage_project(root, image))
    )


def _compile(root: Path) -> None:
    compileall.compile_dir(
        root,
        quiet=2,
        force=True,
        stripdir=str(root),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def _stage_python(root: Path) -> None:
    program = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    into = root / PREFIX.relative_to("/")
    _copy(program, into / "bin" / name)
    (into / "bin/python3").symlink_to(name)
    shutil.copytree(library, into / "lib" / name, ignore=_unused, symlinks=True)
    loaded = [program, *(into / "lib" / name).rglob("*.so")]
    for needed in _libraries(loaded):
        _copy(needed, root / needed.relative_to("/"))
    for folder in ("tmp", "proc", "sys", "dev", "run", "etc", "var"):
        (root / folder).mkdir(exist_ok=True)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    if CERTIFICATES.exists():
        _copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    _compile(root)


def _unused(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name in UNUSED or name.startswith(UNUSED_PARTS)}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(os.path.realpath(source), target)


def _libraries(files: Sequence[Path]) -> Iterator[Path]:
    """Every shared library that these files load, each once, at the path at which the loader looks for it."""
    seen: set[str] = set()
    for file in files:
        listed = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=False).stdout
        for line in listed.splitlines():
            path = next((word for word in line.split() if word.startswith("/")), "")
            if path and path not in seen:
                seen.add(path)
                yield Path(path)


def _stage_packages(root: Path, requirements: Path) -> None:
    into = root / APP.lstrip("/") / "packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"]
    result = subprocess.run(
        [*command, "--target", str(into), "-r", str(requirements)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        why = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise ImageError(f"pip could not install {requirements.name} ({why}): check that pip reaches a package index")
    shutil.rmtree(into / "bin", ignore_errors=True)
    for needed in _libraries(sorted(into.rglob("*.so"))):
        if into not in needed.parents:
            _copy(needed, root / needed.relative_to("/"))
    _compile(root)


def _stage_project(root: Path, image: Image) -> None:
    app = root / APP.lstrip("/")
    for package in image.packages:
        shutil.copytree(package, app / package.name, ignore=_unused)
    release = version("vfio-migration")
    info = app / f"vfio_migration-{release}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vfio-migration\nVersion: {release}\n")
    for script, module in image.scripts.items():
        path = app / "bin" / script
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{PREFIX}/bin/python3\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n")
        path.chmod(0o755)
    _compile(root)
