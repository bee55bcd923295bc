"""Foreign text and foreign objects, drawn at random: their readers raise what they document, and nothing else.

    FINETUNE_FUZZ_CASES=100000 python -m pytest tests/operator/test_fuzz.py --hypothesis-show-statistics

tries that many cases in all, other ones in each run. Without it there are some hundreds, the same in each run.

What an API server has checked against its own schema (metadata, Jobs, pods) is drawn within that schema: a field
is absent or has its type. The status of a RayJob has the schema of whatever KubeRay is there, and what pods and
users write has none: there any JSON may stand.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator
from pydantic import ValidationError

from finetune_api.crd import openapi_schema
from finetune_api.expressions import ExpressionError
from finetune_api.manifest import ManifestError, dump_yaml, load_yaml, parse_study
from finetune_api.plan import make_plan
from finetune_api.status import MAX_PROGRESS_BYTES, StudyStatus
from finetune_api.study import FineTuneStudy
from finetune_operator import job as job_engine
from finetune_operator import names
from finetune_operator.belief import believed_progress
from finetune_operator.continuation import continuation
from finetune_operator.decide import (
    UNEXPLAINED,
    decide,
    forbidden,
    hindered,
    refused,
    unreadable,
    unremembered,
)
from finetune_operator.decision import Decision
from finetune_operator.engines import KINDS
from finetune_operator.kuberay import fate_of
from finetune_operator.merge import overlay
from finetune_operator.observe import ConfigView, JobView, Observed, PodView, RayJobView, number
from finetune_operator.platform import class_of, denials
from finetune_operator.settings import Settings
from finetune_trainer.records import events as ev
from finetune_trainer.records.log import Follower, RecordLog, read_history
from finetune_trainer.storage.folder import Storage
from tests.api.wrong_manifests import VALID, changed
from tests.cluster.random_manifests import random_manifest
from tests.operator.drawn import (
    CEL,
    DEPTHS,
    HERE,
    JSON,
    NO_JSON,
    YAML,
    nearly,
    places,
    with_nested,
)
from tests.operator.drawn_objects import (
    CONFIGS,
    DATES,
    JOBS,
    OBSERVED,
    PODS,
    RAY_JOBS,
    SETTINGS_OF,
    SPECS,
    STATUSES,
    WISHES,
)
from tests.operator.ended_lives import LIMIT_OF, Life
from tests.operator.studies import (
    NOW,
    SETTINGS,
    UID,
    job,
    kuberay_job,
    observed,
    pod,
    progress,
    study,
)

CASES = int(os.environ.get("FINETUNE_FUZZ_CASES", "0"))
_TESTS = 18
"""Among which the cases are shared out."""

_FEW = 40

Fuzzed: TypeAlias = Callable[[Callable[..., None]], Callable[..., None]]


def fuzz(*arguments: st.SearchStrategy[Any]) -> Fuzzed:
    """Run a test with its share of the cases."""
    share = -(-CASES // _TESTS) if CASES else _FEW
    few = settings(max_examples=share, derandomize=not CASES, database=None)
    return lambda test: few(given(*arguments)(test))


def test_the_cases_are_shared_out_among_all_tests() -> None:
    assert sum(hasattr(test, "hypothesis") for test in globals().values()) == _TESTS


# Manifests.


def _studies_are_read(value: Any) -> None:
    with suppress(ManifestError):
        parse_study(value)


def _yaml_is_read(text: str) -> None:
    try:
        value = load_yaml(text)
    except ManifestError:
        return
    json.dumps(value, allow_nan=False)
    _studies_are_read(value)


@fuzz(YAML | st.text(max_size=100))
def test_any_text_is_yaml_or_no_manifest(text: str) -> None:
    _yaml_is_read(text)


@fuzz(nearly(VALID), YAML, st.integers(0, 2000), st.integers(0, 30))
def test_damaged_yaml_is_a_study_or_no_manifest(
    document: Any, junk: str, at: int, length: int
) -> None:
    text = dump_yaml(document)
    _yaml_is_read(text[:at] + junk + text[at + length :])
    _yaml_is_read(text.replace(HERE, junk))


def test_a_few_aliases_do_not_make_a_billion_values() -> None:
    bomb = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"b{n}: &a{n} [{', '.join(['*a' + str(n - 1)] * 10)}]" for n in range(1, 10)]
    _yaml_is_read("\n".join(bomb))


@pytest.mark.parametrize(
    "text",
    [
        *("{[a]: b}", "!!map [a]", "!!int [1]", "!!bool maybe", "!!timestamp then", "!!set {a}"),
        *("a: &a [*a]", "[" * 2000, '"\\ud800"', '"\\U00110000"', "a: !!float x"),
    ],
)
def test_yaml_that_json_has_nothing_for_is_no_manifest(text: str) -> None:
    with pytest.raises(ManifestError):
        load_yaml(text)


@pytest.mark.parametrize(
    "text", ["0x_", "0b", "1e999", "9" * 5000, "0x" + "f" * 17], ids=lambda text: text[:20]
)
def test_number_that_go_cannot_hold_is_text(text: str) -> None:
    assert load_yaml(f"a: {text}") == {"a": text}


@fuzz(JSON, DEPTHS)
def test_any_json_is_a_study_or_no_manifest(document: Any, depth: int) -> None:
    _studies_are_read(with_nested(document, depth))


_SEEN = decide(study(), observed(job(), pod(), document=progress()), SETTINGS, NOW).status
_STORED = changed(VALID, {"metadata.uid": UID, "status": _SEEN.to_json()})
_WITH_TEMPLATE = changed(
    VALID,
    {
        "spec.search.constraints": ["batchSize > 8"],
        "spec.cluster": {
            "resourcesPerWorker": {"cpu": "500m", "memory": "1Gi"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "podTemplate": {"spec": {"containers": [{"name": "trainer", "x": HERE}]}},
        },
    },
)


@fuzz(nearly(_STORED) | nearly(_WITH_TEMPLATE), DEPTHS)
def test_a_nearly_right_study_is_one_or_no_manifest(document: Any, depth: int) -> None:
    _studies_are_read(with_nested(document, depth))
    status = document.get("status")
    try:
        read = StudyStatus.model_validate(status, by_alias=True)
    except ValidationError:
        return
    assert read.finished or unreadable(read, 1, NOW, "spec.task").is_true("Stalled")


@fuzz(st.integers(0, 2**32))
def test_any_study_that_is_valid_can_be_begun(seed: int) -> None:
    try:
        found = parse_study(changed(random_manifest(seed), {"metadata.uid": UID}))
    except ManifestError:
        return
    for engine in ("Job", "RayJob"):
        chosen = SETTINGS.model_copy(update={"engine": engine})
        acceptable(decide(found, Observed(), chosen, NOW))


@fuzz(CEL | st.text(min_size=1, max_size=60), st.sampled_from(["", "batchSize < 64 || "]))
def test_any_constraint_has_an_answer_or_is_none(text: str, before: str) -> None:
    space = {"batchSize": {"values": [8, 16]}, "optimizer": {"values": ["AdamW", "SGD"]}}
    search = {"algorithm": "Random", "constraints": [(before + text)[:256]]}
    try:
        made = study(searchSpaces=[space], search=search)
    except ManifestError:
        return
    with suppress(ExpressionError):
        make_plan(made.spec)
    acceptable(decide(made, Observed(), SETTINGS, NOW))


# What a study's pods write.

_COUNTS = {"planned": 4, "running": 1, "completed": 2, "failed": HERE, "summary": "2/4"}
_RESULT = {
    "trial": 1,
    "value": 0.5,
    "epoch": 2,
    "params": {"epochs": 2, "optimizer": HERE},
    "metrics": {"f1": 0.5},
    "splits": [{"fold": 0, "metrics": {"f1": 0.5}}],
}
DOCUMENT = {
    **progress("Finished", reason="SearchFinished", message="ended").to_json(),
    "findings": {
        "trials": _COUNTS,
        "best": _RESULT,
        "topTrials": [_RESULT],
        "final": {"modelUri": "s3://x", "params": {"epochs": 2}, "testMetrics": {"f1": 0.5}},
        "gpuSeconds": 1.5,
        "spending": {"epochs": 3, "secondsLeft": HERE},
        "warnings": ["w"],
        "resultsUri": "s3://x",
    },
}


def _written(document: Any, junk: str) -> str:
    """The text of a document, with what is no JSON in the place of HERE."""
    return json.dumps(document).replace(json.dumps(HERE), junk)


def _config(data: dict[str, str], owner: str = UID) -> ConfigView:
    """The progress ConfigMap as the API server serves it."""
    meta = {"name": "tickets-progress", "uid": "c", "ownerReferences": _owners(owner)}
    return ConfigView.of({"metadata": meta, "data": data})


def _owners(uid: str) -> list[dict[str, Any]]:
    return [{"kind": "FineTuneStudy", "name": "tickets", "uid": uid, "controller": True}]


def _is_judged(text: str, term: str, *seen: JobView | PodView) -> None:
    """Whatever the text, there is a decision; what is believed is of this study and a claimed term."""
    config = _config({"progress": text, "term": term})
    found = replace(observed(*seen), configs={config.name: config})
    believed = believed_progress(study(), found)
    if believed is not None:
        assert believed.study_uid == UID
        assert believed.term <= config.term
        assert len(text.encode()) <= MAX_PROGRESS_BYTES
    for before in (StudyStatus(), _SEEN):
        acceptable(decide(study(before), found, SETTINGS, NOW))


ENDS = st.sampled_from([job(), job(succeeded=True), job(failed="exit 42"), kuberay_job()])


@fuzz(st.text(max_size=200) | NO_JSON | JSON.map(json.dumps), ENDS)
def test_any_text_of_a_driver_is_believed_or_not(text: str, current: JobView) -> None:
    _is_judged(text, "1", current, pod())


@fuzz(nearly(DOCUMENT), NO_JSON, st.sampled_from(["1", "0", "2", "x", "9" * 18, "9" * 30]), ENDS)
def test_a_nearly_right_document_is_believed_or_not(
    document: Any, junk: str, term: str, current: JobView
) -> None:
    _is_judged(_written(document, "1"), term, current, pod())
    _is_judged(_written(document, junk), term, current, pod())


@pytest.mark.parametrize("number", ["NaN", "1e400", "9" * 400, str(2**63)])
def test_numbers_that_no_api_server_stores_are_not_believed(number: str) -> None:
    findings = {"best": {"trial": 1, "value": 0.5, "params": {"x": HERE}}}
    text = _written({**DOCUMENT, "findings": findings}, number)
    assert believed_progress(study(), observed(job(), document=text)) is None


# What the API server serves.


def _is_decided(*views: JobView | PodView) -> None:
    for document in (None, progress(), progress("Finished"), progress("Failed")):
        for before in (StudyStatus(), _SEEN):
            seen = observed(*views, document=document)
            acceptable(decide(study(before), seen, SETTINGS, NOW))


@fuzz(PODS, PODS)
def test_any_pod_is_seen(first: Any, second: Any) -> None:
    views = [PodView.of(first), PodView.of(second)]
    _is_decided(job(), *views)
    _is_decided(*views)


@fuzz(JOBS)
def test_any_job_is_seen(body: Any) -> None:
    view = JobView.of(body)
    _is_decided(view, pod())
    _is_decided(replace(view, study_uid=UID))


@fuzz(RAY_JOBS)
def test_any_ray_job_is_seen(body: Any) -> None:
    view = RayJobView.of(body)
    _is_decided(view, pod())
    _is_decided(replace(view, study_uid=UID))
    fate_of(body.get("status") or {})


@fuzz(CONFIGS)
def test_any_config_map_is_seen(body: Any) -> None:
    view = ConfigView.of(body)
    assert view.term >= 0
    assert len(view.progress.encode()) <= MAX_PROGRESS_BYTES
    for uid in (view.study_uid, UID):
        found = replace(
            observed(job(), pod()), configs={"tickets-progress": replace(view, study_uid=uid)}
        )
        acceptable(decide(study(), found, SETTINGS, NOW))


# Pod templates.

_TEMPLATE = {
    "metadata": {"labels": {"team": "nlp", names.STUDY_LABEL: "other"}, "annotations": {"a": "b"}},
    "spec": {
        "containers": [
            {
                "name": "trainer",
                "image": "i",
                "env": [{"name": "X", "value": "1"}, {"name": "", "value": "2"}],
                "volumeMounts": [{"mountPath": "/x", "name": "v"}],
            },
            {"name": "side"},
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "v", "configMap": {"name": "c"}}],
        "imagePullSecrets": [{"name": "s"}],
    },
}


@fuzz(nearly(_TEMPLATE) | JSON, nearly(_TEMPLATE) | JSON)
def test_anything_can_be_laid_over_anything(base: Any, over: Any) -> None:
    assert overlay(base, {}) == (base if isinstance(base, dict) else {})
    json.dumps(overlay(base, over), allow_nan=False)


@fuzz(nearly(_TEMPLATE), nearly(_TEMPLATE))
def test_pods_of_any_template_are_taken_for_their_study(platform: Any, user: Any) -> None:
    try:
        made = study(cluster={"podTemplate": user})
        ours = SETTINGS.model_copy(update={"pod_template": platform if user != {} else {}})
    except ManifestError:
        return
    acceptable(decide(made, Observed(), ours, NOW))
    acceptable(decide(made, Observed(), ours.model_copy(update={"engine": "RayJob"}), NOW))
    template = job_engine.manifests(made, 1, ours)[-1]["spec"]["template"]
    assert template["metadata"]["labels"][names.STUDY_LABEL] == "tickets"
    assert template["metadata"]["labels"][names.UID_LABEL] == UID


# Decisions.

STATUS = Draft4Validator(openapi_schema()["properties"]["status"])
_INT64 = range(-(2**63), 2**63)


def acceptable(decision: Decision) -> StudyStatus:
    """The decision's status, which the API server accepts and serves back as it was."""
    status = decision.status
    said = status.to_json()
    assert not [error.message for error in STATUS.iter_errors(said)]
    text = json.dumps(said, allow_nan=False)
    for path in places(said):
        found: Any = said
        for key in path:
            found = found[key]
        assert not isinstance(found, int) or found in _INT64, path
    assert StudyStatus.model_validate(json.loads(text), by_alias=True, by_name=False) == status
    for manifest in (*decision.apply, *decision.create):
        json.dumps(manifest, allow_nan=False)
    assert decision.again_after is None or decision.again_after >= 0
    assert all(event.type in ("Normal", "Warning") and event.reason for event in decision.events)
    return status


