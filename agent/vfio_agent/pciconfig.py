"""The registers of a PCI device that its user set up and that its migration state does not carry, without I/O.

Saved are, by their offsets in linux/pci_regs.h: of the header PCI_COMMAND (I/O, memory, bus master, INTx disable),
cache line size, latency timer and interrupt line; of MSI the address, data, mask and, of its control, enable and the
number of messages; of MSI-X, of its control, enable and function mask. Not saved are the base addresses, which are the
host's own (vfio-pci shows those of the function on its host), and the MSI-X table, which lies behind one of them.

vfio-pci virtualises what it must: MSI enable is dropped and MSI-X control is read-only there until the user has armed
its eventfds with VFIO_DEVICE_SET_IRQS, which sets both. So a workload that takes interrupts does that again at the
target; writing these registers then and now does no harm, and drivers of mediated devices may keep them.
"""

import struct
from dataclasses import dataclass

__all__ = ["CONFIG_BYTES", "MAX_BYTES", "Capability", "ConfigError", "Snapshot", "Write", "decode", "restore", "save"]

CONFIG_BYTES = 256
"""Bytes of the configuration space that every PCI device has; what is saved lies in these."""

_IDENTITY, _COMMAND, _STATUS, _CACHE_LINE, _LATENCY = 0x00, 0x04, 0x06, 0x0C, 0x0D
_HEADER_TYPE, _CAPABILITIES, _INTERRUPT_LINE, _HEADER_BYTES = 0x0E, 0x34, 0x3C, 0x40
_STATUS_CAP_LIST = 1 << 4
_COMMAND_MASK = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 10  # I/O, memory, bus master, INTx disable
_MSI, _MSIX = 0x05, 0x11
_MSI_CONTROL_MASK, _MSI_64BIT, _MSI_MASKABLE = 0x0071, 1 << 7, 1 << 8  # mask: enable, multiple message enable
_MSIX_CONTROL_MASK = 1 << 15 | 1 << 14  # enable, function mask

_HEAD = struct.Struct("<4sBBBxI")  # magic, version, capabilities, registers, vendor and device ID
_CAPABILITY = struct.Struct("<BB")  # ID, offset
_REGISTER = struct.Struct("<BBI")  # offset, width in bytes, value
_MAGIC, _VERSION = b"VPCI", 1
_MAX_CAPABILITIES = (CONFIG_BYTES - _HEADER_BYTES) // 4
MAX_BYTES = _HEAD.size + _MAX_CAPABILITIES * _CAPABILITY.size + 0xFF * _REGISTER.size
"""No saved configuration is longer."""


class ConfigError(ValueError):
    """These bytes are no configuration space, no saved registers, or not those of such a device."""


@dataclass(frozen=True, slots=True)
class Capability:
    """An entry of the list of capabilities: its ID, and its offset in bytes."""

    id: int
    offset: int


@dataclass(frozen=True, slots=True)
class Register:
    """A register of which the bits of `mask` are the user's; offset and width in bytes."""

    offset: int
    width: int
    mask: int


@dataclass(frozen=True, slots=True)
class Write:
    """A value of a register; offset and width in bytes, the byte order on the bus is little-endian."""

    offset: int
    width: int
    value: int

    def data(self) -> bytes:
        """What is written."""
        return self.value.to_bytes(self.width, "little")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is saved of one device: which one it is, how it is laid out, and the user's bits, the command last."""

    identity: int
    capabilities: tuple[Capability, ...]
    values: tuple[Write, ...]


def save(config: bytes) -> bytes:
    """What to carry of a device whose configuration space begins with these bytes. Raises ConfigError."""
    return _encode(_take(_whole(config)))


def restore(saved: bytes, config: bytes) -> tuple[Write, ...]:
    """The writes that make a device, whose configuration space is `config` now, what `save` saw elsewhere.

    In their order: MSI and MSI-X before the command, which is always there and last, as it lets the device onto the
    bus. Bits that are not the user's stay; registers that are right are left alone. Raises ConfigError if `saved` is
    not of a device with this identity and these capabilities.
    """
    config = _whole(config)
    theirs, ours = decode(saved), _take(config)
    if theirs.identity != ours.identity:
        raise ConfigError(f"config registers of a device {_name(theirs.identity)}, this is {_name(ours.identity)}")
    if theirs.capabilities != ours.capabilities:
        raise ConfigError(f"PCI capabilities differ: saved {theirs.capabilities}, here {ours.capabilities}")
    if [(v.offset, v.width) for v in theirs.values] != [(v.offset, v.width) for v in ours.values]:
        raise ConfigError("config registers differ: the MSI capability has another layout here")
    writes = []
    for register, value in zip(_registers(config, ours.capabilities), theirs.values, strict=True):
        if value.value & ~register.mask:
            raise ConfigError(f"config register {register.offset:#x} has bits set that are not a user's")
        current = _read(config, register.offset, register.width)
        wanted = current & ~register.mask | value.value
        if wanted != current or register.offset == _COMMAND:
            writes.append(Write(register.offset, register.width, wanted))
    return tuple(writes)


