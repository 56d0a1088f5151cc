"""A collector of traces, as a process of its own: OTLP over gRPC as the protocol's own package serves it.

Every span that comes becomes a line of JSON in the file that is its argument. gRPC does not outlive the forks with
which tests start processes, so it is not in theirs.
"""

import json
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status

Json = dict[str, object]


class Service(TraceServiceServicer):
    """What exporters call."""

    def __init__(self, file: Path):
        self._lock, self._file = threading.Lock(), file

    def Export(  # noqa: N802 - the protocol's name
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        """Keep the spans."""
        with self._lock, self._file.open("a") as out:
            out.writelines(json.dumps(span) + "\n" for span in _spans(request))
        return ExportTraceServiceResponse()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Json]:
    for group in request.resource_spans:
        resource = _attributes(group.resource.attributes)
        for span in (span for scope in group.scope_spans for span in scope.spans):
            yield {
                "trace_id": span.trace_id.hex(),
                "span_id": span.span_id.hex(),
                "parent": span.parent_span_id.hex(),
                "name": span.name,
                "start": span.start_time_unix_nano,
                "end": span.end_time_unix_nano,
                "service": resource["service.name"],
                "instance": resource["service.instance.id"],
                "attributes": _attributes(span.attributes),
                "error": span.status.message if span.status.code == Status.STATUS_CODE_ERROR else "",
                "links": [[link.trace_id.hex(), link.span_id.hex()] for link in span.links],
            }


def _attributes(found: Iterable[KeyValue]) -> Json:
    return {each.key: _value(each.value) for each in found}


def _value(value: AnyValue) -> object:
    return getattr(value, value.WhichOneof("value") or "string_value")


def main() -> None:
    """Serve on a free port, which is printed, until killed."""
    server = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(Service(Path(sys.argv[1])), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on {port}.", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
