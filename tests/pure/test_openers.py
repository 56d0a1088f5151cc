"""Which open file of a process is which device: as the kernel says it, and never a guess."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_agent.devices.openers import Node, Opened, OpenFile, concerns, opened

ANONYMOUS = "anon_inode:[vfio-device]"
GPU, NIC, TWIN = Node("0000:3b:00.2", "vfio0", "42"), Node("0000:5e:00.1", "vfio1", "43"), Node("twin", "", "43")
NODES = (GPU, NIC, TWIN)


def said(address: str) -> str:
    return f"pos:\t0\nflags:\t02000002\nvfio-device-syspath: /sys/devices/pci0000:00/{address}\n"


def test_a_devices_own_node_names_it_in_whatever_mounts_it_was_opened() -> None:
    files = [OpenFile(7, "/dev/vfio/devices/vfio0"), OpenFile(9, "/proc/1/root/dev/vfio/devices/vfio1 (deleted)")]
    assert opened(files, NODES) == Opened({GPU.address: (7,), NIC.address: (9,)})


def test_the_kernel_names_a_device_of_a_group_in_its_fdinfo() -> None:
    named = [OpenFile(5, ANONYMOUS, said("twin")), OpenFile(6, ANONYMOUS, said(NIC.address))]
    files = [OpenFile(4, "/dev/vfio/43"), *named]
    assert opened(files, NODES).devices == {"twin": (5,), NIC.address: (6,)}


def test_the_only_device_of_the_only_group_needs_no_name() -> None:
    files = [OpenFile(3, "/dev/vfio/42"), OpenFile(4, ANONYMOUS)]
    assert opened(files, NODES) == Opened({GPU.address: (4,)})


@pytest.mark.parametrize(
    "files",
    [
        pytest.param([OpenFile(3, "/dev/vfio/43"), OpenFile(4, ANONYMOUS)], id="two devices in the group"),
        pytest.param([OpenFile(3, "/dev/vfio/42"), OpenFile(4, ANONYMOUS), OpenFile(5, ANONYMOUS)], id="two files"),
        pytest.param([OpenFile(4, ANONYMOUS)], id="no group open"),
    ],
)
def test_what_may_be_several_is_not_guessed(files: list[OpenFile]) -> None:
    found = opened(files, NODES)
    assert found.devices == {}
    assert found.unnamed


def test_as_many_files_as_devices_of_the_groups_are_had_by_their_groups() -> None:
    groups = [OpenFile(3, "/dev/vfio/42"), OpenFile(4, "/dev/vfio/43")]
    files = [*groups, *(OpenFile(fd, ANONYMOUS) for fd in (5, 6, 7))]
    found = opened(files, NODES)
    assert found.devices == {}, "which file is which is not said"
    assert found.groups == {GPU.address: 3, NIC.address: 4, "twin": 4}
    assert opened(files[:-1], NODES).groups == {}, "one of them is not open, or has a file of another kind"
    assert opened([*files, OpenFile(8, ANONYMOUS)], NODES).groups == {}


def test_what_is_named_is_no_candidate_for_what_is_not() -> None:
    files = [OpenFile(3, "/dev/vfio/43"), OpenFile(4, ANONYMOUS, said("twin")), OpenFile(5, ANONYMOUS)]
    assert opened(files, NODES).devices == {"twin": (4,), NIC.address: (5,)}


@pytest.mark.parametrize("link", ["/dev/vfio/vfio", "/dev/iommu", "socket:[4]", "/srv/vfio/42x", "anon_inode:kvm-vm"])
def test_other_files_are_no_concern(link: str) -> None:
    assert not concerns(link)


@given(
    st.lists(
        st.builds(
            OpenFile,
            st.integers(3, 40),
            st.sampled_from(["/dev/vfio/42", "/dev/vfio/43", "/dev/vfio/devices/vfio0", ANONYMOUS, "socket:[1]"]),
            st.sampled_from(["", said(NIC.address), said("twin")]),
        ),
        max_size=6,
        unique_by=lambda file: file.fd,
    )
)
def test_no_file_is_two_devices(files: list[OpenFile]) -> None:
    found = opened(files, NODES)
    fds = [fd for each in found.devices.values() for fd in each] + list(found.unnamed)
    assert len(set(fds)) == len(fds)
    assert set(fds) <= {file.fd for file in files if concerns(file.link)}
    assert not set(found.candidates) & set(found.devices)
    assert set(found.groups) in (set(), set(found.candidates))
