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
from vfio_api.models_evacuation import EvacuationSpec, VFIOEvacuation
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
    Pair,
    Pause,
    SourceSelector,
    TargetSelector,
    VFIOMigration,
    Workload,
)
from vfio_api.models_policy import PolicySpec, VFIOMigrationPolicy
from vfio_api.models_status import (
    ConditionType,
    DeviceProgress,
    MigrationStatus,
    PairStatus,
    Phase,
    Progress,
    StepTiming,
)
from vfio_api.models_strategy import OnConvergenceTimeout, PreCopy, Strategy
from vfio_api.models_switchover import SwitchoverSpec, SwitchoverStatus, VFIOSwitchover
from vfio_api.quantity import parse_quantity
from vfio_api.types import Outcome, PauseMethod

RESOURCES: tuple[type[Resource], ...] = (VFIODevice, VFIOEvacuation, VFIOMigration, VFIOMigrationPolicy, VFIOSwitchover)

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
    "EvacuationSpec",
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
    "PolicySpec",
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
    "VFIOEvacuation",
    "VFIOMigration",
    "VFIOMigrationPolicy",
    "VFIOSwitchover",
    "Workload",
    "device_object_name",
    "parse_quantity",
]
