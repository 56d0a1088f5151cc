"""What of a PCI device's configuration space is carried to its target, and what is refused there."""

import struct
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_agent import pciconfig
from vfio_agent.pciconfig import ConfigError, Write, decode, restore, save

COMMAND, STATUS, INTERRUPT_LINE = 0x04, 0x06, 0x3C
PM, MSI, PCIE, MSIX = 0x01, 0x05, 0x10, 0x11
MSI_AT, MSIX_AT = 0x50, 0x70
MSI_64BIT_MASKABLE, MSI_32BIT = 0x0186, 0x0006
USERS_COMMAND = 0x0407  # I/O, memory, bus master, INTx disable


def space(
    capabilities: tuple[tuple[int, int], ...] = ((PM, 0x40), (MSI, MSI_AT), (MSIX, MSIX_AT)),
    *,
    msi_control: int = MSI_64BIT_MASKABLE,
    values: Mapping[int, bytes] | None = None,
) -> bytearray:
    """A configuration space of device 10de:2331 with capabilities (ID, offset) in this order, then some values."""
    config = bytearray(256)
    config[0:4] = struct.pack("<HH", 0x10DE, 0x2331)
    config[COMMAND : COMMAND + 2] = struct.pack("<H", 0x0140)  # parity and SERR are the host's
    if capabilities:
        config[STATUS] = 0x10
        config[0x34] = capabilities[0][1]
    for number, (kind, offset) in enumerate(capabilities, 1):
        config[offset : offset + 2] = bytes((kind, capabilities[number][1] if number < len(capabilities) else 0))
        if kind == MSI:
            config[offset + 2 : offset + 4] = struct.pack("<H", msi_control)
    for offset, value in (values or {}).items():
        config[offset : offset + len(value)] = value
    return config


def test_users_registers_arrive_and_the_hosts_stay() -> None:
    source = space(
        values={
            COMMAND: struct.pack("<H", USERS_COMMAND),
            0x0C: b"\x10",
            0x0D: b"\x40",
            INTERRUPT_LINE: b"\x0b",
            MSI_AT + 2: struct.pack("<HIIHHI", MSI_64BIT_MASKABLE | 0x21, 0xFEE0_0000, 1, 0x4041, 0, 2),
            MSIX_AT + 2: struct.pack("<H", 0xC003),
            0x10: b"\xef\xbe\xad\xde",  # a base address is the host's own
        }
    )
    target = space()
    for write in restore(save(source), target):
        target[write.offset : write.offset + write.width] = write.data()
    assert target[COMMAND : COMMAND + 2] == struct.pack("<H", USERS_COMMAND | 0x0140)
    assert target[0x10:0x14] == bytes(4)
    for first, last in ((0x0C, 0x0E), (INTERRUPT_LINE, INTERRUPT_LINE + 1), (MSI_AT + 2, MSI_AT + 20)):
        assert target[first:last] == source[first:last]
    assert target[MSIX_AT + 2 : MSIX_AT + 4] == struct.pack("<H", 0xC000)  # the size of the table is the device's
    assert [write.offset for write in restore(save(source), target)] == [COMMAND]  # nothing else is left to do


@pytest.mark.parametrize("msi_control", [MSI_64BIT_MASKABLE, MSI_32BIT, MSI_32BIT | 0x100, MSI_32BIT | 0x80])
def test_interrupts_are_set_up_before_the_device_may_use_the_bus(msi_control: int) -> None:
    source = space(
        msi_control=msi_control | 1, values={COMMAND: b"\x06\0", MSIX_AT + 2: b"\0\x80", MSI_AT + 4: b"\xfc" * 4}
    )
    offsets = [write.offset for write in restore(save(source), space(msi_control=msi_control))]
    assert offsets == [MSI_AT + 4, MSI_AT + 2, MSIX_AT + 2, COMMAND]


