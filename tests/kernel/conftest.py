"""Two guests with the kernel's own VFIO devices as the nodes of one real control plane, for all tests of this folder.

Where guests cannot be had, the tests fail with one line that says what is missing; they are never skipped.
"""

import time
from collections.abc import Iterator

import pytest

from devtools.kernel import KernelBuildError, MissingToolError
from devtools.kernel_apt import PackageError
from devtools.kernel_stack import KernelStack
from devtools.mtty_patch import PatchError

DEVICES = 5
"""For each node: two that migrate, one for the table of arcs, two that are lost."""
_FIGURES = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> dict[str, str]:
    """What the summary at the end says of this folder: name -> figure."""
    return pytestconfig.stash.setdefault(_FIGURES, {})


@pytest.fixture(scope="session")
def session_stack(figures: dict[str, str]) -> Iterator[KernelStack]:
    began = time.monotonic()
    stack, missing = None, ""
    try:
        stack = KernelStack(DEVICES)
    except (MissingToolError, PackageError, KernelBuildError, PatchError) as error:
        missing = str(error)
    if stack is None:  # out of the handler, so that the one line is all there is to read
        pytest.fail(f"the kernel tests need QEMU guests, which cannot be had here: {missing}", pytrace=False)
    with stack:
        figures["start-up"] = f"{time.monotonic() - began:.1f} s for two guests, their agents and the operator"
        yield stack


@pytest.fixture
def stack(session_stack: KernelStack, request: pytest.FixtureRequest) -> Iterator[KernelStack]:
    """The stack, with no fault armed and nothing unread in the drivers' logs; a failed test shows all logs."""
    for node in session_stack.nodes.values():
        node.workload.disarm()
        node.workload.arcs()
    yield session_stack
    for name, text in session_stack.logs().items():
        request.node.add_report_section("teardown", name, text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures."""
    found = config.stash.get(_FIGURES, {})
    if found:
        terminalreporter.section("real VFIO devices (mtty, two QEMU guests)")
        for name, figure in found.items():
            terminalreporter.write_line(f"{name}: {figure}")
