"""The knobs of a migration: of its own spec, and of the policies that select it."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from vfio_api.models_common import Model, rule, rules, told, whole_number
from vfio_api.quantity import MAX_BYTES, MAX_LENGTH, PATTERN, parse_quantity

NO_POST_COPY = "VFIO has no post-copy"


class PreCopy(StrEnum):
    """Whether state is copied while devices run."""

    AUTO = "Auto"
    REQUIRED = "Required"
    DISABLED = "Disabled"


class OnConvergenceTimeout(StrEnum):
    """What happens if pre-copy does not converge in time."""

    ABORT = "Abort"
    SWITCHOVER = "Switchover"


def _quantity(value: int | str) -> int | str:
    """Check a quantity, but keep it as the user wrote it."""
    parse_quantity(value)
    return value


BytesQuantity = Annotated[
    int | str,
    AfterValidator(_quantity),
    Field(
        json_schema_extra={
            "maxLength": MAX_LENGTH,
            "x-kubernetes-validations": [
                rule(
                    # the tests before quantity() keep from it what it cannot read: an error of its own
                    f"type(self) == int ? self >= 1 && self <= {MAX_BYTES} : "
                    f"self.matches(r'{PATTERN}') && isQuantity(self) && "
                    "quantity(self).isGreaterThan(quantity('0')) && "
                    f"!quantity(self).isGreaterThan(quantity('{MAX_BYTES}'))",
                    "must be a number of bytes, more than 0 and at most 1Ei, such as 1024, 500M or 1.5Gi; units are "
                    "k, M, G, T, P, E or Ki to Ei, without a space, B or bit",
                )
            ],
        }
    ),
]


def _never(value: bool) -> bool:
    """Refuse what VFIO does not have."""
    if value:
        raise ValueError(f"{NO_POST_COPY}: leave it out, and use preCopy")
    return value


PostCopy = Annotated[
    bool,
    AfterValidator(_never),
    Field(
        json_schema_extra=rules(
            rule(
                "!self",
                f"{NO_POST_COPY}: a device cannot run at the target before all of its state is there; leave postCopy "
                "out, and use preCopy to copy while the device runs at the source",
                forbidden=True,
            )
        )
    ),
]


class Strategy(Model):
    """Limits, and what to do when they are reached. What is not said here is as the policy says that selects the
    migration, else the default."""

    downtime_limit_milliseconds: Annotated[int, whole_number(1, 3_600_000, "milliseconds")] | None = None
    """Longest downtime to plan for, in milliseconds (default 300): the switchover begins once the forecast is
    within it."""
    pre_copy: (
        Annotated[PreCopy, Field(json_schema_extra=told(f"must be Auto, Required or Disabled; {NO_POST_COPY}"))] | None
    ) = None
    """Whether state is copied while devices run. Auto (the default): with devices that can. Required: a device
    that cannot is refused. Disabled: never, so that all of the state is copied within the downtime. There is no
    post-copy: VFIO has none."""
    post_copy: PostCopy | None = None
    """Cannot be true, since VFIO has no post-copy; the field is here so that who asks for it is told."""
    convergence_timeout_seconds: Annotated[int, whole_number(1, 604_800, "seconds")] | None = None
    """Longest time that pre-copy may take to bring the forecast within the downtime limit, in seconds (default 300)."""
    on_convergence_timeout: OnConvergenceTimeout | None = None
    """What happens after convergenceTimeoutSeconds. Abort (the default): the migration fails and the sources run on.
    Switchover: it goes on, with a longer downtime than asked for."""
    switchover_ack: bool | None = None
    """Whether no source is stopped before its initial bytes are loaded at the target; true unless it is said."""
    switchover_timeout_seconds: Annotated[int, whole_number(1, 3_600, "seconds")] | None = None
    """Longest time from the beginning of the switchover to the decision, in seconds (default 30). After it, a
    source node that hears nothing asks for Abort by itself."""
    bandwidth_limit_bytes_per_second: BytesQuantity | None = None
    """Most bytes per second that one source node sends for this migration, as a quantity such as 5Gi or 500M.
    Without it there is no limit."""

    def bandwidth_limit(self) -> int | None:
        """The bandwidth limit in bytes per second; None if there is none."""
        limit = self.bandwidth_limit_bytes_per_second
        return None if limit is None else parse_quantity(limit)