def test_device_without_capabilities_has_its_header_carried() -> None:
    source, target = space((), values={INTERRUPT_LINE: b"\x2a"})[:255], space(())[:255]  # mtty shows 255 bytes
    assert restore(save(source), target) == (Write(INTERRUPT_LINE, 1, 0x2A), Write(COMMAND, 2, 0x0140))


@pytest.mark.parametrize(
    ("target", "part"),
    [
        (space(((PM, 0x40), (MSI, MSI_AT))), "capabilities differ"),
        (space(((PM, 0x44), (MSI, MSI_AT), (MSIX, MSIX_AT))), "capabilities differ"),
        (space(((PCIE, 0x40), (MSI, MSI_AT), (MSIX, MSIX_AT))), "capabilities differ"),
        (space(msi_control=MSI_32BIT), "another layout"),
        (space(values={0x02: b"\x32\x23"}), "10de:2331, this is 10de:2332"),
    ],
)
def test_another_kind_of_device_is_refused(target: bytes, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        restore(save(space()), target)


def test_bits_that_are_not_the_users_are_refused() -> None:
    saved = bytearray(save(space(())))
    saved[-4:] = struct.pack("<I", 0x0100)  # SERR in the command, which is the last
    with pytest.raises(ConfigError, match="not a user's"):
        restore(bytes(saved), space(()))


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (bytes(16), "16 bytes"),
        (b"\xff" * 256, "does not answer"),
        (space(values={0x0E: b"\x01"}), "type 1"),
        (space(values={0x0E: b"\x81"}), "type 1"),
        (space(values={0x34: b"\x20"}), "astray at 0x20"),
        (space(((PM, 0x40),), values={0x41: b"\x40"}), "astray at 0x40"),  # a loop
        (space(((MSI, 0xF8),)), "beyond"),
    ],
)
def test_what_is_no_configuration_space_is_not_saved(config: bytes, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        save(config)


def test_function_of_a_multifunction_device_is_a_device() -> None:
    assert save(space(values={0x0E: b"\x80"})) == save(space())


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: b"",
        lambda saved: saved[:-1],
        lambda saved: saved + b"\0",
        lambda saved: b"VPCJ" + saved[4:],
        lambda saved: saved[:4] + b"\x02" + saved[5:],  # version
        lambda saved: saved[:5] + b"\x02" + saved[6:],  # one capability less
        lambda saved: saved[:7] + b"\x01" + saved[8:],  # the unused byte
        lambda saved: saved[:13] + b"\x20" + saved[14:],  # a capability in the header
        lambda saved: saved[:-5] + b"\x03" + saved[-4:],  # a width of three
        lambda saved: saved[:-6] + b"\x05" + saved[-5:],  # a register that is not aligned
        lambda saved: saved[:-1] + b"\x01",  # a value wider than its register
        lambda saved: saved * 40,
    ],
)
def test_damaged_bytes_are_refused(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(ConfigError):
        decode(damage(save(space())))


@given(st.binary(max_size=pciconfig.MAX_BYTES + 1))
def test_no_bytes_do_more_than_be_refused(saved: bytes) -> None:
    with pytest.raises(ConfigError):
        restore(saved, space())


@given(st.binary(min_size=256, max_size=4096))
def test_whatever_a_device_shows_can_be_saved_or_is_refused(config: bytes) -> None:
    try:
        saved = save(config)
    except ConfigError:
        return
    assert len(saved) <= pciconfig.MAX_BYTES
    assert [write.offset for write in restore(saved, config)] == [COMMAND]


@given(st.lists(st.sampled_from([PM, MSI, PCIE, MSIX]), max_size=5, unique=True), st.binary(min_size=2, max_size=2))
def test_saved_registers_are_what_decode_reads(kinds: list[int], command: bytes) -> None:
    config = space(tuple((kind, 0x40 + 0x20 * number) for number, kind in enumerate(kinds)), values={COMMAND: command})
    snapshot = decode(save(config))
    assert [capability.id for capability in snapshot.capabilities] == kinds
    assert snapshot.values[-1] == Write(COMMAND, 2, int.from_bytes(command, "little") & USERS_COMMAND)
