"""Spans to a collector: OTLP over gRPC, batched, in threads of their own. The only module that knows OpenTelemetry.

Imported only when tracing is on (`traces.open_traces`). Its settings are OpenTelemetry's own: OTEL_EXPORTER_OTLP_*,
OTEL_BSP_*, OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from vfio_api.spans import Link, Span, span_id, trace_id

log = structlog.get_logger()
QUEUE = 8192  # spans; the whole migration of 256 devices is some 2000
CLOSE_SECONDS = 2.0
_SAMPLED = trace.TraceFlags(trace.TraceFlags.SAMPLED)
AT_ONCE, PAUSE_SECONDS = 16, 0.001  # spans made in one go
_SCOPE = InstrumentationScope("vfio-migration")


class _ToldOnce(SpanExporter):
    """Exports by another exporter; that it cannot is logged once, and once more when it can again."""

    def __init__(self, exporter: OTLPSpanExporter, endpoint: str):
        self._exporter, self._endpoint = exporter, endpoint
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                log.info("spans reach the collector again", lost=self._lost)
            self._lost = 0
        else:
            if not self._lost:
                log.warning(
                    "spans do not reach the collector: they are dropped, and nothing else depends on them; look at its "
                    "address, and at the network and the certificates on the way",
                    endpoint=self._endpoint,
                )
            self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class Otlp:
    """A `spans.Sink`. Raises ValueError, RuntimeError or OSError if what OTEL_* say cannot be done."""

    def __init__(self, endpoint: str, service: str, instance: str, resource: Mapping[str, str]):
        self.instance = instance
        # a collector that is away would fill the log: _ToldOnce says it
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        attributes = {**resource, "service.instance.id": instance}
        if "OTEL_SERVICE_NAME" not in os.environ:
            attributes["service.name"] = service
        # of the provider only what it makes of the environment is used: spans are made after they have ended
        provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._sampler, self._resource = provider.sampler, provider.resource
        self._exporter = _ToldOnce(OTLPSpanExporter(endpoint=endpoint or None), endpoint or "of OTEL_EXPORTER_OTLP_*")
        queue = None if "OTEL_BSP_MAX_QUEUE_SIZE" in os.environ else QUEUE
        self._processor = BatchSpanProcessor(self._exporter, max_queue_size=queue)
        self._thread = ThreadPoolExecutor(1, "spans")
        log.info("tracing is on", endpoint=endpoint or "of OTEL_EXPORTER_OTLP_*")

    def covers(self, uid: str) -> bool:
        """The sampler looks at the trace id, so every process finds the same."""
        found = self._sampler.should_sample(None, int(trace_id(uid), 16), "migration")
        return found.decision is Decision.RECORD_AND_SAMPLE

    def export(self, uid: str, spans: Sequence[Span]) -> None:
        """Hashes are computed, and spans put into the batch, in another thread."""
        with contextlib.suppress(RuntimeError):  # it is closed: the process ends, and what still goes on in it is lost
            self._thread.submit(self._add, uid, tuple(spans))

    def _add(self, uid: str, spans: Sequence[Span]) -> None:
        try:
            for number, span in enumerate(spans, 1):
                self._processor.on_end(self._made(uid, span))
                if number % AT_ONCE == 0:
                    time.sleep(PAUSE_SECONDS)  # this is all Python, and an event loop waits 5 ms for its turn
        except Exception:  # nobody waits for this thread
            log.exception("spans were not exported", uid=uid)

    def _made(self, uid: str, span: Span) -> ReadableSpan:
        of = trace_id(uid)
        parent = _context(of, span_id(uid, span.parent)) if span.parent is not None else None
        return ReadableSpan(
            name=span.name,
            context=_context(of, span_id(uid, span.identity)),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            links=[_linked(span.link)] if span.link is not None else (),
            kind=trace.SpanKind[span.kind.value],
            status=trace.Status(trace.StatusCode.ERROR, span.error) if span.error else trace.Status(),
            start_time=span.start_ns,
            end_time=span.start_ns + span.duration_ns,
            instrumentation_scope=_SCOPE,
        )

    def close(self) -> None:
        """Send what there is, for CLOSE_SECONDS at most; blocking."""
        self._thread.shutdown()
        sending = threading.Thread(target=self._processor.shutdown, name="spans-last", daemon=True)
        sending.start()
        sending.join(CLOSE_SECONDS)
        self._exporter.shutdown()  # wakes it, if it waits for a collector that is away


def _context(of: str, span: str) -> trace.SpanContext:
    return trace.SpanContext(int(of, 16), int(span, 16), is_remote=False, trace_flags=_SAMPLED)


def _linked(link: Link) -> trace.Link:
    return trace.Link(
        trace.SpanContext(int(link.trace_id, 16), int(link.span_id, 16), is_remote=True, trace_flags=_SAMPLED)
    )