@fuzz(
    STATUSES,
    SPECS,
    WISHES,
    st.lists(st.tuples(OBSERVED, DATES), min_size=1, max_size=3),
    SETTINGS_OF,
)
def test_whatever_is_seen_there_is_a_decision(
    status: StudyStatus,
    spec: Any,
    wishes: dict[str, str],
    seen: list[tuple[Observed, datetime]],
    ours: Settings,
) -> None:
    made = with_annotations(study(status, **spec), wishes)
    for observation, now in seen:
        for explanation in ("", UNEXPLAINED, "exceeded quota"):
            for confirmed in (False, True):
                decision = decide(made, observation, ours, now, explanation, confirmed)
                acceptable(decision)
                _class_is_kept(made, observation, decision)
        acceptable(refused(made, observation, now, explanation))
        acceptable(forbidden(made, observation, now, explanation))
        acceptable(hindered(made, observation, decision, now, explanation))
        acceptable(unremembered(made, observation, now))
        if made.status.finished:
            assert decision.status.finished != bool(continuation(made).why)
            assert (decision.create, decision.apply) == ((), ())
        made = made.model_copy(update={"status": decision.status})


def _class_is_kept(made: FineTuneStudy, seen: Observed, decision: Decision) -> None:
    """No attempt begins without the class that the study should have, nor with what that class denies."""
    if not any(manifest["kind"] in KINDS for manifest in decision.create):
        return
    given = class_of(made, seen.platform)
    assert denials(made, given) == ""
    assert decision.status.class_name == (given.metadata.name if given is not None else None)


