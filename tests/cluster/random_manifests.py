"""Random studies, valid and broken, in canonical JSON (whole numbers are written as integers)."""

import copy
import random
from typing import Any, get_args

from finetune_api.hyperparameters import CATEGORICAL, Hyperparameters, json_name
from finetune_api.manifest import ManifestError, parse_study
from finetune_api.search import Scheduler, Search
from finetune_api.tasks import TASKS

_ODD: tuple[Any, ...] = (
    None,
    -1,
    0,
    1,
    2,
    0.5,
    1e-5,
    10**6,
    4294967296,
    "",
    "x",
    "None",
    "16Gi",
    "-1",
    True,
    False,
    [],
    {},
    [1, 1],
    ["a"],
    "é" * 300,
)


def _bounds(name: str) -> tuple[float, float, bool]:
    schema = Hyperparameters.model_json_schema()["properties"][json_name(name)]
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    return low, high, schema["type"] == "integer"


_SLICES: tuple[Any, ...] = (
    [{"column": "language"}],
    [{"column": "language"}, {"name": "long", "expression": "double(length) > 9.0"}],
    [{"column": "a=b"}],
    [{"expression": "a == b"}],
)
_CONDITIONS = (["metrics.loss < 1.0"], ["metrics['loss@gap'] < 0.1", "metrics.loss < 1.0"], [""])
_ALGORITHMS = get_args(Search.model_fields["algorithm"].annotation)
_SCHEDULERS = get_args(Scheduler.model_fields["type"].annotation)
_RESOURCES = get_args(Scheduler.model_fields["resource"].annotation)

_NUMERIC = {
    name: _bounds(name)
    for name, field in Hyperparameters.model_fields.items()
    if field.annotation in (int, float)
}


def _number(rng: random.Random, name: str) -> float | int:
    low, high, whole = _NUMERIC[name]
    if whole:
        return rng.randint(int(low), min(int(high), int(low) + 50))
    value = float(f"{rng.uniform(low, min(high, low + 1)):.4g}")
    return int(value) if value.is_integer() else value


def _words(name: str) -> list[str]:
    return list(get_args(Hyperparameters.model_fields[name].annotation))


def _domain(rng: random.Random, name: str) -> dict[str, Any]:
    if name in CATEGORICAL:
        words = _words(name)
        return {"values": rng.sample(words, rng.randint(1, len(words)))}
    if name not in _NUMERIC:
        return {"values": rng.sample(["models/a", "models/b", "org/c"], rng.randint(1, 3))}
    if rng.random() < 0.5:
        return {"values": [_number(rng, name) for _ in range(rng.randint(1, 4))]}
    domain: dict[str, Any] = dict(
        zip(("min", "max"), sorted(_number(rng, name) for _ in range(2)), strict=True)
    )
    if rng.random() < 0.3:
        domain["step"] = rng.choice([1, 2]) if _NUMERIC[name][2] else rng.choice([0.01, 0.1, 1])
    elif rng.random() < 0.4:
        domain["scale"] = rng.choice(["Linear", "Log"])
    return domain


def _space(rng: random.Random) -> dict[str, Any]:
    names = rng.sample(list(Hyperparameters.model_fields), rng.randint(1, 5))
    space = {json_name(name): _domain(rng, name) for name in names}
    for domain in space.values():
        if rng.random() < 0.2:
            key = rng.choice(CATEGORICAL)
            domain["when"] = {json_name(key): rng.sample(_words(key), 1)}
    return space


def _data(rng: random.Random) -> dict[str, Any]:
    more: dict[str, Any] = {
        "cleaning": {
            "stripHtml": rng.random() < 0.5,
            "minCharacters": rng.randint(1, 9),
            "maxCharacters": rng.randint(5, 99),
            "duplicates": rng.choice(["Keep", "Drop"]),
            "conflicts": rng.choice(["Keep", "Report", "Drop"]),
            "duplicateEncoder": {"name": "encoder"},
        },
        "groupColumn": "author",
        "synonyms": "data/synonyms.tsv",
        "allowLabelInText": True,
        "labelColumns": ["y1", "y2"],
        "labelNames": ["no", "yes"],
        "labelNamesFile": "names.txt",
        "textColumns": ["a", "b", "c"],
        "joinTextColumns": rng.random() < 0.7,
        "tokensColumn": "words",
        "tagsColumn": "tags",
        "spansColumn": rng.choice(["spans", "a"]),
    }
    return {name: value for name, value in more.items() if rng.random() < 0.4}