def decode(saved: bytes) -> Snapshot:
    """Read what `save` returned. Raises ConfigError unless every byte is as it must be."""
    if not _HEAD.size <= len(saved) <= MAX_BYTES:
        raise ConfigError(f"{len(saved)} bytes are no saved config registers")
    magic, version, capabilities, registers, identity = _HEAD.unpack_from(saved)
    if (magic, version) != (_MAGIC, _VERSION):
        raise ConfigError(f"config registers of an unknown kind {magic!r}, version {version}")
    middle = _HEAD.size + capabilities * _CAPABILITY.size
    if len(saved) != middle + registers * _REGISTER.size or saved[7]:
        raise ConfigError(f"{len(saved)} bytes do not hold {capabilities} capabilities and {registers} registers")
    found = tuple(Capability(*entry) for entry in _CAPABILITY.iter_unpack(saved[_HEAD.size : middle]))
    values = tuple(Write(*entry) for entry in _REGISTER.iter_unpack(saved[middle:]))
    for capability in found:
        if capability.offset < _HEADER_BYTES or capability.offset % 4:
            raise ConfigError(f"no capability can be at {capability.offset:#x}")
    for value in values:
        fits = value.width in (1, 2, 4) and value.offset % value.width == 0 and value.value >> 8 * value.width == 0
        if not fits:
            raise ConfigError(f"no config register is like {value}")
    return Snapshot(identity, found, values)


def _encode(snapshot: Snapshot) -> bytes:
    head = _HEAD.pack(_MAGIC, _VERSION, len(snapshot.capabilities), len(snapshot.values), snapshot.identity)
    capabilities = b"".join(_CAPABILITY.pack(c.id, c.offset) for c in snapshot.capabilities)
    return head + capabilities + b"".join(_REGISTER.pack(v.offset, v.width, v.value) for v in snapshot.values)


def _take(config: bytes) -> Snapshot:
    capabilities = _capabilities(config)
    values = (
        Write(r.offset, r.width, _read(config, r.offset, r.width) & r.mask) for r in _registers(config, capabilities)
    )
    return Snapshot(_read(config, _IDENTITY, 4), capabilities, tuple(values))


def _whole(config: bytes) -> bytes:
    """The first 256 bytes, checked to be a device's; some drivers show a few less."""
    if len(config) < _HEADER_BYTES:
        raise ConfigError(f"a PCI configuration space of {len(config)} bytes")
    if _read(config, _IDENTITY, 2) == 0xFFFF:
        raise ConfigError("the device does not answer: its configuration space reads as ones")
    if config[_HEADER_TYPE] & 0x7F:
        raise ConfigError(f"a PCI header of type {config[_HEADER_TYPE] & 0x7F}, devices have type 0")
    return config[:CONFIG_BYTES].ljust(CONFIG_BYTES, b"\0")


def _capabilities(config: bytes) -> tuple[Capability, ...]:
    """The list of capabilities in its order; a list that does not end is no list."""
    if not _read(config, _STATUS, 2) & _STATUS_CAP_LIST:
        return ()
    found: list[Capability] = []
    offset = config[_CAPABILITIES] & ~3
    while offset:
        if offset < _HEADER_BYTES or len(found) == _MAX_CAPABILITIES:
            raise ConfigError(f"the list of PCI capabilities goes astray at {offset:#x}")
        found.append(Capability(config[offset], offset))
        offset = config[offset + 1] & ~3
    return tuple(found)


def _registers(config: bytes, capabilities: tuple[Capability, ...]) -> list[Register]:
    """What is saved of a device laid out so, in the order of writing."""
    found = [Register(offset, 1, 0xFF) for offset in (_CACHE_LINE, _LATENCY, _INTERRUPT_LINE)]
    for capability in capabilities:
        if capability.id == _MSI:
            found += _msi(config, capability.offset)
        elif capability.id == _MSIX:
            found.append(Register(capability.offset + 2, 2, _MSIX_CONTROL_MASK))
    found.append(Register(_COMMAND, 2, _COMMAND_MASK))
    if any(register.offset + register.width > CONFIG_BYTES for register in found):
        raise ConfigError("an MSI capability reaches beyond the configuration space")
    return found


def _msi(config: bytes, base: int) -> list[Register]:
    """The registers of MSI, its control last; a 64-bit address shifts the data, and mask bits are optional."""
    control = _read(config, base + 2, 2)
    wide = 4 if control & _MSI_64BIT else 0
    found = [Register(base + 4, 4, 0xFFFF_FFFC)]
    if wide:
        found.append(Register(base + 8, 4, 0xFFFF_FFFF))
    found.append(Register(base + 8 + wide, 2, 0xFFFF))
    if control & _MSI_MASKABLE:
        found.append(Register(base + 12 + wide, 4, 0xFFFF_FFFF))
    return [*found, Register(base + 2, 2, _MSI_CONTROL_MASK)]


def _read(config: bytes, offset: int, width: int) -> int:
    return int.from_bytes(config[offset : offset + width], "little")


def _name(identity: int) -> str:
    return f"{identity & 0xFFFF:04x}:{identity >> 16:04x}"
