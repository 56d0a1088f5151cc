"""vfio-agent that takes its pod's end for its own: whatever is under way is cut."""

from vfio_agent import drain
from vfio_agent.__main__ import main
from vfio_agent.drain import Standing, Verdict


def _done(_standing: Standing, _drain_seconds: float) -> Verdict:
    return Verdict.DONE


if __name__ == "__main__":
    drain.verdict = _done
    main()
