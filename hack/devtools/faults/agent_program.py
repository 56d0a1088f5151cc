"""vfio-agent on a node whose disk can be made full: while the file VFIO_AGENT_FULL_DISK exists, nothing can be written.

An environment, not a broken agent: what is replaced is the write to the disk, which then fails as a full disk does.
Each write that failed adds a byte to a file beside it with the ending .hits: so a test knows that it happened.
"""

import errno
import os
from pathlib import Path

from vfio_agent import journal
from vfio_agent.__main__ import main

if __name__ == "__main__":
    flag = Path(os.environ["VFIO_AGENT_FULL_DISK"])
    fill = journal._fill

    def fill_or_refuse(path: str, content: bytes, *, durable: bool) -> None:
        """As the real one, on a disk that may be full."""
        if flag.exists():
            with flag.with_suffix(".hits").open("ab") as hits:
                hits.write(b".")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        fill(path, content, durable=durable)

    journal._fill = fill_or_refuse
    main()
