"""A control plane that is killed comes back at its address, with its data, its certificates and its tokens."""

import time

from devtools.plane import Plane


def test_what_was_stored_and_who_was_known_outlives_a_kill() -> None:
    with Plane() as plane:
        plane.kubectl("create", "configmap", "kept", "--from-literal=key=value")
        plane.kubectl("create", "serviceaccount", "known")
        plane.kubectl("create", "clusterrolebinding", "known", "--clusterrole=view", "--serviceaccount=default:known")
        kubeconfig = plane.dir / "known.kubeconfig"
        plane.service_account_kubeconfig("default", "known", kubeconfig)
        server = plane.server
        plane.kill()
        plane.restart()
        assert plane.server == server
        read = ["--kubeconfig", str(kubeconfig), "get", "configmap", "kept", "-o", "jsonpath={.data.key}"]
        deadline = time.monotonic() + 30  # who may do what is known a moment after it serves
        while (found := plane.kubectl(*read, check=False)) != "value" and time.monotonic() < deadline:
            time.sleep(0.2)
        assert found == "value"
