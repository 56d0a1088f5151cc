"""Names that both sides, the chart and the tests must agree on."""

API = "vfiomigration.io"
FINALIZER = f"{API}/migration"
FINISHED_LABEL = f"{API}/finished"
# Who created a VFIOMigration: written by admission, never by hand (the policies of the chart).
REQUESTER_ANNOTATION = f"{API}/requester"
# A span, as W3C Trace Context writes it, that led to a VFIOMigration: its trace links to that one.
TRACEPARENT_ANNOTATION = f"{API}/traceparent"
# On both pods of a move, until it is over: the UID of their VFIOMigration.
MIGRATION_LABEL = f"{API}/migration"
# On the migrations of an evacuation: its name.
EVACUATION_LABEL = f"{API}/evacuation"
# On the counterpart of a pod: the migration (namespace/name) that it came by, and the name that all began with.
INCOMING_ANNOTATION = f"{API}/incoming"
BASE_NAME_ANNOTATION = f"{API}/base-name"
# On the counterpart until it is the only one: the labels and owners that it is to have then, as JSON.
HERITAGE_ANNOTATION = f"{API}/heritage"
# On both pods of a move: the pod-deletion-cost that the source had, if any: that is what it is to cost again.
COST_ANNOTATION = f"{API}/deletion-cost"
# In every container of the counterpart: its devices come from the agent's socket, {"take": true}.
INCOMING_ENV = "VFIO_MIGRATION_INCOMING"
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
