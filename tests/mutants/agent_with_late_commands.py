"""vfio-agent as it is, to which commands of an earlier leader come late."""

from mutants.late_commands import deliver_late
from vfio_agent.__main__ import main

if __name__ == "__main__":
    deliver_late()
    main()
