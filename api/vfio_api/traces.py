"""Switches tracing on, if asked to. Off, which is the default, nothing of OpenTelemetry is imported."""

import os
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from vfio_api.otlp import Otlp

log = structlog.get_logger()
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def wanted(endpoint: str) -> bool:
    """Whether there is a collector to send to: `endpoint`, or what OpenTelemetry's own variables name."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return bool(endpoint or any(os.environ.get(name) for name in _ENDPOINTS))


def open_traces(endpoint: str, service: str, instance: str, **resource: str) -> "Otlp | None":
    """Where spans go, None if tracing is off or cannot be had; why not is logged, for nothing depends on it.

    endpoint: of the collector's OTLP over gRPC, such as "http://collector:4317"; "" leaves it to OTEL_EXPORTER_OTLP_*.
    service: service.name, unless OTEL_SERVICE_NAME says another. instance: see `spans.Sink`. resource: attributes with
    "_" for ".".
    """
    if not wanted(endpoint):
        return None
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), "grpc")
    if protocol != "grpc":
        log.error("tracing stays off: only gRPC is spoken; set OTEL_EXPORTER_OTLP_PROTOCOL=grpc", protocol=protocol)
        return None
    try:
        from vfio_api.otlp import Otlp

        return Otlp(endpoint, service, instance, {key.replace("_", "."): value for key, value in resource.items()})
    except ImportError as error:
        log.error("tracing stays off: install vfio-migration[tracing]", error=str(error))
    except (OSError, RuntimeError, ValueError) as error:  # what OTEL_* name may be no number, no sampler, no file
        log.error("tracing stays off: look at the settings OTEL_* and the endpoint", error=str(error))
    return None
