"""vfio-operator that gives the source pod up as soon as its counterpart runs, long before Commit."""

from vfio_operator import plan
from vfio_operator.__main__ import main

if __name__ == "__main__":
    (switch,) = (step for step in plan.FORWARD if step.name == "SwitchPods")
    others = [step for step in plan.FORWARD if step.name not in ("SwitchPods", "AwaitReady")]
    after = next(number for number, step in enumerate(others, 1) if step.name == "TargetPod")
    plan.FORWARD = (*others[:after], switch, *others[after:])
    main()
