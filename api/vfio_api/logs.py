"""Structured logs: one JSON line a step, to standard error."""

import logging
import sys

import structlog


def configure(level: str, **bound: str) -> None:
    """Set up structlog at `level` ("debug", "info", ...) with `bound` on every line (for instance node=...)."""
    number = logging.getLevelNamesMapping()[level.upper()]

    def bind(
        _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:  # not a context variable: those do not reach threads
        return {**event, **bound}

    shared: list[structlog.typing.Processor] = [
        bind,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    render = structlog.processors.JSONRenderer()
    # what libraries log by the standard library comes out in the same form
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render], foreign_pre_chain=shared
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
