"""What an API server may serve of a study's children, and what the operator may have seen, for hypothesis to draw.

Metadata, Jobs, pods and ConfigMaps are as the API server's own schema has them: a field is absent or has its type. The
status of a RayJob has the schema of whatever KubeRay is there: any JSON may stand in it.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, get_args

from hypothesis import strategies as st

from finetune_api.classes import FineTuneClass
from finetune_api.manifest import parse_class
from finetune_api.status import ConditionType, Reason, State, StudyProgress, StudyStatus
from finetune_operator import names
from finetune_operator.kuberay import DEPLOYMENT_STATUSES, JOB_STATUSES, REASONS
from finetune_operator.platform import Platform
from finetune_operator.settings import Settings
from finetune_operator.trouble import Trouble, TroubleReason
from tests.operator.drawn import JSON, WORDS, nearly
from tests.operator.studies import JOB_UID, SETTINGS, UID, job, kuberay_job, observed, pod

DATES = st.datetimes(datetime(1970, 1, 1), datetime(2400, 1, 1), timezones=st.just(UTC))
TIMES = DATES.map(lambda time: time.strftime("%Y-%m-%dT%H:%M:%SZ"))
BOOLS = st.booleans()


def fields(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with some of these fields, and perhaps one that is not known yet."""
    return st.fixed_dictionaries({}, optional={**optional, "later": JSON})


def with_fields(
    required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]
) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


NUMBERS = st.sampled_from(["", "0", "1", "2", "-1", "x", "9" * 18, "9" * 30, "\u0661"])
LABELS = fields(
    **{
        names.STUDY_LABEL: st.just("tickets"),
        names.UID_LABEL: st.sampled_from([UID, "other", ""]),
        names.ATTEMPT_LABEL: NUMBERS,
        "batch.kubernetes.io/controller-uid": st.sampled_from([JOB_UID, "other"]),
        "ray.io/node-type": st.sampled_from(["head", "worker", ""]),
    }
).map(lambda labels: {key: str(value) for key, value in labels.items()})
ANNOTATIONS = fields(
    **{"batch.kubernetes.io/job-completion-index": NUMBERS, names.SPEC_HASH: WORDS}
).map(lambda annotations: {key: str(value) for key, value in annotations.items()})
OWNERS = st.lists(
    with_fields(
        {
            "apiVersion": WORDS,
            "kind": WORDS,
            "name": WORDS,
            "uid": st.sampled_from([UID, "other"]),
        },
        controller=BOOLS,
    ),
    max_size=2,
)
META = with_fields(
    {"name": st.sampled_from(["tickets-1", "tickets-progress"]), "uid": st.just(JOB_UID)},
    labels=LABELS,
    annotations=ANNOTATIONS,
    ownerReferences=OWNERS,
    creationTimestamp=TIMES,
    deletionTimestamp=TIMES,
    resourceVersion=st.just("7"),
)


