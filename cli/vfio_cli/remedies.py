"""Commands that show what a failure is about, by its reason. Pure."""

from collections.abc import Iterator, Mapping

from vfio_api.errors import Reason

# {pod} and {other}: the pod that was to move, and its counterpart; what names one that is not known is left out.
_COMMANDS: Mapping[str, tuple[str, ...]] = {
    Reason.POD_NOT_MOVABLE: ("Its controller and its volumes: kubectl describe pod {pod} -n {namespace}",),
    Reason.POD_DEVICES_SPLIT: ("Which devices the pods have: kubectl get vfd -o wide",),
    Reason.DEVICE_AMBIGUOUS: ("How a process says which file is which: docs/guide/connect-a-workload.md",),
    Reason.FORBIDDEN_POD: (
        "As who asked: kubectl auth can-i delete pods -n {namespace}; kubectl auth can-i create pods -n {namespace}",
    ),
    Reason.POLICY_CONFLICT: ("The policies: kubectl get vfp -o yaml; pairs in conflict: kubectl vfio doctor",),
    Reason.NODE_BEING_EMPTIED: ("Who empties it, and how far that is: kubectl get vfe -o wide",),
    Reason.POD_GONE: ("What became of it: kubectl events --for pod/{pod} -n {namespace}",),
    Reason.TARGET_POD_FAILED: (
        "What became of the counterpart: kubectl events --for pod/{other} -n {namespace}",
        "How much room a node has: kubectl describe node; for how long a counterpart is waited for: "
        "operator.migrations.targetPodSeconds of the chart",
    ),
    Reason.PAUSE_FAILED: ("What it says itself: kubectl logs {pod} -n {namespace}",),
    Reason.RESUME_FAILED: ("Whether it runs: kubectl logs {pod} -n {namespace} --since=1m",),
}


def remedies(reason: str, *, namespace: str, pod: str = "", other: str = "") -> Iterator[str]:
    """What else to look at after a failure; pod and other may be ""."""
    known = {"namespace": namespace} | {key: name for key, name in (("pod", pod), ("other", other)) if name}
    for command in _COMMANDS.get(reason, ()):
        if all(f"{{{key}}}" not in command for key in ("pod", "other") if key not in known):
            yield command.format(**known)