def with_annotations(made: FineTuneStudy, annotations: dict[str, str]) -> FineTuneStudy:
    """The study with these annotations."""
    meta = made.metadata.model_copy(update={"annotations": annotations})
    return made.model_copy(update={"metadata": meta})


_BUDGET_EDITS = st.one_of(
    st.fixed_dictionaries({"maxTrials": st.integers(1, 6)}),
    st.fixed_dictionaries({"maxDurationSeconds": st.none() | st.integers(1, 3)}),
    st.fixed_dictionaries({"maxTrialsWithoutImprovement": st.none() | st.integers(1, 3)}),
    st.fixed_dictionaries({"maxFailedTrials": st.integers(0, 3)}),
    st.fixed_dictionaries({"maxParallelTrials": st.integers(1, 3)}),
)
STEPS = st.lists(
    st.one_of(
        st.just(("look", None)),
        st.just(("pods go", None)),
        st.tuples(st.just("end"), st.sampled_from([*LIMIT_OF, "DataError", "RefitFailed"])),
        st.tuples(st.just("budget"), _BUDGET_EDITS),
        st.tuples(st.just("target"), st.none() | st.sampled_from([0.2, 0.5, 0.8])),
        st.tuples(st.just("retry"), st.none() | st.sampled_from(["1", "2"])),
        st.tuples(st.just("suspend"), st.booleans()),
        st.tuples(st.just("ttl"), st.sampled_from([None, 10**7])),
    ),
    max_size=30,
)