def conditions(*types: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(
        with_fields(
            {
                "type": st.sampled_from(types) | WORDS,
                "status": st.sampled_from(["True", "False", "Unknown"]),
            },
            reason=WORDS | st.sampled_from(["PreemptionByScheduler", "DeletionByPodGC"]),
            message=WORDS,
            lastProbeTime=st.none(),
            lastTransitionTime=TIMES,
        ),
        max_size=4,
    )


WAITING = ("ErrImagePull", "ImagePullBackOff", "CrashLoopBackOff", "ContainerCreating", "")
CONTAINERS = st.lists(
    with_fields(
        {"name": st.sampled_from([names.CONTAINER, "other"]), "image": WORDS, "imageID": WORDS},
        state=fields(
            waiting=fields(reason=st.sampled_from(WAITING) | WORDS, message=WORDS),
            terminated=fields(
                exitCode=st.integers(0, 255), reason=st.sampled_from(["OOMKilled", "Error"])
            ),
            running=fields(startedAt=TIMES),
        ),
        ready=BOOLS,
    ),
    max_size=3,
)
QUANTITIES = st.sampled_from(["0", "1", "8", "500m", "1.5", "2k", "16Gi", "1e3"])
DEMANDS = st.lists(
    fields(
        name=WORDS,
        resources=fields(
            limits=st.dictionaries(
                st.sampled_from(["cpu", "nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.5gb"]),
                QUANTITIES,
                max_size=3,
            )
        ),
    ),
    max_size=3,
)
PODS = st.fixed_dictionaries(
    {"metadata": META},
    optional={
        "spec": fields(
            nodeName=st.sampled_from(["", "node"]), containers=DEMANDS, initContainers=DEMANDS
        ),
        "status": fields(
            phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
            reason=st.sampled_from(["Evicted", "NodeLost"]) | WORDS,
            message=WORDS,
            conditions=conditions("PodScheduled", "DisruptionTarget", "Ready"),
            containerStatuses=CONTAINERS,
            initContainerStatuses=CONTAINERS,
        ),
    },
)
JOBS = st.fixed_dictionaries(
    {"metadata": META},
    optional={
        "spec": fields(suspend=BOOLS),
        "status": fields(
            active=st.integers(0, 2**31 - 1),
            startTime=TIMES,
            conditions=conditions(
                "Complete", "Failed", "SuccessCriteriaMet", "FailureTarget", "Suspended"
            ),
        ),
    },
)
_RAY_JOB = {
    "jobDeploymentStatus": "Running",
    "jobStatus": "RUNNING",
    "reason": "",
    "message": "m",
    "startTime": "2026-11-23T12:00:00Z",
    "rayClusterStatus": {
        "state": "ready",
        "reason": "r",
        "conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "r", "message": "m"}],
    },
}
RAY_JOBS = st.fixed_dictionaries(
    {"metadata": META},
    optional={
        "spec": fields(suspend=BOOLS | JSON) | JSON,
        "status": nearly(_RAY_JOB)
        | JSON
        | fields(
            jobDeploymentStatus=st.sampled_from(DEPLOYMENT_STATUSES),
            jobStatus=st.sampled_from(JOB_STATUSES),
            reason=st.sampled_from(REASONS) | WORDS,
            message=WORDS,
            startTime=TIMES | st.sampled_from(["2026-11-23T23:59:60Z", "2026-11-23x12:00:00z"]),
            rayClusterStatus=JSON,
        ),
    },
)
CONFIGS = st.fixed_dictionaries(
    {"metadata": META},
    optional={
        "data": with_fields(
            {}, progress=WORDS | JSON.map(json.dumps), term=NUMBERS, **{"study.json": WORDS}
        ),
        "binaryData": fields(),
        "immutable": BOOLS,
    },
)


REASON = st.sampled_from(get_args(Reason))
CONDITIONS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(get_args(ConditionType)),
            "status": st.sampled_from(["True", "False", "Unknown"]),
            "reason": REASON,
            "message": st.text(max_size=20),
            "lastTransitionTime": TIMES,
        }
    ),
    max_size=5,
    unique_by=lambda condition: condition["type"],
)
FINDINGS = st.fixed_dictionaries(
    {},
    optional={
        "trials": st.fixed_dictionaries(
            {}, optional={word: st.integers(0, 99) for word in ("running", "paused", "completed")}
        ),
        "best": st.just({"trial": 1, "value": 0.5}),
        "final": st.just({"modelUri": "s3://x"}),
        "gpuSeconds": st.floats(0, 1e9),
        "resultsUri": st.just("s3://x"),
    },
)
STATUSES = st.builds(
    lambda findings, rest: StudyStatus.model_validate({**findings, **rest}, by_alias=True),
    FINDINGS,
    st.fixed_dictionaries(
        {},
        optional={
            "observedGeneration": st.integers(-1, 3),
            "state": st.sampled_from(get_args(State)),
            "conditions": CONDITIONS,
            "startTime": TIMES,
            "completionTime": TIMES,
            "plan": st.just({"trials": 4}),
            "attempts": st.integers(0, 6),
            "failedAttempts": st.integers(0, 6),
            "message": st.text(max_size=20),
            "retry": st.sampled_from(["", "1"]),
            "winner": st.sampled_from(["", "tickets-winner", "tickets-winner-2", "x"]),
            "lastEnd": st.fixed_dictionaries(
                {},
                optional={
                    "attempt": st.integers(0, 3),
                    "limits": st.sampled_from([{}, {"maxTrials": 1}, {"maxGpuHours": 1.0}]),
                },
            ),
        },
    ),
)
WISHES = fields(**{names.RETRY: st.sampled_from(["", "1", "2", "x" * 400]), "team": WORDS}).map(
    lambda annotations: {key: str(value) for key, value in annotations.items()}
)
"""Annotations of a study."""

