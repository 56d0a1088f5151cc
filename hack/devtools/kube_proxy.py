"""The API server by plain HTTP at a port of 127.0.0.1, through one `kubectl proxy`, as administrator.

A kubectl for each look costs a tenth of a second of a processor, which whoever polls takes from what is waited for.
"""

import json
import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devtools import tools
from devtools.processes import Child

REQUEST_SECONDS = 30
_SERVES = "Starting to serve on "


class KubeProxy:
    """Started when made; `close` ends it. `environment` is what kubectl needs to find the API server."""

    def __init__(self, environment: Mapping[str, str], log: Path):
        self._child = Child("kubectl proxy", [str(tools.kubectl()), "proxy", "--port=0"], log, environment, _SERVES)
        self._child.wait_for("\n")
        found = re.search(_SERVES + r"(\S+)", self._child.text())
        assert found is not None
        self._server = f"http://{found[1]}"

    def get(self, path: str) -> Any:
        """An object or a list by its path. Raises OSError."""
        with urllib.request.urlopen(self._server + path, timeout=REQUEST_SECONDS) as answer:
            return json.load(answer)

    def create(self, path: str, body: Mapping[str, Any]) -> Any:
        """Post an object to the path of its kind. Raises OSError."""
        request = urllib.request.Request(
            self._server + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
            return json.load(answer)

    def close(self) -> None:
        """End it."""
        self._child.stop()
