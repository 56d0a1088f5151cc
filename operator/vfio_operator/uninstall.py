"""Entry point of the chart's hook before an uninstall: refuses while migrations run, and lets go of finished ones.

Without an operator nobody would remove our finalizers, and neither the objects nor their namespaces could be deleted.
Claims stay: they keep nobody from anything then, and the next operator frees them when the agents say that it may.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config import ConfigException

from vfio_api.types import MigrationKey
from vfio_operator.kube import API_ERRORS, OperatorApi, brief
from vfio_operator.kube_lists import Lists
from vfio_operator.remains import Remains, refusal, remains_of, summary

REFUSED, FAILED = 1, 2
TRIES = 5


async def uninstall(api: OperatorApi, *, force: bool) -> str:
    """Let go of what has finished. Returns why the project must not be uninstalled, "" if it may; raises API_ERRORS."""
    remains = await _look(Lists(api))
    if remains.running and not force:
        return refusal(remains.running)
    for key in remains.switchovers:
        await api.release_switchover(key)
    for key in remains.finished:
        await _let_go(api, key)
    print(summary(remains))
    return ""


async def _let_go(api: OperatorApi, key: MigrationKey) -> None:
    """Take our finalizer from a finished migration; somebody may change it meanwhile, or be faster."""
    for _ in range(TRIES):
        try:
            return await api.finished(key, switchover=False)
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            if error.status != HTTPStatus.CONFLICT:
                raise
            changed = error
    raise changed


async def _look(lists: Lists) -> Remains:
    try:
        # switchovers first: one that is made meanwhile belongs to a migration that is seen to run
        switchovers = [body async for body in lists.switchovers()]
        return remains_of([body async for body in lists.migrations()], switchovers)
    except ApiException as error:
        if error.status != 404:
            raise
        return remains_of((), ())  # the kinds are not there: neither is anything of them


async def _run(kubeconfig: Path | None, *, force: bool) -> int:
    try:
        api = await OperatorApi.connect(kubeconfig, "", "uninstall")
    except (ConfigException, OSError) as error:
        print(f"the API server cannot be asked which migrations run: {error}; run this in the hook's pod, or with "
              "--kubeconfig", file=sys.stderr)  # fmt: skip
        return FAILED
    try:
        why = await uninstall(api, force=force)
    except API_ERRORS as error:
        print(
            f"which migrations run could not be found out: {brief(error)}; try again, or uninstall without asking: "
            "helm uninstall --no-hooks",
            file=sys.stderr,
        )
        return FAILED
    finally:
        await api.close()
    print(why, end="\n" if why else "", file=sys.stderr)
    return REFUSED if why else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: vfio-operator-uninstall [--force] [--kubeconfig FILE]. Exits with 0, REFUSED or FAILED."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--force", action="store_true", help="do not refuse while migrations run")
    parser.add_argument("--kubeconfig", type=Path, help="instead of the pod's service account")
    chosen = parser.parse_args(arguments)
    sys.exit(asyncio.run(_run(chosen.kubeconfig, force=chosen.force)))


if __name__ == "__main__":
    main()
