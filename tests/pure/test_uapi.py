"""Structures of the kernel that no kernel at hand fills in."""

import struct

import pytest

from vfio_agent.devices.uapi import PrecopyBytes, decode_precopy_info

REINIT = 1 << 0


@pytest.mark.parametrize(
    ("flags", "valid", "reinit"),
    [
        (0, True, False),
        (REINIT, True, True),
        (REINIT | 1 << 5, True, True),
        (1 << 5, True, False),
        (REINIT, False, False),  # a kernel that was not asked to fill the flags in may leave anything there
    ],
)
def test_precopy_info_tells_of_new_initial_data_only_where_asked_for(flags: int, valid: bool, reinit: bool) -> None:
    raw = struct.pack("=IIQQ", 24, flags, 5 << 32, 7)
    assert decode_precopy_info(raw, valid) == PrecopyBytes(5 << 32, 7, reinit)


def test_precopy_info_of_another_size_is_refused() -> None:
    with pytest.raises(struct.error):
        decode_precopy_info(bytes(20), True)
