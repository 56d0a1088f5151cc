"""vfio-agent on a node whose time of day jumps: an hour on, an hour back, with every look at it."""

import itertools
import time

from vfio_agent.__main__ import main

_HOUR = 3600.0
_jumps = itertools.cycle((_HOUR, -_HOUR, 24 * _HOUR, 0.0))
_time = time.time

if __name__ == "__main__":
    time.time = lambda: _time() + next(_jumps)
    main()
