"""Two guests with the kernel's own VFIO devices as the nodes of one real control plane, for all tests of this folder.

Every test runs twice, with the agents opening devices by their legacy group and by their own node with iommufd, in the
same two guests. Where guests cannot be had, the tests fail with one line that says what is missing; they are never
skipped.
"""

import time
from collections.abc import Iterator

import pytest

from devtools.kernel import KernelBuildError, MissingToolError
from devtools.kernel_apt import PackageError
from devtools.kernel_stack import KernelStack
from devtools.mtty_patch import PatchError
from kernel.figures import Figures
from kernel.sides import PATHS
from kernel.trial import Trial

DEVICES = 3
"""For each node: two that migrate, and one for what is asked of a single device."""
_FIGURES = pytest.StashKey[Figures]()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    """What the summary at the end says of this folder, and what must be equal by both ways."""
    return pytestconfig.stash.setdefault(_FIGURES, Figures())


@pytest.fixture(scope="session")
def session_stack(figures: Figures) -> Iterator[KernelStack]:
    began = time.monotonic()
    stack, missing = None, ""
    try:
        stack = KernelStack(DEVICES, path=PATHS[0])
    except (MissingToolError, PackageError, KernelBuildError, PatchError) as error:
        missing = str(error)
    if stack is None:  # out of the handler, so that the one line is all there is to read
        pytest.fail(f"the kernel tests need QEMU guests, which cannot be had here: {missing}", pytrace=False)
    with stack:
        figures.note(f"start-up: {time.monotonic() - began:.1f} s for two guests, their agents and the operator")
        for why in stack.replaced:
            figures.note(why)
        yield stack


@pytest.fixture(scope="session", params=PATHS)
def path(session_stack: KernelStack, request: pytest.FixtureRequest) -> str:
    """How the agents open devices while a test runs; pytest runs all tests by one way, then all by the other.

    The last test by one way leaves agents that go the other (test_kernel_restart.py), so none is restarted here unless
    only some of the tests are run.
    """
    try:
        session_stack.give_up_devices()
        if session_stack.path != request.param:
            session_stack.restart_agents(request.param)
    except Exception as error:
        session_stack.explain(error)
        raise
    return str(request.param)


@pytest.fixture
def stack(session_stack: KernelStack, path: str, request: pytest.FixtureRequest) -> Iterator[KernelStack]:
    """The stack, with no fault armed and nothing unread in the drivers' logs; a failed test shows all logs.

    What a test has armed, held or killed is nobody else's affair, also if it fails.
    """
    for node in session_stack.nodes.values():
        node.workload.arcs()
    yield session_stack
    for node in session_stack.nodes.values():
        node.workload.disarm()
        node.revive()
    for name, text in session_stack.logs().items():
        request.node.add_report_section("teardown", name, text)


@pytest.fixture
def trial(stack: KernelStack, figures: Figures, path: str) -> Trial:
    """A migration that is about to go wrong."""
    return Trial(stack, figures, path)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures."""
    found = config.stash.get(_FIGURES, None)
    if found is not None:
        terminalreporter.section("real VFIO devices (mtty, two QEMU guests)")
        for line in found.table(PATHS):
            terminalreporter.write_line(line)
