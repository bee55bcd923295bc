"""Wrong manifests, each with the field at which it must be refused and words of the reason.

`tests/api` checks what `finetune plan` says of them, `tests/cluster` what the API server says.
"""

import copy
from dataclasses import dataclass
from typing import Any

VALID: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneStudy",
    "metadata": {"name": "tickets", "namespace": "default"},
    "spec": {
        "task": "SingleLabel",
        "model": {"name": "models/all-MiniLM-L6-v2"},
        "dataset": {
            "files": {"train": "data/library.csv"},
            "textColumns": ["text"],
            "labelColumn": "library",
        },
        "objective": {"metric": "f1_macro"},
        "searchSpaces": [
            {
                "learningRate": {"min": 1e-5, "max": 1e-3, "scale": "Log"},
                "batchSize": {"values": [16, 32]},
                "optimizer": {"values": ["AdamW", "SGD"]},
                "momentum": {"min": 0.5, "max": 0.9, "when": {"optimizer": ["SGD"]}},
            }
        ],
        "search": {"algorithm": "Random"},
        "budget": {"maxTrials": 4},
    },
}
"""A study that is right."""

GONE = object()


@dataclass(frozen=True)
class Wrong:
    """One manifest: `VALID` with `changes` (dotted path → value), refused at `field` for `reason`.

    `finetune plan` may be more exact than the API server: `closer` and `clearer` are its field and reason.
    """

    name: str
    changes: dict[str, Any]
    field: str
    reason: str = ""
    update: bool = False
    closer: str = ""
    clearer: str = ""

    def manifest(self) -> dict[str, Any]:
        """The wrong manifest."""
        return changed(VALID, self.changes)


