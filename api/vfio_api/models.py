"""The kinds of the API, as frozen models; `crd` turns them into CustomResourceDefinitions."""

from vfio_api.models_common import (
    MAX_PAIRS,
    Column,
    Condition,
    ConditionStatus,
    CrdInfo,
    Decision,
    DeviceRef,
    Metadata,
    Model,
    Resource,
)
from vfio_api.models_inventory import (
    Backend,
    ClaimRef,
    DeviceSpec,
    DeviceStatus,
    VFIODevice,
    device_object_name,
)
from vfio_api.models_migration import (
    MigrationSpec,
    Mode,
    OnConvergenceTimeout,
    Pair,
    Pause,
    PauseMethod,
    PreCopy,
    SourceSelector,
    Strategy,
    TargetSelector,
    VFIOMigration,
    Workload,
)
from vfio_api.models_status import (
    ConditionType,
    DeviceProgress,
    MigrationStatus,
    PairStatus,
    Phase,
    Progress,
    StepTiming,
)
from vfio_api.models_switchover import SwitchoverSpec, SwitchoverStatus, VFIOSwitchover
from vfio_api.quantity import parse_quantity
from vfio_api.types import Outcome

RESOURCES: tuple[type[Resource], ...] = (VFIODevice, VFIOMigration, VFIOSwitchover)

__all__ = [
    "MAX_PAIRS",
    "RESOURCES",
    "Backend",
    "ClaimRef",
    "Column",
    "Condition",
    "ConditionStatus",
    "ConditionType",
    "CrdInfo",
    "Decision",
    "DeviceProgress",
    "DeviceRef",
    "DeviceSpec",
    "DeviceStatus",
    "Metadata",
    "MigrationSpec",
    "MigrationStatus",
    "Mode",
    "Model",
    "OnConvergenceTimeout",
    "Outcome",
    "Pair",
    "PairStatus",
    "Pause",
    "PauseMethod",
    "Phase",
    "PreCopy",
    "Progress",
    "Resource",
    "SourceSelector",
    "StepTiming",
    "Strategy",
    "SwitchoverSpec",
    "SwitchoverStatus",
    "TargetSelector",
    "VFIODevice",
    "VFIOMigration",
    "VFIOSwitchover",
    "Workload",
    "device_object_name",
    "parse_quantity",
]
