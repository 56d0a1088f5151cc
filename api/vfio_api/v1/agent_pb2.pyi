from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AgentMessage(_message.Message):
    __slots__ = ("hello", "report", "pong", "token", "looked", "leaving")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOOKED_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    report: SessionReport
    pong: int
    token: str
    looked: int
    leaving: Leaving
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., report: _Optional[_Union[SessionReport, _Mapping]] = ..., pong: _Optional[int] = ..., token: _Optional[str] = ..., looked: _Optional[int] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ...) -> None: ...

class OperatorMessage(_message.Message):
    __slots__ = ("welcome", "command", "ping", "look")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    LOOK_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    command: Command
    ping: int
    look: int
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., command: _Optional[_Union[Command, _Mapping]] = ..., ping: _Optional[int] = ..., look: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "version", "incarnation", "instance", "data_address", "highest_epoch", "sessions")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    incarnation: str
    instance: str
    data_address: str
    highest_epoch: int
    sessions: _containers.RepeatedCompositeFieldContainer[SessionReport]
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., incarnation: _Optional[str] = ..., instance: _Optional[str] = ..., data_address: _Optional[str] = ..., highest_epoch: _Optional[int] = ..., sessions: _Optional[_Iterable[_Union[SessionReport, _Mapping]]] = ...) -> None: ...