@fuzz(STEPS, st.booleans())
def test_no_attempt_begins_beside_another_or_without_a_reason(
    steps: list[tuple[str, Any]], killed: bool
) -> None:
    """`killed`: the operator dies before its every second status is written."""
    life = Life()
    for count, (what, value) in enumerate(steps):
        life.step(what, value)
        life.look(loses_status=killed and count % 2 == 0)
    for _ in range(4):
        life.step("pods go", None)
        life.look()
    life.rests()


# Records.

EVENTS = [
    ev.TermStarted(0.0, term=1),
    ev.Proposed(1.0, trial=0, params={"epochs": 1}),
    ev.Started(2.0, trial=0, slot="slot/1", to_epoch=1),
    ev.EpochDone(
        3.0,
        trial=0,
        epoch=1,
        value=0.5,
        metrics={"f1": 0.5},
        train_loss=0.7,
        seconds=1.0,
        gpu_seconds=1.0,
    ),
    ev.Reached(4.0, trial=0, finished=True),
]
LINES = st.lists(
    st.one_of(
        st.sampled_from([json.dumps(ev.to_json(event)) for event in EVENTS]),
        nearly(ev.to_json(EVENTS[3])).map(json.dumps),
        JSON.map(json.dumps),
        st.sampled_from(
            ["", "{", "[]", "NaN", "[" * 3000, '{"kind":[]}', '{"kind":"term"}', "1]", "1,2"]
        ),
        st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=10),
    ),
    max_size=3,
)
DAMAGES = st.sampled_from(["none", "none", "none", "torn", "checksum", "header", "bytes"])
SEGMENTS = st.lists(
    st.tuples(st.integers(1, 2), st.integers(0, 4), LINES, DAMAGES, st.binary(max_size=20)),
    max_size=4,
)
NOTES = st.lists(
    st.sampled_from(["note.txt", "x/1-1.jsonl", "000001/2-2.jsonl", "000001/.000000000-0.jsonl.7"]),
    max_size=1,
)


