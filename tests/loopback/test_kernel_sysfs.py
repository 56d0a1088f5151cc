"""Devices, ways to open them, and openers, found in trees of links like the kernel's; there is no device to open."""

from errno import ENXIO
from pathlib import Path

import pytest

from vfio_agent.devices.kernel import KernelBackend
from vfio_agent.devices.kernel_sysfs import Host
from vfio_agent.devices.protocol import DeviceInfo

UUID, FUNCTION = "6d747479-0001-4000-8000-000000000000", "0000:3b:00.2"


class World:
    """A host's /sys, /dev and /proc below a folder."""

    def __init__(self, root: Path):
        self.host = Host(root / "sys", root / "dev", root / "proc")
        for folder in ("sys/bus", "dev/vfio/devices", "proc"):
            (root / folder).mkdir(parents=True)

    def device(self, bus: str, address: str, *, driver: str, group: str = "", cdev: str = "") -> Path:
        path = self.host.sysfs / "bus" / bus / "devices" / address
        path.mkdir(parents=True)
        (path / "driver").symlink_to(f"../drivers/{driver}")
        if group:
            (path / "iommu_group").symlink_to(f"../../kernel/iommu_groups/{group}")
        if cdev:
            (path / "vfio-dev" / cdev).mkdir(parents=True)
        for name, value in (("vendor", "0x15b3\n"), ("device", "0x101e\n")):
            (path / name).write_text(value)
        return path

    def mdev(self, *, group: str = "", cdev: str = "") -> None:
        path = self.device("mdev", UUID, driver="vfio_mtty", group=group, cdev=cdev)
        (path / "mdev_type").symlink_to("../mdev_supported_types/mtty-2")

    def process(self, pid: int, command: str, *opened: str) -> None:
        folder = self.host.proc / str(pid) / "fd"
        folder.mkdir(parents=True)
        (folder.parent / "comm").write_text(f"{command}\n")
        for number, target in enumerate(opened):
            (folder / str(number)).symlink_to(target)

    def nodes(self, *names: str) -> None:
        for name in names:
            (self.host.dev / name).touch()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_devices_of_vfio_drivers_are_listed(world: World) -> None:
    world.mdev(group="3", cdev="vfio0")
    world.device("pci", FUNCTION, driver="mlx5_vfio_pci", group="42", cdev="vfio1")
    world.device("pci", "0000:3b:00.3", driver="mlx5_core", group="43")
    world.device("pci", "0000:3b:00.4", driver="vfio-pci")  # neither group nor device node: nothing can open it
    assert KernelBackend("auto", world.host).list() == [
        DeviceInfo(UUID, "mtty", "mtty-2"),
        DeviceInfo(FUNCTION, "mlx5_vfio_pci", "15b3:101e"),
    ]


@pytest.mark.parametrize(
    "opened",
    [
        "/dev/vfio/42",
        "/dev/vfio/devices/vfio1",
        "/vfio/42",  # of a container with a /dev of its own, or of the host as seen from a container
        "/vfio/devices/vfio1",
        "/dev/vfio/42 (deleted)",  # the node is gone, the opener is not
    ],
)
def test_opener_is_found_by_either_way(world: World, opened: str) -> None:
    world.device("pci", FUNCTION, driver="vfio-pci", group="42", cdev="vfio1")
    world.process(7, "qemu", "/dev/null", "socket:[99]", "/dev/vfio/vfio", "/dev/iommu", opened)
    assert [str(device.opener) for device in world.host.list()] == ["pid 7 (qemu)"]


def test_an_opener_may_be_called_anything(world: World) -> None:
    """Any process of the node names itself as it likes; the list of devices must not end with that."""
    world.device("pci", FUNCTION, driver="vfio-pci", group="42", cdev="vfio1")
    world.process(7, "qemu", "/dev/vfio/42")
    (world.host.proc / "7" / "comm").write_bytes(b"\xff\xfe\n")
    assert [device.opener.pid for device in world.host.list() if device.opener] == [7]


@pytest.mark.parametrize(
    "opened",
    ["/dev/vfio/vfio", "/dev/vfio/421", "/dev/vfio/devices/vfio11", "/srv/novfio/42"],
)
def test_other_files_do_not_make_an_opener(world: World, opened: str) -> None:
    world.device("pci", FUNCTION, driver="vfio-pci", group="42", cdev="vfio1")
    world.process(7, "qemu", opened)
    assert [device.opener for device in world.host.list()] == [None]


@pytest.mark.parametrize(
    ("opened", "node"), [("regular", "/dev/zero"), ("/dev/null", "/dev/zero"), ("regular", "")], ids=str
)
def test_a_file_that_is_only_called_so_makes_no_opener(world: World, opened: str, node: str, tmp_path: Path) -> None:
    """Any process can open a path that ends like a device node's."""
    world.device("pci", FUNCTION, driver="vfio-pci", group="42", cdev="vfio1")
    theirs = tmp_path / "theirs/vfio"
    theirs.mkdir(parents=True)
    if opened == "regular":
        (theirs / "42").touch()
    else:
        (theirs / "42").symlink_to(opened)
    if node:
        (world.host.dev / "vfio/42").symlink_to(node)
    world.process(7, "mallory", str(theirs / "42"))
    assert [device.opener for device in world.host.list()] == [None]
    if node:
        (theirs / "42").unlink()
        (theirs / "42").symlink_to(node)
        assert [device.opener.pid for device in world.host.list() if device.opener] == [7]


def test_own_node_is_offered_only_with_iommufd(world: World) -> None:
    world.mdev(group="3", cdev="vfio0")
    found = world.host.find(UUID)
    assert not world.host.offers_cdev(found)  # a kernel without CONFIG_VFIO_DEVICE_CDEV has the name all the same
    world.nodes("iommu")
    assert not world.host.offers_cdev(found)
    world.nodes("vfio/devices/vfio0")
    assert world.host.offers_cdev(found)


def test_way_that_is_not_offered_is_refused_by_its_name(world: World) -> None:
    world.mdev(cdev="vfio0")
    with pytest.raises(OSError, match="no node in /dev/vfio/devices") as refused:
        KernelBackend("cdev", world.host).open(UUID)
    assert refused.value.errno == ENXIO
    for path in ("auto", "group"):
        with pytest.raises(OSError, match="no IOMMU group") as refused:
            KernelBackend(path, world.host).open(UUID)  # type: ignore[arg-type]
        assert refused.value.errno == ENXIO
    with pytest.raises(OSError, match="no VFIO device"):
        KernelBackend("auto", world.host).open(FUNCTION)
