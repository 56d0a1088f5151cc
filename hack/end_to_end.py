"""`make e2e`: the chart on real kubelets. Builds what nodes run, then the tests in two stages.

local: two nodes in namespaces of this machine, with simulated devices; needs root. guests: two virtual machines with
the kernel's own VFIO devices.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from devtools.cluster.disk import DiskError, node_disk
from devtools.cluster.runtime import container_runtime
from devtools.gobuild import BuildError, build_program
from devtools.images import IMAGES, ROOT, ImageError, build_image, pause_image
from devtools.kernel import KernelBuildError, ensure_qemu, kernel_artefacts
from devtools.kernel_apt import PackageError
from devtools.tools import MissingToolError, helm, kubectl

STAGES = ("local", "guests")
SANDBOX = ROOT / "hack/devtools/cluster/sandbox.py"
TROUBLE = (BuildError, DiskError, ImageError, KernelBuildError, MissingToolError, PackageError, OSError)


def _step(what: str, build: Callable[[], object]) -> None:
    began = time.monotonic()
    try:
        build()
    except TROUBLE as error:
        sys.exit(f"e2e: {what}: {error}")
    print(f"  {what}: {time.monotonic() - began:.1f} s", flush=True)


def _build(stages: list[str]) -> None:
    _step("kubectl and helm", lambda: (kubectl(), helm()))
    for program, folder in (("testplane", "."), ("kubelet", "kubelet"), ("forward", "forward")):
        _step(program, lambda program=program, folder=folder: build_program(program, folder))  # type: ignore[misc]
    _step("containerd, runc, network plugins", container_runtime)
    for image in IMAGES:
        _step(f"image {image.name}", lambda image=image: build_image(image))  # type: ignore[misc]
    _step("image pause", pause_image)
    if "guests" in stages:
        _step("QEMU, kernel, mtty", lambda: (ensure_qemu(), kernel_artefacts()))
        archives = [pause_image(), *(build_image(image) for image in IMAGES)]
        _step("disk of the guests", lambda: node_disk(container_runtime(), archives))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES, action="append", help="one stage only")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --; tests/e2e without any")
    given = parser.parse_args()
    stages = given.stage or list(STAGES)
    print("what the nodes run, built or from the cache", flush=True)
    _build(stages)
    failed = []
    for stage in stages:
        print(f"stage {stage}", flush=True)
        began = time.monotonic()
        tests = [str(Path(sys.executable).with_name("pytest")), "-v", "-p", "no:cacheprovider", "-x"]
        chosen = given.pytest or ["tests/e2e"]
        argv = [*([sys.executable, str(SANDBOX)] if stage == "local" else []), *tests, *chosen]
        done = subprocess.run(argv, cwd=ROOT, env={**os.environ, "VFIO_E2E_STAGE": stage}, check=False)
        print(f"stage {stage}: {'passed' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - began:.0f} s")
        failed += [stage] if done.returncode else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