def changed(manifest: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of `manifest` with each dotted path set, or removed where the value is GONE."""
    result = copy.deepcopy(manifest)
    for path, value in changes.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        node: Any = result
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if value is GONE:
            del node[last]
        else:
            node[last] = value
    return result


_SPACE = "spec.searchSpaces.0"
_SPACE_SHOWN = "spec.searchSpaces[0]"
_TAGS = {
    "spec.task": "TokenClassification",
    "spec.objective.metric": "f1_micro",
    "spec.dataset.textColumns": GONE,
    "spec.dataset.labelColumn": GONE,
    "spec.dataset.tokensColumn": "words",
    "spec.dataset.tagsColumn": "tags",
}
"""What makes a study one of words and their tags."""

_SPANS = {
    "spec.task": "TokenClassification",
    "spec.objective.metric": "f1_micro",
    "spec.dataset.labelColumn": GONE,
    "spec.dataset.spansColumn": "spans",
}
"""What makes a study one of spans in texts."""


WRONG = (
    Wrong(
        "thresholds for single labels",
        {f"{_SPACE}.decisionThreshold": {"min": 0.2, "max": 0.8}},
        "spec.hyperparameters",
        "with task SingleLabel there must be no decisionThreshold",
        closer="spec.searchSpaces[0].decisionThreshold",
        clearer="must not be given with task SingleLabel",
    ),
    Wrong(
        "label smoothing of numbers",
        {
            "spec.task": "Regression",
            "spec.objective.metric": "rmse",
            "spec.hyperparameters.labelSmoothing": 0.1,
        },
        "spec.hyperparameters",
        "with task Regression there must be no labelSmoothing",
        closer="spec.hyperparameters.labelSmoothing",
        clearer="must not be given with task Regression",
    ),
    Wrong(
        "classes repeated where rows have several labels",
        {"spec.task": "MultiLabel", f"{_SPACE}.classBalance": {"values": ["None", "Oversample"]}},
        "spec.hyperparameters",
        "with task MultiLabel classBalance must be None or Weights",
        closer="spec.searchSpaces[0].classBalance",
        clearer="must be None or Weights with task MultiLabel",
    ),
    Wrong("an ensemble of one", {"spec.ensemble": {"size": 1}}, "spec.ensemble.size"),
    Wrong(
        "an ensemble without a refit",
        {"spec.ensemble": {"size": 3}, "spec.refit": False},
        "spec.ensemble",
        "ensemble must go with refit",
    ),
    Wrong(
        "the best weights of folds",
        {"spec.refitRows": "Train", "spec.validation": {"crossValidation": {"folds": 3}}},
        "spec.refitRows",
        "refitRows Train must go with refit and one training a trial",
    ),
    Wrong(
        "the best weights of several seeds",
        {"spec.refitRows": "Train", "spec.validation": {"repeats": 2}},
        "spec.refitRows",
        "no crossValidation, repeats 1",
    ),
    Wrong(
        "rows for no refit",
        {"spec.refitRows": "Train", "spec.refit": False},
        "spec.refitRows",
        "refitRows Train must go with refit",
    ),
    Wrong(
        "ranks of numbers",
        {
            "spec.task": "Regression",
            "spec.objective.metric": "rmse",
            "spec.ensemble": {"size": 3, "method": "RankMean"},
        },
        "spec.ensemble",
        "with task Regression method must be Mean or Weighted",
    ),
    Wrong(
        "population that searches what a model consists of",
        {"spec.search.algorithm": "PBT", f"{_SPACE}.pooling": {"values": ["Cls", "Mean"]}},
        "spec.searchSpaces",
        "PBT must not search hyperparameters that decide the structure",
    ),
    Wrong(
        "three columns of texts",
        {"spec.dataset.textColumns": ["a", "b", "c"]},
        "spec.dataset.textColumns",
        "must go with joinTextColumns",
    ),
    Wrong(
        "a label column and label columns",
        {"spec.task": "MultiLabel", "spec.dataset.labelColumns": ["a", "b"]},
        "spec.dataset",
        "exactly one of labelColumn and labelColumns",
    ),
    Wrong(
        "label columns of a single label",
        {"spec.dataset.labelColumn": GONE, "spec.dataset.labelColumns": ["a", "b"]},
        "spec.dataset.labelColumns",
        "must only be given with task MultiLabel",
    ),
    Wrong(
        "texts longer than they may be",
        {"spec.dataset.cleaning": {"minCharacters": 9, "maxCharacters": 5}},
        "spec.dataset.cleaning.minCharacters",
        "must be at most maxCharacters",
    ),
    Wrong(
        "early stopping by a metric of another task",
        {"spec.objective.earlyStoppingMetric": "rmse"},
        "spec.objective.earlyStoppingMetric",
        "must suit the task",
    ),
    Wrong(
        "unknown hyperparameter",
        {f"{_SPACE}.learnRate": {"values": [1]}},
        "spec.searchSpaces[0].learnRate",
    ),
    Wrong("unknown field of the spec", {"spec.gpus": 4}, "spec.gpus"),
    Wrong(
        "min above max",
        {f"{_SPACE}.learningRate": {"min": 1e-3, "max": 1e-5}},
        "spec.searchSpaces[0].learningRate.min",
        "min must be below max",
    ),
    Wrong(
        "min equals max",
        {f"{_SPACE}.learningRate": {"min": 1e-3, "max": 1e-3}},
        "spec.searchSpaces[0].learningRate.min",
        "min must be below max",
    ),
    Wrong(
        "both values and min",
        {f"{_SPACE}.learningRate": {"values": [1e-3], "min": 1e-5}},
        "spec.searchSpaces[0].learningRate",
        "must have either values, or min and max",
    ),
    Wrong(
        "min without max",
        {f"{_SPACE}.learningRate": {"min": 1e-5}},
        "spec.searchSpaces[0].learningRate",
        "must have either values, or min and max",
    ),
    Wrong(
        "log scale from zero",
        {f"{_SPACE}.weightDecay": {"min": 0, "max": 0.1, "scale": "Log"}},
        "spec.searchSpaces[0].weightDecay.scale",
        "scale Log must have min above 0",
    ),
    Wrong(
        "step longer than the range",
        {f"{_SPACE}.weightDecay": {"min": 0, "max": 0.1, "step": 0.5}},
        "spec.searchSpaces[0].weightDecay.step",
        "step must be at most max - min",
    ),
    Wrong(
        "the same value twice",
        {f"{_SPACE}.batchSize": {"values": [16, 16]}},
        "spec.searchSpaces[0].batchSize.values",
        "values must be unique",
    ),
    Wrong(
        "no values",
        {f"{_SPACE}.batchSize": {"values": []}},
        "spec.searchSpaces[0].batchSize.values",
    ),
    Wrong(
        "out of bounds",
        {f"{_SPACE}.batchSize": {"values": [0]}},
        "spec.searchSpaces[0].batchSize.values[0]",
    ),
    Wrong(
        "wrong type",
        {f"{_SPACE}.batchSize": {"values": ["16"]}},
        "spec.searchSpaces[0].batchSize.values[0]",
    ),
    Wrong(
        "unknown word",
        {f"{_SPACE}.optimizer": {"values": ["Adam2"]}},
        "spec.searchSpaces[0].optimizer.values[0]",
    ),
    Wrong(
        "when names what is not searched",
        {f"{_SPACE}.momentum.when": {"lrSchedule": ["Linear"]}},
        "spec.searchSpaces",
        "when must name hyperparameters whose values are words",
        closer="spec.searchSpaces[0].momentum.when.lrSchedule",
        clearer="lrSchedule must be searched in the same space",
    ),
    Wrong(
        "when names a value that cannot occur",
        {f"{_SPACE}.momentum.when": {"optimizer": ["RMSprop"]}},
        "spec.searchSpaces",
        "when must name hyperparameters whose values are words",
        closer="spec.searchSpaces[0].momentum.when.optimizer",
        clearer="must be values of optimizer in the same space: AdamW, SGD (got 'RMSprop')",
    ),
    Wrong(
        "when names a number",
        {f"{_SPACE}.momentum.when": {"batchSize": ["16"]}},
        "spec.searchSpaces",
        "when must name hyperparameters whose values are words",
        closer="spec.searchSpaces[0].momentum.when.batchSize",
        clearer="batchSize is a number",
    ),
    Wrong(
        "when names a pretrained model",
        {
            f"{_SPACE}.pretrainedModel": {"values": ["a", "b"]},
            f"{_SPACE}.momentum.when": {"pretrainedModel": ["a"]},
        },
        "spec.searchSpaces",
        "when must name hyperparameters whose values are words",
        closer="spec.searchSpaces[0].momentum.when.pretrainedModel",
        clearer="pretrainedModel is the name of a model",
    ),
    Wrong(
        "when names what has a when itself",
        {
            f"{_SPACE}.lrSchedule": {"values": ["Linear"], "when": {"optimizer": ["SGD"]}},
            f"{_SPACE}.momentum.when": {"lrSchedule": ["Linear"]},
        },
        "spec.searchSpaces",
        "when must name hyperparameters whose values are words",
        closer="spec.searchSpaces[0].momentum.when.lrSchedule",
        clearer="lrSchedule must have no when of its own",
    ),
    Wrong("no search space", {"spec.searchSpaces": []}, "spec.searchSpaces"),
    Wrong(
        "Grid over a continuous range",
        {"spec.search.algorithm": "Grid", f"{_SPACE}.momentum": GONE},
        "spec.searchSpaces",
        "with algorithm Grid every hyperparameter must have values or step",
        closer="spec.searchSpaces[0].learningRate",
        clearer="must have values or step with algorithm Grid",
    ),
    Wrong(
        "Random without an end",
        {"spec.budget": {}},
        "spec.budget",
        "unless algorithm is Grid or PBT the budget must have maxTrials or maxDurationSeconds",
    ),
    Wrong(
        "SuccessiveHalving without a number of trials",
        {
            "spec.search.scheduler": {"type": "SuccessiveHalving"},
            "spec.budget": {"maxDurationSeconds": 9},
        },
        "spec.budget",
        "with scheduler SuccessiveHalving the budget must have maxTrials",
    ),
    Wrong(
        "fixed and searched",
        {"spec.hyperparameters": {"learningRate": 1e-4}},
        "spec.hyperparameters",
        "a hyperparameter must be either fixed in hyperparameters or searched",
    ),
    Wrong(
        "epochs searched under ASHA",
        {"spec.search.scheduler": {"type": "ASHA"}, f"{_SPACE}.epochs": {"values": [1, 2]}},
        "spec.searchSpaces",
        "with a scheduler epochs must be fixed",
    ),
    Wrong(
        "first rung above the last epoch",
        {"spec.search.scheduler": {"type": "ASHA", "minResource": 9}},
        "spec.search.scheduler.minResource",
        "minResource must be at most hyperparameters.epochs",
    ),
    Wrong(
        "a reduction factor of one",
        {"spec.search.scheduler": {"type": "ASHA", "reductionFactor": 1}},
        "spec.search.scheduler.reductionFactor",
    ),
    Wrong(
        "rungs of folds without folds",
        {"spec.search.scheduler": {"type": "ASHA", "resource": "Folds"}},
        "spec.search.scheduler.resource",
        "resource Folds must go with validation.crossValidation",
    ),
    Wrong(
        "a first rung of more folds than there are",
        {
            "spec.search.scheduler": {"type": "ASHA", "resource": "Folds", "minResource": 4},
            "spec.validation.crossValidation": {"folds": 3},
        },
        "spec.search.scheduler.resource",
        "minResource at most its folds",
    ),
    Wrong(
        "half a training row",
        {"spec.search.scheduler": {"type": "ASHA", "resource": "Samples", "minResource": 0.5}},
        "spec.search.scheduler.minResource",
        "minResource must be a whole number of Samples or Folds",
    ),
    Wrong(
        "several brackets of MedianStop",
        {"spec.search.scheduler": {"type": "MedianStop", "brackets": 2}},
        "spec.search.scheduler.brackets",
        "brackets must go with type ASHA or Hyperband",
    ),
    Wrong(
        "Hyperband over seconds without brackets",
        {"spec.search.scheduler": {"type": "Hyperband", "resource": "Seconds"}},
        "spec.search.scheduler",
        "brackets must be given with Hyperband over Samples or Seconds",
    ),
    Wrong(
        "the median at every billionth of an epoch",
        {"spec.search.scheduler": {"type": "MedianStop", "minResource": 1e-9}},
        "spec.search.scheduler.minResource",
        "minResource of MedianStop must be at least 0.1",
    ),
    Wrong(
        "the median of samples",
        {"spec.search.scheduler": {"type": "MedianStop", "resource": "Samples"}},
        "spec.search.scheduler.resource",
        "MedianStop must have resource Epochs or Folds",
    ),
    Wrong(
        "one fold",
        {"spec.validation": {"crossValidation": {"folds": 1}}},
        "spec.validation.crossValidation.folds",
    ),
    Wrong(
        "a slice by a column and an expression",
        {"spec.validation": {"slices": [{"name": "x", "column": "a", "expression": "a == 'b'"}]}},
        "spec.validation.slices[0]",
        "exactly one of column and expression",
    ),
    Wrong(
        "a slice by nothing",
        {"spec.validation": {"slices": [{"name": "x"}]}},
        "spec.validation.slices[0]",
        "exactly one of column and expression",
    ),
    Wrong(
        "an expression without a name",
        {"spec.validation": {"slices": [{"expression": "a == 'b'"}]}},
        "spec.validation.slices[0].name",
        "name must be given",
    ),
    Wrong(
        "a slice by a column whose name is none of a metric's",
        {"spec.validation": {"slices": [{"column": "a=b"}]}},
        "spec.validation.slices[0].name",
        "name must be given",
    ),
    Wrong(
        "slices of the same name",
        {"spec.validation": {"slices": [{"column": "a"}, {"name": "a", "expression": "b == 'c'"}]}},
        "spec.validation.slices",
        "must have different names",
    ),
    Wrong(
        "the worst slice where there are none",
        {"spec.objective.additionalMetrics": ["accuracy@worst"]},
        "spec.validation.slices",
        "metrics over slices must go with validation.slices",
    ),
    Wrong(
        "the gap of another task's metric",
        {
            "spec.objective.metric": "rmse@gap",
            "spec.validation": {"slices": [{"column": "a"}]},
        },
        "spec.objective.metric",
        "metric must suit the task",
    ),
    Wrong(
        "a constraint over slices where there are none",
        {"spec.objective.constraints": ["metrics['accuracy@gap'] <= 0.1"]},
        "spec.validation.slices",
        "metrics over slices must go with validation.slices",
    ),
    Wrong(
        "no constraints",
        {"spec.objective.constraints": []},
        "spec.objective.constraints",
    ),
    Wrong("no repeats", {"spec.validation": {"repeats": 0}}, "spec.validation.repeats"),
    Wrong(
        "PBT over rungs",
        {"spec.search": {"algorithm": "PBT", "scheduler": {"type": "ASHA"}}},
        "spec.search.algorithm",
        "algorithm PBT must have scheduler None",
    ),
    Wrong(
        "a population of one",
        {"spec.search": {"algorithm": "PBT", "populationSize": 1}},
        "spec.search.populationSize",
    ),
    Wrong(
        "CMAES over words",
        {"spec.search.algorithm": "CMAES"},
        "spec.searchSpaces",
        "algorithm CMAES must have one space, of numbers only",
    ),
    Wrong(
        "two objectives over rungs",
        {
            "spec.objective.secondary": [{"metric": "loss"}],
            "spec.search.scheduler": {"type": "ASHA"},
        },
        "spec.objective.secondary",
        "with secondary objectives the scheduler must be None",
    ),
    Wrong(
        "a second objective of another task",
        {"spec.objective.secondary": [{"metric": "rmse"}]},
        "spec.objective.secondary",
        "secondary metrics must suit the task",
    ),
    Wrong(
        "a limit of price without a price",
        {"spec.budget": {"maxTrials": 4, "maxPrice": 10}},
        "spec.budget.maxPrice",
        "maxPrice must go with pricePerGpuHour",
    ),
    Wrong("an empty constraint", {"spec.search.constraints": [""]}, "spec.search.constraints[0]"),
    Wrong(
        "a warm start from nowhere", {"spec.search.warmStart": [{}]}, "spec.search.warmStart[0].uri"
    ),
    Wrong(
        "a metric of another task",
        {"spec.objective.metric": "rmse"},
        "spec.objective.metric",
        "metric must suit the task",
    ),
    Wrong("an unknown metric", {"spec.objective.metric": "f2"}, "spec.objective.metric"),
    Wrong("no trials", {"spec.budget.maxTrials": 0}, "spec.budget.maxTrials"),
    Wrong(
        "two sources of data",
        {"spec.dataset.hub": {"path": "org/tickets"}},
        "spec.dataset",
        "must have exactly one of hub and files",
    ),
    Wrong(
        "no label column",
        {"spec.dataset.labelColumn": GONE},
        "spec.dataset",
        "exactly one of labelColumn and labelColumns",
    ),
    *(
        Wrong(
            f"a whole number below a bound that is none, {where}",
            {field: value},
            at,
            "must be at least 0.5",
        )
        for where, field, value, at in (
            (
                "fixed",
                "spec.hyperparameters",
                {"duplicateThreshold": 0},
                "spec.hyperparameters.duplicateThreshold",
            ),
            (
                "listed",
                f"{_SPACE}.duplicateThreshold",
                {"values": [1, 0]},
                f"{_SPACE_SHOWN}.duplicateThreshold.values[1]",
            ),
            (
                "of a range",
                f"{_SPACE}.duplicateThreshold",
                {"min": 0, "max": 1},
                f"{_SPACE_SHOWN}.duplicateThreshold.min",
            ),
            (
                "of a point",
                "spec.search.points",
                [{"duplicateThreshold": 0}],
                "spec.search.points[0].duplicateThreshold",
            ),
        )
    ),
    Wrong(
        "words without tags",
        {**_SPANS, "spec.dataset.textColumns": GONE, "spec.dataset.tokensColumn": "words"},
        "spec.dataset.tokensColumn",
        "tokensColumn must go with tagsColumn",
    ),
    Wrong(
        "words and texts",
        {**_TAGS, "spec.dataset.textColumns": ["text"]},
        "spec.dataset.textColumns",
        "unless there is a tokensColumn",
    ),
    Wrong(
        "words as their own tags",
        {**_TAGS, "spec.dataset.tagsColumn": "words"},
        "spec.dataset.tagsColumn",
        "words are not their own tags",
    ),
    Wrong(
        "tags and spans",
        {**_TAGS, "spec.dataset.spansColumn": "spans"},
        "spec.dataset",
        "exactly one of labelColumn and labelColumns, or of tagsColumn and spansColumn",
    ),
    Wrong(
        "spans in two columns of texts",
        {**_SPANS, "spec.dataset.textColumns": ["a", "b"]},
        "spec.dataset.spansColumn",
        "must go with one of textColumns",
    ),
    Wrong(
        "spans of joined texts",
        {**_SPANS, "spec.dataset.joinTextColumns": True},
        "spec.dataset.joinTextColumns",
        "must be false with tokensColumn and with spansColumn",
    ),
    Wrong(
        "cleaning that moves the text under its spans",
        {**_SPANS, "spec.dataset.cleaning": {"stripHtml": True}},
        "spec.dataset.cleaning",
        "would move the text, and not its spans",
    ),
    Wrong(
        "names for labels of spans",
        {**_SPANS, "spec.dataset.labelNames": ["a", "b"]},
        "spec.dataset.labelNames",
        "must go with labelColumn or tagsColumn",
    ),
    Wrong(
        "one label a row where each word has one",
        {"spec.task": "TokenClassification", "spec.objective.metric": "f1_micro"},
        "spec.dataset.labelColumn",
        "with task TokenClassification there must be no labelColumn",
    ),
    Wrong(
        "spans for another task",
        {**_SPANS, "spec.task": "SingleLabel"},
        "spec.dataset.spansColumn",
        "spansColumn must only be given with task TokenClassification",
    ),
    Wrong(
        "ranks of the tags of words",
        {**_SPANS, "spec.ensemble": {"size": 2, "method": "RankMean"}},
        "spec.ensemble",
        "with task TokenClassification method must be Mean or Weighted",
    ),
    Wrong(
        "attributions of tags",
        {**_SPANS, "spec.artifacts": {"attributedRows": 3}},
        "spec.artifacts.attributedRows",
        "with task TokenClassification attributedRows must be 0",
    ),
    Wrong(
        "nothing left to train on",
        {"spec.dataset.split": {"validation": 0.5, "test": 0.5}},
        "spec.dataset.split",
        "must leave rows for training",
    ),
    Wrong(
        "a text as its own label",
        {"spec.dataset.textColumns": ["text", "label"], "spec.dataset.labelColumn": "label"},
        "spec.dataset.labelColumn",
        "labelColumn must not be one of textColumns",
    ),
    Wrong(
        "names of labels twice",
        {"spec.dataset.labelNames": ["a", "b"], "spec.dataset.labelNamesFile": "names.txt"},
        "spec.dataset.labelNames",
        "must have at most one of labelNames and labelNamesFile",
    ),
    Wrong(
        "names of labels that have columns",
        {
            "spec.task": "MultiLabel",
            "spec.dataset.labelColumn": GONE,
            "spec.dataset.labelColumns": ["a", "b"],
            "spec.dataset.labelNames": ["a", "b"],
        },
        "spec.dataset.labelNames",
        "labelNames must go with labelColumn",
    ),
    Wrong(
        "a delimiter of two characters",
        {"spec.dataset.files": {"train": "a.csv", "delimiter": "::"}},
        "spec.dataset.files.delimiter",
    ),
    Wrong(
        "a share above one",
        {"spec.dataset.files": {"train": "a.csv", "maxUnreadable": 2}},
        "spec.dataset.files.maxUnreadable",
    ),
    Wrong(
        "a separator without several labels",
        {"spec.dataset.labelSeparator": ";"},
        "spec.dataset.labelSeparator",
        "labelSeparator must only be given with task MultiLabel",
    ),
    Wrong(
        "two kinds of storage",
        {"spec.storage": {"uri": "s3://bucket/x", "persistentVolumeClaim": {"claimName": "a"}}},
        "spec.storage",
        "must have exactly one of persistentVolumeClaim and uri",
    ),
    Wrong(
        "a password in a storage",
        {"spec.storage": {"uri": "s3://me:s3cret@bucket/x"}},
        "spec.storage.uri",
        "must not hold credentials",
    ),
    Wrong(
        "a key in the address of data",
        {"spec.dataset.files.train": "s3://bucket/x.csv?region=eu&access_key=AKIA"},
        "spec.dataset.files.train",
        "must not hold credentials",
    ),
    Wrong(
        "a presigned address of a model",
        {"spec.model.name": "https://bucket.example.com/m?X-Amz-Signature=0a1b"},
        "spec.model.name",
        "must not hold credentials",
    ),
    Wrong(
        "a password in a warm start",
        {"spec.search.warmStart": [{"uri": "s3://me:s3cret@bucket/x"}]},
        "spec.search.warmStart[0].uri",
        "must not hold credentials",
    ),
    Wrong("no workers", {"spec.cluster": {"workers": 0}}, "spec.cluster.workers"),
    Wrong(
        "more workers at least than at most",
        {"spec.cluster": {"workers": 2, "minWorkers": 3}},
        "spec.cluster.minWorkers",
        "must be at most workers",
    ),
    Wrong(
        "no quantity",
        {"spec.cluster": {"resourcesPerWorker": {"memory": "16 GB"}}},
        "spec.cluster.resourcesPerWorker.memory",
    ),
    Wrong(
        "a name too long for its children",
        {"metadata.name": "x" * 41},
        "metadata",
        "metadata.name must be lower-case letters, digits and hyphens",
        closer="metadata.name",
        clearer="must be lower-case letters, digits and hyphens, begin with a letter, at most 40 characters (got 'x",
    ),
)

EDITS = (
    Wrong(
        "edited search space",
        {"spec.searchSpaces.0.batchSize.values": [8]},
        "spec",
        "must not change after creation: searchSpaces",
    ),
    Wrong(
        "edited task", {"spec.task": "MultiLabel"}, "spec", "must not change after creation: task"
    ),
    Wrong(
        "edited twice",
        {"spec.task": "MultiLabel", "spec.model.name": "other/model"},
        "spec",
        "must not change after creation: task model",
    ),
    Wrong(
        "edited metric",
        {"spec.objective.metric": "accuracy"},
        "spec",
        "must not change after creation: objective.metric",
    ),
    Wrong(
        "added objective",
        {"spec.objective.secondary": [{"metric": "loss"}]},
        "spec",
        "must not change after creation: objective.secondary",
    ),
    Wrong("edited seed", {"spec.search.seed": 1}, "spec", "must not change after creation: search"),
    Wrong(
        "added hyperparameters",
        {"spec.hyperparameters": {"epochs": 2}},
        "spec",
        "must not change after creation: hyperparameters",
    ),
    Wrong(
        "edited folds",
        {"spec.validation": {"crossValidation": {"folds": 3}}},
        "spec",
        "must not change after creation: validation",
    ),
    Wrong(
        "edited workers",
        {"spec.cluster": {"workers": 2}},
        "spec",
        "must not change after creation: cluster (may change only while suspend is true)",
    ),
    Wrong(
        "workers edited by the commit that suspends",
        {"spec.cluster": {"workers": 2}, "spec.suspend": True},
        "spec",
        "must not change after creation: cluster (may change only while suspend is true)",
    ),
    Wrong(
        "edited precision",
        {"spec.compute": {"precision": "BF16"}},
        "spec",
        "must not change after creation: compute (may change only while suspend is true)",
    ),
    Wrong(
        "storage edited after an attempt",
        {"spec.storage": {"uri": "s3://bucket/other"}},
        "spec",
        "storage (may change only before the first attempt; docs/operations.md says how to move a study)",
    ),
    Wrong(
        "refit switched off", {"spec.refit": False}, "spec", "must not change after creation: refit"
    ),
    Wrong(
        "added ensemble",
        {"spec.ensemble": {"size": 3}},
        "spec",
        "must not change after creation: ensemble",
    ),
)
"""Edits of a stored `VALID` that the API server refuses."""