RUNS = st.sampled_from([JOB_UID, "other", names.run_id(UID, 1), names.run_id(UID, 2)])
UIDS = st.sampled_from([UID, UID, UID, "other", ""])
SEEN_JOBS = st.builds(
    lambda engine, **more: engine(**more),
    st.sampled_from([job, kuberay_job]),
    attempt=st.integers(0, 4),
    uid=RUNS,
    study_uid=UIDS,
    deleting=BOOLS,
    succeeded=BOOLS,
    failed=st.none() | WORDS,
    active=st.integers(0, 3),
    held=BOOLS,
    begun=st.none() | DATES,
    refused=st.sampled_from(["", "", "bad group"]),
    trouble=st.sampled_from(["", "", "no quota"]),
)
SEEN_PODS = st.builds(
    pod,
    st.integers(0, 3),
    study_uid=UIDS,
    run_id=RUNS,
    place=st.sampled_from(["0", "1", "head", "tickets-worker"]),
    ended=BOOLS,
    running=BOOLS,
    deadline=st.none() | DATES,
    created=st.none() | DATES,
    image=st.sampled_from(["", "x@sha256:0"]),
    trouble=st.none() | st.builds(Trouble, st.sampled_from(get_args(TroubleReason)), WORDS),
)
DOCUMENTS = st.builds(
    lambda **said: StudyProgress.model_validate(said, by_alias=True),
    studyUid=UIDS,
    jobUid=RUNS,
    term=st.integers(1, 3),
    phase=st.sampled_from(["Preparing", "Searching", "Refitting", "Drained", "Finished", "Failed"]),
    reason=REASON,
    message=st.text(max_size=20) | st.just("x" * 1024),
    time=TIMES,
    findings=FINDINGS,
)
CLASS_NAMES = ("free", "strict", "broken")
FREE = {"limits": {"workers": 4, "trials": 9}, "labels": ["team"], "blockedNetworks": ["::/0"]}
STRICT = {
    "default": True,
    "engine": "RayJob",
    "limits": {"workers": 1, "gpus": 0},
    "allowed": {"stores": [], "claims": [], "queueNames": [], "dataRoots": []},
}
_READ: dict[str, FineTuneClass | str] = {
    name: parse_class(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneClass",
            "metadata": {"name": name},
            "spec": spec,
        }
    )
    for name, spec in (("free", FREE), ("strict", STRICT))
}
PLATFORMS = st.none() | st.builds(
    Platform,
    st.lists(st.sampled_from(CLASS_NAMES), unique=True).map(
        lambda names: {name: _READ.get(name, "spec: unheard of") for name in names}
    ),
    st.none() | st.sampled_from(CLASS_NAMES),
)
OBSERVED = st.builds(
    lambda jobs, pods, platform, **more: replace(observed(*jobs, *pods, **more), platform=platform),
    st.lists(SEEN_JOBS, max_size=3),
    st.lists(SEEN_PODS, max_size=4),
    PLATFORMS,
    document=st.none() | DOCUMENTS,
    term=st.integers(0, 3),
    fresh=BOOLS,
)
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "suspend": BOOLS,
        "className": st.sampled_from(CLASS_NAMES),
        "ttlSecondsAfterFinished": st.sampled_from([0, 60, 31536000]),
        "cluster": st.sampled_from([{"queueName": "team-a"}, {"workers": 3, "minWorkers": 1}]),
        "budget": st.sampled_from([{"maxTrials": 1}, {"maxTrials": 9}, {"maxDurationSeconds": 60}]),
        "objective": st.sampled_from([{"metric": "f1_macro", "target": 0.5}, {"metric": "loss"}]),
        "storage": st.just({"uri": "s3://bucket/x", "secretName": "s3"}),
        "search": st.sampled_from(
            [{"algorithm": "Random", "constraints": [text]} for text in ("batchSize <", "1 > 2")]
        ),
    },
)
SETTINGS_OF = st.builds(
    lambda base, **more: base.model_copy(update=more),
    st.sampled_from([SETTINGS, Settings()]),
    engine=st.sampled_from(["Job", "RayJob"]),
    queueing=st.sampled_from(["Kueue", "Volcano"]),
    max_failed_attempts=st.integers(1, 5),
)
