"""vfio-operator that decides as soon as every source has been sent."""

from vfio_operator import plan
from vfio_operator.__main__ import main

if __name__ == "__main__":
    plan.FORWARD = tuple(step for step in plan.FORWARD if step.name != "Vote")
    main()
