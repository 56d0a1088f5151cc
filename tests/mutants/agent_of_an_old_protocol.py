"""vfio-agent that is two versions older than its operator, as far as it says itself."""

from vfio_agent import link
from vfio_agent.__main__ import main
from vfio_api import PROTOCOL_VERSION

if __name__ == "__main__":
    link.PROTOCOL_VERSION = PROTOCOL_VERSION - 2
    main()
