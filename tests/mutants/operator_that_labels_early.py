"""vfio-operator that gives the counterpart the source's labels at once: a Service sends it traffic before Commit."""

from collections.abc import Mapping
from typing import Any

from vfio_api.types import MigrationKey
from vfio_operator import moving
from vfio_operator.__main__ import main
from vfio_operator.counterpart import counterpart


def labelled(body: Mapping[str, Any], key: MigrationKey, target_node: str) -> dict[str, Any]:
    made = counterpart(body, key, target_node)
    made["metadata"]["labels"] |= body["metadata"].get("labels", {})
    return made


if __name__ == "__main__":
    moving.counterpart = labelled
    main()
