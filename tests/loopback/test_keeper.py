"""The keeper as a process of its own: what it holds outlives whoever gave it, and garbage costs it nothing."""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_agent.keeper import MAX_MESSAGE, KeeperClient, KeeperError

REPOSITORY = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class KeeperProcess:
    def __init__(self, path: Path):
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vfio_agent.keeper", "--socket", str(path), "--exit-on-stdin-eof"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.client = KeeperClient(path)

    def duplicates(self, fd: int) -> int:
        """How many fds of the keeper are ends of the same pipe as `fd`; its connections come and go uncounted."""
        found = 0
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a connection that was closed meanwhile
                found += link.readlink() == Path(f"/proc/self/fd/{fd}").readlink()
        return found

    def end(self) -> None:
        with self.process:
            self.process.terminate()


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[KeeperProcess]:
    made = KeeperProcess(tmp_path / "keeper.sock")
    yield made
    made.end()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its write end is what is kept: the read end sees when the last of its duplicates is closed."""
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):  # a test has closed it
            os.close(fd)


META = {"backend": "simulated", "incarnation": "boot/1", "holder": "workload"}


def is_open(reader: int) -> bool:
    """Whether somebody still has the write end open."""
    os.set_blocking(reader, False)
    try:
        return os.read(reader, 1) != b""
    except BlockingIOError:
        return True


def test_what_is_stored_can_be_taken_as_often_as_one_likes(keeper: KeeperProcess, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    keeper.client.store("0000:3b:00.2", META, [writer, reader])
    for _ in range(3):
        meta, fds = keeper.client.take("0000:3b:00.2")
        assert meta == META
        assert len(fds) == 2
        os.write(fds[0], b"x")
        assert os.read(reader, 1) == b"x"
        for fd in fds:
            os.close(fd)
    assert keeper.client.held() == ["0000:3b:00.2"]


def test_a_note_replaces_the_meta_and_leaves_the_fds(keeper: KeeperProcess, pipe: tuple[int, int]) -> None:
    keeper.client.store("a", META, [pipe[1]])
    keeper.client.note("a", {**META, "holder": "keeper"})
    meta, fds = keeper.client.take("a")
    os.close(fds[0])
    assert meta["holder"] == "keeper"


def test_a_drop_closes_the_fds(keeper: KeeperProcess, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    keeper.client.store("a", META, [writer])
    os.close(writer)
    assert is_open(reader)
    keeper.client.drop("a")
    assert not is_open(reader)
    assert keeper.client.held() == []
    with pytest.raises(KeeperError, match="a is not held here"):
        keeper.client.take("a")


def test_a_second_store_of_a_device_is_refused_and_the_first_stays(
    keeper: KeeperProcess, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    keeper.client.store("a", META, [writer])
    with pytest.raises(KeeperError, match="cannot store 'a'"):
        keeper.client.store("a", {"backend": "other"}, [reader])
    assert keeper.client.held() == ["a"]
    for _ in range(20):
        with pytest.raises(KeeperError):
            keeper.client.store("a", {}, [reader])
    assert keeper.duplicates(writer) == 1


def test_nothing_is_stored_without_a_name_or_without_fds(keeper: KeeperProcess, pipe: tuple[int, int]) -> None:
    with pytest.raises(KeeperError, match="no name"):
        keeper.client.store("", META, [pipe[1]])
    with pytest.raises(KeeperError, match="no fds"):
        keeper.client.store("a", META, [])
    assert keeper.client.held() == []


# Another process: it stores the write end of a pipe, says so, and is killed.
STORER = """
import sys
from pathlib import Path
from vfio_agent.keeper import KeeperClient
KeeperClient(Path(sys.argv[1])).store("a", {"holder": "workload"}, [int(sys.argv[2])])
print("stored", flush=True)
sys.stdin.read()
"""


def test_what_is_stored_outlives_the_process_that_stored_it(keeper: KeeperProcess, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with subprocess.Popen(
        [sys.executable, "-c", STORER, str(keeper.path), str(writer)],
        pass_fds=[writer],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as storer:
        assert storer.stdout is not None
        assert storer.stdout.readline() == "stored\n"
        os.close(writer)
        storer.kill()
    assert is_open(reader)
    _, fds = keeper.client.take("a")
    os.write(fds[0], b"still there")
    assert os.read(reader, 100) == b"still there"
    os.close(fds[0])


def test_the_fds_die_with_the_keeper(keeper: KeeperProcess, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    keeper.client.store("a", META, [writer])
    os.close(writer)
    keeper.process.kill()
    keeper.process.wait()
    assert not is_open(reader)
    with pytest.raises(KeeperError, match="no keeper serves"):
        keeper.client.held()


GARBAGE = {
    "no JSON": b"hello",
    "no UTF-8": b"\xff\xfe\xfd",
    "no object": b"[1, 2]",
    "no operation": b"{}",
    "unknown operation": b'{"op": "explode", "name": "a"}',
    "a number for a name": b'{"op": "take", "name": 7}',
    "a list for an operation": b'{"op": ["store"], "name": "a"}',
    "deep": b"[" * (MAX_MESSAGE - 1),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_garbage_request_harms_nothing_and_leaks_no_fd(
    keeper: KeeperProcess, pipe: tuple[int, int], kind: str
) -> None:
    reader, writer = pipe
    keeper.client.store("a", META, [writer])
    for _ in range(5):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(keeper.path))
            socket.send_fds(sock, [GARBAGE[kind]], [reader])
            raw = sock.recv(MAX_MESSAGE)
            assert not raw or "error" in json.loads(raw)
    assert keeper.client.held() == ["a"]
    assert keeper.duplicates(writer) == 1


def test_a_connection_that_says_nothing_delays_others_but_harms_nothing(keeper: KeeperProcess) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(str(keeper.path))
        assert keeper.client.held() == []


def test_as_many_devices_as_it_takes_can_be_listed(keeper: KeeperProcess, pipe: tuple[int, int]) -> None:
    meta = {**META, "incarnation": "0b7f3ad8-1f7c-4c9e-9a52-7f5a0c7d0f11/0123456789ab", "holder": "team/training-job"}
    for number in range(600):
        keeper.client.store(f"0000:{number:04x}:00.2", meta, [pipe[1]])
    assert len(keeper.client.held()) == 600


def test_only_its_own_user_may_reach_the_socket(keeper: KeeperProcess) -> None:
    assert keeper.path.stat().st_mode & 0o777 == 0o600


def test_a_second_keeper_does_not_take_the_place_of_one_that_lives(
    keeper: KeeperProcess, pipe: tuple[int, int]
) -> None:
    keeper.client.store("a", META, [pipe[1]])
    command = [sys.executable, "-m", "vfio_agent.keeper", "--socket", str(keeper.path), "--exit-on-stdin-eof"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(), text=True
    ) as second:
        assert second.stdout is not None
        second.stdout.readline()
        found = keeper.client.held()
    assert found == ["a"]


def test_it_imports_nothing_of_the_project() -> None:
    """It must not have to be restarted for an upgrade of anything else."""
    seen = "import sys, vfio_agent.keeper; print(*(m for m in sys.modules if m.startswith('vfio_')))"
    found = subprocess.run(
        [sys.executable, "-c", seen], env=environment(), capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == ["vfio_agent", "vfio_agent.keeper"]


# --- bounds


@pytest.mark.parametrize("name", ["", "x" * 57, "gerät", "a\nb"])
def test_a_name_that_the_list_could_not_tell_is_not_stored(
    keeper: KeeperProcess, pipe: tuple[int, int], name: str
) -> None:
    with pytest.raises(KeeperError, match="no name of at most 56 characters"):
        keeper.client.store(name, META, [pipe[1]])
    assert keeper.client.held() == []
    assert keeper.duplicates(pipe[1]) == 0


def test_more_than_can_be_told_of_a_device_is_not_noted(keeper: KeeperProcess, pipe: tuple[int, int]) -> None:
    much = {**META, "holder": "ü" * 2000}
    with pytest.raises(KeeperError, match="an object of at most 8192 bytes"):
        keeper.client.store("a", much, [pipe[1]])
    assert keeper.duplicates(pipe[1]) == 0
    keeper.client.store("a", META, [pipe[1]])
    with pytest.raises(KeeperError, match="an object of at most 8192 bytes"):
        keeper.client.note("a", much)
    assert keeper.client.take("a")[0] == META


def fill(keeper: KeeperProcess, fd: int) -> None:
    for number in range(40):
        keeper.client.store(f"sim{number}", META, [fd] * 3)


def test_a_keeper_that_may_open_no_more_files_says_so_and_loses_nothing(
    keeper: KeeperProcess, pipe: tuple[int, int]
) -> None:
    resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE, (40, 40))
    with pytest.raises(KeeperError, match="this process may not have more open files"):
        fill(keeper, pipe[1])
    stored = len(keeper.client.held())
    assert stored
    # room for a connection, and for a part of the fds that it brings: the kernel passes no more on
    highest = max(int(link.name) for link in Path(f"/proc/{keeper.process.pid}/fd").iterdir())
    resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE, (highest + 3, 40))
    with pytest.raises(KeeperError):
        keeper.client.store("more", META, [pipe[1]] * 8)
    assert len(keeper.client.held()) == stored
    # not even for a connection
    resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE, (3, 40))
    with pytest.raises(KeeperError, match="does not answer"):
        KeeperClient(keeper.path, 0.3).held()
    resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE, (40, 40))
    assert len(keeper.client.held()) == stored
    assert keeper.duplicates(pipe[1]) == 3 * stored


REPLIES = [b"", b"no json", b"[]", b"[" * 5000, b"{}", b'{"devices": "a"}', b'{"devices": [1]}', b'{"meta": []}']


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply[:20].decode())
def test_what_is_no_answer_is_an_error_that_callers_know(tmp_path: Path, reply: bytes) -> None:
    path = tmp_path / "liar.sock"

    def answer(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _address = listener.accept()
            with connection:
                connection.recv(4096)
                connection.send(reply)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        liar = threading.Thread(target=answer, args=(listener,), daemon=True)
        liar.start()
        client = KeeperClient(path)
        with pytest.raises(KeeperError):
            client.held()
        with pytest.raises(KeeperError):
            client.take("a")
        liar.join(10)
