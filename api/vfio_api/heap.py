"""The heap of a process that runs for long, and must not pause while devices are down."""

import gc

# Objects made since the last search, and how many searches of the young come between two of the older ones. By default
# 700, so that the objects of one switchover are searched several times within it.
THRESHOLDS = 10_000, 10, 10


def settle() -> None:
    """Leave what there is by now out of every later search for garbage, and search less often; to be called once the
    process has started. See gc.freeze.

    A full collection stops all threads for as long as it takes to visit every object. Of an operator or an agent at
    rest 80,000 to 100,000 are modules, classes and schemas that stay as long as the process does: 60 to 170 ms, which
    may fall into a downtime.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