class Leaving(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("epoch", "node")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    node: str
    def __init__(self, epoch: _Optional[int] = ..., node: _Optional[str] = ...) -> None: ...

class MigrationKey(_message.Message):
    __slots__ = ("uid", "namespace", "name")
    UID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    uid: str
    namespace: str
    name: str
    def __init__(self, uid: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("migration", "role", "goal", "epoch", "sequence", "deadline_milliseconds", "decision", "spec", "peers", "attempt", "again")
    MIGRATION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    migration: MigrationKey
    role: str
    goal: str
    epoch: int
    sequence: int
    deadline_milliseconds: int
    decision: str
    spec: SessionSpec
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    attempt: int
    again: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, migration: _Optional[_Union[MigrationKey, _Mapping]] = ..., role: _Optional[str] = ..., goal: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., deadline_milliseconds: _Optional[int] = ..., decision: _Optional[str] = ..., spec: _Optional[_Union[SessionSpec, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., attempt: _Optional[int] = ..., again: _Optional[_Iterable[str]] = ...) -> None: ...

class SessionSpec(_message.Message):
    __slots__ = ("devices", "pre_copy", "bandwidth_limit_bytes_per_second", "switchover_timeout_milliseconds", "no_switchover_ack", "workloads")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    PRE_COPY_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_LIMIT_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SWITCHOVER_TIMEOUT_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    NO_SWITCHOVER_ACK_FIELD_NUMBER: _ClassVar[int]
    WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[SessionDevice]
    pre_copy: bool
    bandwidth_limit_bytes_per_second: int
    switchover_timeout_milliseconds: int
    no_switchover_ack: bool
    workloads: _containers.RepeatedCompositeFieldContainer[Workload]
    def __init__(self, devices: _Optional[_Iterable[_Union[SessionDevice, _Mapping]]] = ..., pre_copy: _Optional[bool] = ..., bandwidth_limit_bytes_per_second: _Optional[int] = ..., switchover_timeout_milliseconds: _Optional[int] = ..., no_switchover_ack: _Optional[bool] = ..., workloads: _Optional[_Iterable[_Union[Workload, _Mapping]]] = ...) -> None: ...

class Workload(_message.Message):
    __slots__ = ("pod_uid", "pod_namespace", "pod_name", "method", "timeout_milliseconds", "hook", "moved")
    POD_UID_FIELD_NUMBER: _ClassVar[int]
    POD_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_NAME_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    HOOK_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    pod_uid: str
    pod_namespace: str
    pod_name: str
    method: str
    timeout_milliseconds: int
    hook: Hook
    moved: bool
    def __init__(self, pod_uid: _Optional[str] = ..., pod_namespace: _Optional[str] = ..., pod_name: _Optional[str] = ..., method: _Optional[str] = ..., timeout_milliseconds: _Optional[int] = ..., hook: _Optional[_Union[Hook, _Mapping]] = ..., moved: _Optional[bool] = ...) -> None: ...

class Hook(_message.Message):
    __slots__ = ("address", "port", "path", "timeout_milliseconds", "retries")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    address: str
    port: int
    path: str
    timeout_milliseconds: int
    retries: int
    def __init__(self, address: _Optional[str] = ..., port: _Optional[int] = ..., path: _Optional[str] = ..., timeout_milliseconds: _Optional[int] = ..., retries: _Optional[int] = ...) -> None: ...

class SessionDevice(_message.Message):
    __slots__ = ("name", "address", "peer_node", "pod_uid")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PEER_NODE_FIELD_NUMBER: _ClassVar[int]
    POD_UID_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    peer_node: str
    pod_uid: str
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., peer_node: _Optional[str] = ..., pod_uid: _Optional[str] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("node", "data_address", "certificate")
    NODE_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    node: str
    data_address: str
    certificate: bytes
    def __init__(self, node: _Optional[str] = ..., data_address: _Optional[str] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class SessionReport(_message.Message):
    __slots__ = ("migration_uid", "role", "epoch", "sequence", "reached", "backward", "certificate", "devices", "failure", "timings", "link_bytes_per_second", "lost", "attempt", "turned_microseconds")
    MIGRATION_UID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    LINK_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TURNED_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    migration_uid: str
    role: str
    epoch: int
    sequence: int
    reached: str
    backward: bool
    certificate: bytes
    devices: _containers.RepeatedCompositeFieldContainer[DeviceReport]
    failure: Failure
    timings: _containers.RepeatedCompositeFieldContainer[Timing]
    link_bytes_per_second: int
    lost: _containers.RepeatedScalarFieldContainer[str]
    attempt: int
    turned_microseconds: int
    def __init__(self, migration_uid: _Optional[str] = ..., role: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., reached: _Optional[str] = ..., backward: _Optional[bool] = ..., certificate: _Optional[bytes] = ..., devices: _Optional[_Iterable[_Union[DeviceReport, _Mapping]]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., timings: _Optional[_Iterable[_Union[Timing, _Mapping]]] = ..., link_bytes_per_second: _Optional[int] = ..., lost: _Optional[_Iterable[str]] = ..., attempt: _Optional[int] = ..., turned_microseconds: _Optional[int] = ...) -> None: ...

class DeviceReport(_message.Message):
    __slots__ = ("name", "address", "state", "flags", "stop_copy_bytes", "initial_bytes", "dirty_bytes", "transferred_bytes", "bytes_per_second", "initial_acknowledged", "drained", "size_unknown")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    STOP_COPY_BYTES_FIELD_NUMBER: _ClassVar[int]
    INITIAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIRTY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRANSFERRED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    INITIAL_ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    SIZE_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    state: int
    flags: int
    stop_copy_bytes: int
    initial_bytes: int
    dirty_bytes: int
    transferred_bytes: int
    bytes_per_second: int
    initial_acknowledged: bool
    drained: bool
    size_unknown: bool
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[int] = ..., flags: _Optional[int] = ..., stop_copy_bytes: _Optional[int] = ..., initial_bytes: _Optional[int] = ..., dirty_bytes: _Optional[int] = ..., transferred_bytes: _Optional[int] = ..., bytes_per_second: _Optional[int] = ..., initial_acknowledged: _Optional[bool] = ..., drained: _Optional[bool] = ..., size_unknown: _Optional[bool] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason", "message", "device", "arc", "errno")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ARC_FIELD_NUMBER: _ClassVar[int]
    ERRNO_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    device: str
    arc: str
    errno: int
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., device: _Optional[str] = ..., arc: _Optional[str] = ..., errno: _Optional[int] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("step", "microseconds")
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    step: str
    microseconds: int
    def __init__(self, step: _Optional[str] = ..., microseconds: _Optional[int] = ...) -> None: ...
