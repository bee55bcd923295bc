"""What a collector of OpenTelemetry gets from an operator that is told where it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.cluster import lives
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """Its address, and the spans that it was sent so far."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent = ExportTraceServiceRequest.FromString(body)
            spans.extend(s for r in sent.resource_spans for one in r.scope_spans for s in one.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def about(span: Span) -> dict[str, Any]:
    """The attributes of a span."""
    return {
        one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes
    }


def test_each_look_at_a_study_is_a_trace_with_its_requests(
    server: ApiServer, studies: Studies, tmp_path: Path
) -> None:
    lease = {"FINETUNE_LEASE": f"{studies.namespace}/operator"}  # whose renewals are no look
    with collector() as (address, spans):
        where = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        operator = OperatorProcess(server, tmp_path / "operator.log", **where, **lease)
        operator.start()
        try:
            studies.create("traced")
            lives.run(studies, "traced")
            studies.done("DELETE", "serviceaccount", "traced-trainer")
            until("a child put right", lambda: _named(spans, "create serviceaccounts")[1:])
        finally:
            operator.stop()  # which sends what is left
    looks = {span.span_id: span for span in _named(spans, "reconcile")}
    begun = _named(spans, "create jobs")[0]
    look = looks[begun.parent_span_id]
    assert look.trace_id == begun.trace_id
    study = {"k8s.namespace.name": studies.namespace, "finetune.study": "traced"}
    assert about(look) == study | {"finetune.attempt": 1, "finetune.state": "Starting"}
    assert about(begun) == {
        "http.request.method": "POST",
        "url.path": f"/apis/batch/v1/namespaces/{studies.namespace}/jobs",
        "http.response.status_code": 201,
    }
    assert begun.kind == Span.SPAN_KIND_CLIENT
    assert all(span.parent_span_id in looks for span in spans if span.name != "reconcile")
    assert not any(span.name.endswith("leases") for span in spans)
    said = [line for line in operator.said() if line["message"].startswith("study is Starting")]
    assert [line["trace_id"] for line in said] == [look.trace_id.hex()]


def test_a_look_that_fails_is_marked(server: ApiServer, studies: Studies, tmp_path: Path) -> None:
    studies.kubectl("create", "job", "traced-1", "--image=x")
    with collector() as (address, spans):
        where = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        operator = OperatorProcess(server, tmp_path / "operator.log", **where)
        operator.start()
        try:
            studies.create("traced")
            refused = until("a refusal", lambda: _named(spans, "create jobs"))[0]
            looked = partial(_ended, spans, refused.parent_span_id)
            (look,) = until("the end of its look", looked)
        finally:
            operator.stop()
    assert about(refused)["http.response.status_code"] == 409
    for span in (refused, look):
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert "traced-1" in span.status.message


def _ended(spans: list[Span], number: bytes) -> list[Span]:
    return [span for span in spans if span.span_id == number]


def _named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]
