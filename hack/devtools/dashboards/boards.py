"""All dashboards."""

from devtools.dashboards.anatomy import ANATOMY
from devtools.dashboards.declared import Dashboard
from devtools.dashboards.fleet import FLEET
from devtools.dashboards.nodes import NODES

DASHBOARDS: tuple[Dashboard, ...] = (FLEET, ANATOMY, NODES)
