"""The pod that a process is in, read from the text of /proc/PID/cgroup as kubelets and runtimes make it."""

import pytest

from vfio_agent.pods import pod_in, pod_of

UID = "a3949ec7-2bdc-4081-b0de-abc3065637b2"
SLICE = f"pod{UID.replace('-', '_')}.slice"
OTHER = "11111111-2bdc-4081-b0de-abc3065637b2"
STATIC = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "uid"),
    [
        (f"0::/kubepods/besteffort/pod{UID}/21861c02", UID),
        (f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{SLICE}/cri-containerd-1.scope", UID),
        (f"0::/kubepods.slice/kubepods-{SLICE}/crio-1.scope", UID),
        (f"5:devices:/\n6:freezer:/node-b/kubepods/besteffort/pod{UID}/a05a", UID),
        (f"0::/../../pod{UID}/x", UID),
        (f"0::/kubepods/pod{STATIC}/x", STATIC),
        ("0::/system.slice/kubelet.service", ""),
        ("0::/kubepods/podless/x", ""),
        (f"0::/user.slice/my-pod{UID}/x", ""),
        # what is below is called as who runs there likes, also by colons
        (f"0::/kubepods/pod{UID}/a:/pod{OTHER}/b", UID),
        (f"0::/kubepods/pod{UID}/pod{OTHER}", UID),
        (f"0::/kubepods/pod{UID}/x\r0::/kubepods/pod{OTHER}", UID),
        (f"1:name=systemd:/init.scope\n0::/system.slice/x:/pod{OTHER}y", ""),
        (f"pod{UID}", ""),
        (f"0:/pod{UID}", ""),
        (f"0::/kubepods/pod{UID.upper()}/x", ""),
        (f"0::/kubepods/pod{UID}x/y", ""),
        ("\ufffd::/\ufffd/\ufffd\n::\n:::::/", ""),
        ("", ""),
    ],
)
def test_the_pod_of_a_process(text: str, uid: str) -> None:
    assert pod_in(text) == uid


def test_a_container_below_is_not_the_pod() -> None:
    assert pod_of(f"pod{UID}") == UID
    assert pod_of("21861c0254fa9bf63bc328f5567c33c6ac7e8631806af4f075cfc0c1a9df3bfb") == ""
