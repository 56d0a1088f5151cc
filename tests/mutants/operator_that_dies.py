"""vfio-operator that dies right after it has done one thing with a pod: VFIO_OPERATOR_DIES_AFTER says which one.

No mutant of a rule: what it leaves is what the next leader must be able to take up.
"""

import functools
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from vfio_operator.__main__ import main
from vfio_operator.kube_pods import KubePods


def dying(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def last(*arguments: Any, **options: Any) -> Any:
        await method(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    return last


if __name__ == "__main__":
    name = os.environ["VFIO_OPERATOR_DIES_AFTER"]
    setattr(KubePods, name, dying(getattr(KubePods, name)))
    main()
