"""The options that say how migrations are done, for each command that makes some."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from vfio_api.models_strategy import OnConvergenceTimeout, PreCopy
from vfio_api.types import PauseMethod
from vfio_cli.durations import whole
from vfio_cli.manifest import STRATEGY

Json = dict[str, Any]
Ttl = Annotated[
    int | None, typer.Option("--ttl", metavar="TIME", parser=whole("s"), help="Delete it so long after its end.")
]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a forecast is compared with."""

    downtime_limit: Annotated[
        int | None,
        typer.Option(
            metavar="TIME", parser=whole("ms"), help="Longest downtime planned, such as 300ms (a plain number is ms)."
        ),
    ] = None
    pre_copy: Annotated[PreCopy | None, typer.Option(help="Whether to copy while devices run.")] = None


@dataclass(frozen=True, slots=True)
class Copying:
    """How the state is copied while devices run."""

    convergence_timeout: Annotated[
        int | None,
        typer.Option(metavar="TIME", parser=whole("s"), help="Longest pre-copy, such as 5m (a plain number is s)."),
    ] = None
    on_convergence_timeout: Annotated[OnConvergenceTimeout | None, typer.Option(help="What happens after that.")] = None
    bandwidth_limit: Annotated[str | None, typer.Option(metavar="BYTES", help="Per second, such as 500M.")] = None


@dataclass(frozen=True, slots=True)
class Switching:
    """How devices are switched over."""

    switchover_ack: Annotated[
        bool | None,
        typer.Option("--switchover-ack/--no-switchover-ack", help="Whether initial bytes are loaded before any stop."),
    ] = None
    switchover_timeout: Annotated[
        int | None,
        typer.Option(metavar="TIME", parser=whole("s"), help="Longest switchover, such as 30s (a plain number is s)."),
    ] = None


@dataclass(frozen=True, slots=True)
class Pausing:
    """How the pods that use the devices are paused."""

    pause: Annotated[
        PauseMethod | None,
        typer.Option(
            case_sensitive=False,
            help="How the pods that use the devices are paused; a pod that is moved is frozen unless this is given.",
        ),
    ] = None
    hook: Annotated[
        str | None,
        typer.Option(metavar="PORT[/PATH]", help="Where the pod is asked to pause, with --pause hook: 8080/vfio."),
    ] = None
    pause_timeout: Annotated[
        int | None,
        typer.Option(
            metavar="TIME", parser=whole("s"), help="Longest time to pause, such as 5s (a plain number is s)."
        ),
    ] = None


Priority = Annotated[
    int | None, typer.Option(min=-1000, max=1000, help="Of those that wait for others to end, the highest comes first.")
]


def strategy_of(*bundles: Limits | Copying | Switching) -> Json:
    """spec.strategy as the flags say it; None where they do not."""
    given = {field.name: getattr(bundle, field.name) for bundle in bundles for field in fields(bundle)}
    return {field: given.get(flag[2:].replace("-", "_")) for flag, field in STRATEGY.items()}
