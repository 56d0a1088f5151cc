"""What an errno of a device's data stream most likely means, and what to do next."""

import errno

_ADVICE = {
    errno.ENOMEM: "its node is out of memory for the state: free some there, or choose another target",
    errno.ENOSPC: "its node has no room for the state: free some there, or choose another target",
    errno.ENODEV: "the device is gone: look at the kernel log of its node",
    errno.EFAULT: "its driver could not copy these bytes: look at the kernel log of its node",
    errno.EINVAL: "the state does not fit or came incomplete: compare driver and firmware versions of both devices",
    errno.ENOMSG: "a driver may not say so in STOP_COPY: look for a fixed driver, or migrate without pre-copy",
}


def advice(code: int | None) -> str:
    """The next step after a device failed with this errno."""
    return _ADVICE.get(code or 0, "look at the kernel log of its node")
