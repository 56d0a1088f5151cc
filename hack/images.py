"""`make images`: the project's images as OCI archives in dist/, without a container engine or a registry."""

import argparse
import shutil
import sys
from pathlib import Path

from devtools.gobuild import BuildError
from devtools.images import IMAGES, ROOT, ImageError, build_image
from devtools.tools import MissingToolError


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / "dist", help="folder for the archives (dist)")
    into: Path = parser.parse_args().into
    into.mkdir(parents=True, exist_ok=True)
    for image in IMAGES:
        try:
            archive = build_image(image)
        except (ImageError, BuildError, MissingToolError, OSError) as error:
            sys.exit(f"images: {image.name}: {error}")
        copy = into / f"{image.name}.tar"
        shutil.copyfile(archive, copy)
        print(f"{copy}: {image.config().reference}, {copy.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
