"""Names that both sides, the chart and the tests must agree on."""

API = "vfiomigration.io"
FINALIZER = f"{API}/migration"
FINISHED_LABEL = f"{API}/finished"
# Who created a VFIOMigration: written by admission, never by hand (the policies of the chart).
REQUESTER_ANNOTATION = f"{API}/requester"
# A span, as W3C Trace Context writes it, that led to a VFIOMigration: its trace links to that one.
TRACEPARENT_ANNOTATION = f"{API}/traceparent"
REQUESTER_POLICY = "vfio-migration-requester"
DEVICE_USER_ROLE = "vfio-device-user"
LEASE_NAME = "vfio-operator"
ADDRESS_ANNOTATION = f"{API}/leader-address"
EPOCH_ANNOTATION = f"{API}/epoch"
CA_CONFIGMAP = "vfio-operator-ca"
CA_KEY = "ca.crt"
# Fixed, so that the leader's address may be any: the certificate says this name.
TLS_NAME = "vfio-operator.vfiomigration.io"
TOKEN_AUDIENCE = "vfio-operator"  # noqa: S105 - an audience, not a token
AGENT_SERVICE_ACCOUNT = "vfio-agent"
# Who decided, if it was the agent of a source node: this and the node's name (VFIOSwitchover.status.decision.by).
AGENT_PREFIX = "vfio-agent/"
