"""include/uapi/linux/vfio.h, and a little of iommufd.h, for Python: numbers, structs, one function per ioctl used.

Struct sizes are asserted against the headers at import. Nothing here decides anything. Checked against the headers of
Linux 6.12; VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 and VFIO_PRECOPY_INFO_REINIT, which came later, against the patch
series as it was posted and against later patches whose context shows them in the tree, not against a released header.
"""

import fcntl
import struct
from dataclasses import dataclass
from errno import EINVAL, ENOMSG, ENOTTY

from vfio_api.device import DeviceState, MigrationFlags

_TYPE, _BASE = ord(";"), 100


def _io(number: int) -> int:
    return (_TYPE << 8) | (_BASE + number)


GET_API_VERSION = _io(0)
CHECK_EXTENSION = _io(1)
SET_IOMMU = _io(2)
GROUP_GET_STATUS = _io(3)
GROUP_SET_CONTAINER = _io(4)
GROUP_GET_DEVICE_FD = _io(6)
DEVICE_GET_INFO = _io(7)
DEVICE_GET_REGION_INFO = _io(8)
DEVICE_RESET = _io(11)
DEVICE_FEATURE = _io(17)
DEVICE_BIND_IOMMUFD = _io(18)
DEVICE_ATTACH_IOMMUFD_PT = _io(19)
MIG_GET_PRECOPY_INFO = _io(21)
IOMMU_IOAS_ALLOC = (_TYPE << 8) | 0x81  # iommufd.h has the same type, and numbers of its own

API_VERSION = 0
TYPE1V2_IOMMU = 3
GROUP_FLAGS_VIABLE = 1
DEVICE_FLAGS_PCI = 1 << 1
PCI_CONFIG_REGION_INDEX = 7
PRECOPY_INFO_REINIT = 1 << 0

FEATURE_GET = 1 << 16
FEATURE_SET = 1 << 17
FEATURE_MIGRATION = 1
FEATURE_MIG_DEVICE_STATE = 2
FEATURE_MIG_DATA_SIZE = 9
FEATURE_MIG_PRECOPY_INFO_V2 = 12

_FEATURE_HEADER = struct.Struct("=II")  # vfio_device_feature: argsz, flags
_MIGRATION = struct.Struct("=Q")  # vfio_device_feature_migration: flags
_MIG_STATE = struct.Struct("=Ii")  # vfio_device_feature_mig_state: device_state, data_fd
_DATA_SIZE = struct.Struct("=Q")  # vfio_device_feature_mig_data_size: stop_copy_length
_PRECOPY_INFO = struct.Struct("=IIQQ")  # vfio_precopy_info: argsz, flags, initial_bytes, dirty_bytes
_GROUP_STATUS = struct.Struct("=II")  # vfio_group_status: argsz, flags
_DEVICE_INFO = struct.Struct("=6I")  # vfio_device_info: argsz, flags, num_regions, num_irqs, cap_offset, pad
_REGION_INFO = struct.Struct("=IIIIQQ")  # vfio_region_info: argsz, flags, index, cap_offset, size, offset
_BIND_IOMMUFD = struct.Struct("=IIiI")  # vfio_device_bind_iommufd: argsz, flags, iommufd, out_devid
_ATTACH_PT = struct.Struct("=III")  # vfio_device_attach_iommufd_pt: argsz, flags, pt_id (later kernels: and pasid)
_IOAS_ALLOC = struct.Struct("=III")  # iommu_ioas_alloc: size, flags, out_ioas_id

for _layout, _size in (
    (_FEATURE_HEADER, 8),
    (_MIGRATION, 8),
    (_MIG_STATE, 8),
    (_DATA_SIZE, 8),
    (_PRECOPY_INFO, 24),
    (_GROUP_STATUS, 8),
    (_DEVICE_INFO, 24),
    (_REGION_INFO, 32),
    (_BIND_IOMMUFD, 16),
    (_ATTACH_PT, 12),
    (_IOAS_ALLOC, 12),
):
    if _layout.size != _size:
        raise AssertionError(f"{_layout.format} has {_layout.size} bytes, the uAPI struct has {_size}")


def _feature(fd: int, flags: int, payload: bytes) -> bytes:
    buffer = bytearray(_FEATURE_HEADER.pack(_FEATURE_HEADER.size + len(payload), flags) + payload)
    fcntl.ioctl(fd, DEVICE_FEATURE, buffer)
    return bytes(buffer[_FEATURE_HEADER.size :])


def get_migration_flags(fd: int) -> MigrationFlags:
    """VFIO_DEVICE_FEATURE_MIGRATION. Raises OSError ENOTTY if the device cannot migrate."""
    raw = _feature(fd, FEATURE_GET | FEATURE_MIGRATION, bytes(_MIGRATION.size))
    return MigrationFlags(_MIGRATION.unpack(raw)[0] & 0b111)


def get_state(fd: int) -> DeviceState:
    """VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, GET."""
    raw = _feature(fd, FEATURE_GET | FEATURE_MIG_DEVICE_STATE, bytes(_MIG_STATE.size))
    return DeviceState(_MIG_STATE.unpack(raw)[0])


def set_state(fd: int, state: DeviceState) -> int:
    """VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET; returns the data fd or -1. Raises OSError."""
    raw = _feature(fd, FEATURE_SET | FEATURE_MIG_DEVICE_STATE, _MIG_STATE.pack(state, -1))
    return int(_MIG_STATE.unpack(raw)[1])


def get_data_size(fd: int) -> int:
    """VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: stop_copy_length in bytes."""
    return int(_DATA_SIZE.unpack(_feature(fd, FEATURE_GET | FEATURE_MIG_DATA_SIZE, bytes(_DATA_SIZE.size)))[0])