def _segment(term: int, first: int, lines: list[str], damage: str, junk: bytes) -> bytes:
    body = "".join(f"{line}\n" for line in lines).encode()
    header = {"term": term, "first": first, "last": _last(first, lines), "crc32": zlib.crc32(body)}
    match damage:
        case "bytes":
            return junk
        case "header":
            return junk + b"\n" + body
        case "checksum":
            header["crc32"] ^= 1
        case _:
            pass  # "none", and "torn" below
    whole = json.dumps(header).encode() + b"\n" + body
    return whole[: len(whole) // 2] if damage == "torn" else whole


def _last(first: int, lines: list[str]) -> int:
    return first + max(len(lines) - 1, 0)


@fuzz(SEGMENTS, NOTES)
def test_any_records_are_read_or_of_another_version(
    segments: list[tuple[int, int, list[str], str, bytes]], notes: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.open(folder)
        for term, first, lines, damage, junk in segments:
            name = f"records/{term:06d}/{first:09d}-{_last(first, lines):09d}.jsonl"
            _put(Path(folder) / name, _segment(term, first, lines, damage, junk))
        for note in notes:
            _put(Path(folder) / "records" / note, b"hello")
        try:
            history = read_history(storage)
        except ValueError:
            return  # written by another version: it says so, and nothing is lost
        assert Follower(storage, history.last_term).more() == history.events
        _, begun = RecordLog.start(storage, 3, 9.0)  # a term that nobody has claimed before
        assert begun.events[:-1] == history.events
        assert read_history(storage).events == begun.events


@pytest.mark.parametrize(
    "line", ["", "5", "1,2", "[]", '{"kind":[]}', "[" * 3000], ids=lambda line: line[:20]
)
def test_line_that_is_no_event_is_told(line: str, tmp_path: Path) -> None:
    name = "records/000001/000000000-000000000.jsonl"
    _put(tmp_path / name, _segment(1, 0, [line], "none", b""))
    with pytest.raises(ValueError, match="in records"):
        read_history(Storage.open(str(tmp_path)))


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@fuzz(JSON)
def test_any_label_is_a_number_or_none(label: Any) -> None:
    assert 0 <= number(label) < 10**18
