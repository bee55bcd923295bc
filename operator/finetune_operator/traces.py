"""Traces of what the operator does, for users of an OpenTelemetry collector; without one they cost nothing.

A trace is one look at one study: the span `reconcile`, and below it one span for each request to the API server.
"""

import os
from contextlib import AbstractContextManager, nullcontext

from opentelemetry import trace

from finetune_operator import names

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Environment variables of the OpenTelemetry standard that say where to send traces; without either, nowhere."""

_TRACER = trace.get_tracer(__package__ or "")


def export(identity: str) -> None:
    """Send traces from now on (OTLP over HTTP) if the environment says where to.

    Everything else, such as headers and sampling, comes from the standard's other variables. Raises ImportError
    without the extra `traces`.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": names.MANAGER, "service.instance.id": identity})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def look(namespace: str, study: str) -> AbstractContextManager[trace.Span]:
    """A look at a study."""
    about = {"k8s.namespace.name": namespace, "finetune.study": study}
    return _TRACER.start_as_current_span("reconcile", attributes=about)


def request(method: str, verb: str, path: str) -> AbstractContextManager[trace.Span]:
    """A request to the API server, as part of a look at a study or of no trace."""
    if not trace.get_current_span().is_recording():
        return nullcontext(trace.INVALID_SPAN)
    about = {"http.request.method": method, "url.path": path}
    kind = trace.SpanKind.CLIENT
    return _TRACER.start_as_current_span(f"{verb} {_plural(path)}", kind=kind, attributes=about)


def _plural(path: str) -> str:
    """The kind of object in a path of the API server, as it has it there."""
    _, _, below = path.partition("/namespaces/")
    return below.split("/")[1] if "/" in below else path.rpartition("/")[2]


def trace_id() -> str:
    """The current trace, as 32 hexadecimal digits; empty if there is none."""
    span = trace.get_current_span()
    return trace.format_trace_id(span.get_span_context().trace_id) if span.is_recording() else ""