def _valid(rng: random.Random) -> dict[str, Any]:
    task = rng.choice(list(TASKS))
    metrics = TASKS[task].metrics if rng.random() < 0.9 else TASKS["Regression"].metrics
    source = {"files": {"train": "a.csv"}} if rng.random() < 0.7 else {"hub": {"path": "org/data"}}
    columns: dict[str, Any] = {"textColumns": ["a", "b"][: rng.randint(1, 2)], "labelColumn": "y"}
    if "tags_column" in TASKS[task].own_fields and rng.random() < 0.9:
        columns = rng.choice(
            [
                {"tokensColumn": "words", "tagsColumn": "tags"},
                {"textColumns": ["a"], "spansColumn": "spans"},
            ]
        )
    spec: dict[str, Any] = {
        "task": task,
        "model": {"name": "bert-base-uncased"},
        "dataset": {**source, **columns},
        "objective": {"metric": rng.choice(metrics)},
        "searchSpaces": [_space(rng) for _ in range(rng.randint(1, 3))],
        "search": {"algorithm": rng.choice(_ALGORITHMS)},
    }
    optional: dict[str, Any] = {
        "hyperparameters": {
            json_name(name): _number(rng, name) for name in rng.sample(list(_NUMERIC), 2)
        },
        "budget": {
            "maxTrials": rng.randint(1, 50),
            "maxFailedTrials": rng.randint(0, 5),
            "maxGpuHours": rng.choice([0.5, 8]),
            "maxTrialsWithoutImprovement": rng.randint(1, 20),
            "pricePerGpuHour": 2.5,
        },
        "validation": {
            "crossValidation": {"folds": rng.randint(2, 5)},
            "repeats": rng.choice([1, 3]),
            "slices": rng.choice(_SLICES),
        },
        "compute": {"precision": rng.choice(["FP32", "BF16"]), "compile": rng.random() < 0.5},
        "ensemble": {
            "size": rng.randint(2, 10),
            "method": rng.choice(["Mean", "Weighted", "RankMean"]),
        },
        "artifacts": {"onnx": rng.random() < 0.5, "attributedRows": rng.randint(0, 9)},
        "tracking": {"mlflow": {"trackingUri": "http://mlflow:5000", "experiment": "e"}},
        "refit": rng.random() < 0.5,
        "refitRows": rng.choice(["TrainAndValidation", "Train"]),
        "cluster": {
            "workers": rng.randint(1, 8),
            "minWorkers": rng.randint(0, 2),
            "resourcesPerWorker": {"cpu": rng.choice([1, "500m", "1.5"]), "memory": "4Gi"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
        "storage": rng.choice(
            [{"uri": "s3://bucket/x"}, {"persistentVolumeClaim": {"claimName": "studies"}}]
        ),
        "onExisting": rng.choice(["Fresh", "Adopt", "Adopt"]),
        "suspend": rng.random() < 0.5,
        "ttlSecondsAfterFinished": rng.randint(0, 1000),
    }
    spec |= {name: value for name, value in optional.items() if rng.random() < 0.5}
    if rng.random() < 0.2:
        names = rng.sample(list(_NUMERIC), 2)
        spec["search"]["points"] = [{json_name(name): _number(rng, name) for name in names}]
    if rng.random() < 0.3:
        spec["dataset"] |= _data(rng)
        if "labelColumns" in spec["dataset"]:
            spec["dataset"].pop("labelColumn", None)
    if rng.random() < 0.1:
        spec["objective"]["earlyStoppingMetric"] = rng.choice(metrics)
    if rng.random() < 0.1:
        spec["objective"]["secondary"] = [{"metric": rng.choice(metrics)}]
    if rng.random() < 0.2:
        spec["objective"]["constraints"] = rng.choice(_CONDITIONS)
    if rng.random() < 0.1:
        spec["objective"]["metric"] += rng.choice(["@worst", "@gap"])
    if rng.random() < 0.2:
        spec["search"]["constraints"] = ["batchSize * gradientAccumulation <= 64"]
        spec["search"]["warmStart"] = [{"uri": "studies/first"}]
    if rng.random() < 0.4:
        spec["search"]["scheduler"] = {
            "type": rng.choice(_SCHEDULERS),
            "resource": rng.choice(_RESOURCES),
            "minResource": rng.choice([0.5, 1, 2, 3]),
        }
        if rng.random() < 0.3:
            spec["search"]["scheduler"]["brackets"] = rng.randint(1, 3)
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneStudy",
        "metadata": {"name": f"study-{rng.randint(0, 10**9)}", "namespace": "default"},
        "spec": spec,
    }


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below `node`."""
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    found = []
    for key, child in items:
        found += [(node, key), *_places(child)]
    return found


def _break(rng: random.Random, spec: dict[str, Any]) -> None:
    container, key = rng.choice(_places(spec))
    kind = rng.random()
    if kind < 0.25:
        del container[key]
    elif kind < 0.35 and isinstance(container, dict):
        container["unknown"] = 1
    elif kind < 0.45 and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    else:
        container[key] = copy.deepcopy(rng.choice(_ODD))


def _accepted(manifest: dict[str, Any]) -> bool:
    try:
        parse_study(manifest)
    except ManifestError:
        return False
    return True


def random_manifest(seed: int) -> dict[str, Any]:
    """The study of that number: of three, one is right, one is right but for one place, one is anything."""
    rng = random.Random(seed)
    manifest = _valid(rng)
    if seed % 3:
        while not _accepted(manifest):
            manifest = _valid(rng)
    if seed % 3 == 2:
        _break(rng, manifest["spec"])
    return manifest
