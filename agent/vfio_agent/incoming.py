"""What the counterpart of a pod is to take over on this node."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Incoming:
    """The devices that a pod is to take over: names in the migration and addresses here.

    ready: every one is held and loads. running: every one runs, and is the pod's.
    """

    devices: tuple[tuple[str, str], ...]
    ready: bool
    running: bool
