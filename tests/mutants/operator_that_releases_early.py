"""vfio-operator that lets the sources go before the targets run."""

from vfio_operator import plan
from vfio_operator.__main__ import main

if __name__ == "__main__":
    steps = {step.name: step for step in plan.FORWARD}
    release = steps.pop("ReleaseSources")
    names = list(steps)
    at = names.index("BarrierC")
    plan.FORWARD = (*(steps[name] for name in names[:at]), release, *(steps[name] for name in names[at:]))
    main()