def enable_precopy_info_v2(fd: int) -> bool:
    """VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2, SET: have the flags of vfio_precopy_info filled in while it is open.

    False where the kernel does not know the feature (ENOTTY) or the device has no PRE_COPY (EINVAL). Raises OSError.
    """
    try:
        _feature(fd, FEATURE_SET | FEATURE_MIG_PRECOPY_INFO_V2, b"")
    except OSError as error:
        if error.errno in (ENOTTY, EINVAL):
            return False
        raise
    return True


@dataclass(frozen=True, slots=True)
class PrecopyBytes:
    """struct vfio_precopy_info: estimates in bytes; reinit: VFIO_PRECOPY_INFO_REINIT, there is new initial data."""

    initial: int
    dirty: int
    reinit: bool


def decode_precopy_info(raw: bytes, flags_valid: bool) -> PrecopyBytes:
    """Read a struct vfio_precopy_info; its flags mean nothing unless enable_precopy_info_v2 was True."""
    _, flags, initial, dirty = _PRECOPY_INFO.unpack(raw)
    return PrecopyBytes(initial, dirty, flags_valid and bool(flags & PRECOPY_INFO_REINIT))


def get_precopy_info(data_fd: int, flags_valid: bool) -> PrecopyBytes:
    """VFIO_MIG_GET_PRECOPY_INFO on a data fd. Raises OSError EINVAL outside of the pre-copy states."""
    buffer = bytearray(_PRECOPY_INFO.pack(_PRECOPY_INFO.size, 0, 0, 0))
    fcntl.ioctl(data_fd, MIG_GET_PRECOPY_INFO, buffer)
    return decode_precopy_info(bytes(buffer), flags_valid)


def device_reset(fd: int) -> None:
    """VFIO_DEVICE_RESET."""
    fcntl.ioctl(fd, DEVICE_RESET, 0)


def check_container(fd: int) -> bool:
    """Whether /dev/vfio/vfio speaks this API version and the type 1 v2 IOMMU."""
    if fcntl.ioctl(fd, GET_API_VERSION) != API_VERSION:
        return False
    return fcntl.ioctl(fd, CHECK_EXTENSION, TYPE1V2_IOMMU) == 1


def group_viable(fd: int) -> bool:
    """VFIO_GROUP_GET_STATUS: every device of the group is bound to a VFIO driver or to none."""
    buffer = bytearray(_GROUP_STATUS.pack(_GROUP_STATUS.size, 0))
    fcntl.ioctl(fd, GROUP_GET_STATUS, buffer)
    return bool(_GROUP_STATUS.unpack(buffer)[1] & GROUP_FLAGS_VIABLE)


def group_device_fd(group: int, container: int, address: str) -> int:
    """Attach the group to the container and get the fd of one of its devices. Raises OSError."""
    fcntl.ioctl(group, GROUP_SET_CONTAINER, struct.pack("=i", container))
    fcntl.ioctl(container, SET_IOMMU, TYPE1V2_IOMMU)
    return group_device(group, address)


def group_device(group: int, address: str) -> int:
    """VFIO_GROUP_GET_DEVICE_FD of a group that has its container; one more file if it is open. Raises OSError."""
    # only with a mutable buffer does ioctl return the call's own result
    return int(fcntl.ioctl(group, GROUP_GET_DEVICE_FD, bytearray(address.encode() + b"\0")))


def bind_iommufd(device: int, iommufd: int) -> None:
    """VFIO_DEVICE_BIND_IOMMUFD: open a device whose cdev fd is given. Raises OSError.

    EINVAL: it is open by another cdev fd; EBUSY: it, or another device of its group, is open by the legacy way.
    """
    fcntl.ioctl(device, DEVICE_BIND_IOMMUFD, bytearray(_BIND_IOMMUFD.pack(_BIND_IOMMUFD.size, 0, iommufd, 0)))


def ioas_alloc(iommufd: int) -> int:
    """IOMMU_IOAS_ALLOC: the id of a new, empty I/O address space, which goes with the fd. Raises OSError."""
    buffer = bytearray(_IOAS_ALLOC.pack(_IOAS_ALLOC.size, 0, 0))
    fcntl.ioctl(iommufd, IOMMU_IOAS_ALLOC, buffer)
    return int(_IOAS_ALLOC.unpack(buffer)[2])


def attach_iommufd_pt(device: int, ioas: int) -> None:
    """VFIO_DEVICE_ATTACH_IOMMUFD_PT: let the device's DMA go through an I/O address space. Raises OSError."""
    fcntl.ioctl(device, DEVICE_ATTACH_IOMMUFD_PT, bytearray(_ATTACH_PT.pack(_ATTACH_PT.size, 0, ioas)))


def is_pci(fd: int) -> bool:
    """VFIO_DEVICE_GET_INFO: whether the device has the regions of a PCI device."""
    buffer = bytearray(_DEVICE_INFO.pack(_DEVICE_INFO.size, 0, 0, 0, 0, 0))
    fcntl.ioctl(fd, DEVICE_GET_INFO, buffer)
    return bool(_DEVICE_INFO.unpack(buffer)[1] & DEVICE_FLAGS_PCI)


def region_offset(fd: int, index: int) -> tuple[int, int]:
    """VFIO_DEVICE_GET_REGION_INFO: (offset, size) of a region, for pread and pwrite on the device fd."""
    buffer = bytearray(_REGION_INFO.pack(_REGION_INFO.size, 0, index, 0, 0, 0))
    fcntl.ioctl(fd, DEVICE_GET_REGION_INFO, buffer)
    _, _, _, _, size, offset = _REGION_INFO.unpack(buffer)
    return offset, size


NO_DATA_ERRNO = ENOMSG
