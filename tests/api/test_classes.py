"""The example of a class, and the study that it is for."""

from pathlib import Path

import pytest

from finetune_api.class_rules import refusals, with_class
from finetune_api.manifest import ManifestError, parse_class, read_class, read_study

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "classes"


def test_the_example_study_has_fifteen_lines_of_spec_and_fits_the_example_class() -> None:
    given, study = read_class(EXAMPLES / "gpu.yaml"), read_study(EXAMPLES / "study.yaml")
    namespace, name = str(study.metadata.namespace), given.metadata.name
    assert refusals(study.spec, namespace, name, given.spec) == []
    spec = with_class(study.spec, given.spec)
    assert spec.storage == given.spec.storage
    assert spec.cluster.resources_per_worker["nvidia.com/gpu"] == 1
    assert (spec.budget.max_trials, spec.budget.max_gpu_hours) == (24, 48)
    text = (EXAMPLES / "study.yaml").read_text()
    assert len(text.partition("spec:\n")[2].splitlines()) <= 15


def test_the_example_study_may_not_read_what_belongs_to_others() -> None:
    given, study = read_class(EXAMPLES / "gpu.yaml"), read_study(EXAMPLES / "study.yaml")
    (refused,) = refusals(study.spec, "other", given.metadata.name, given.spec)
    assert refused[0] == "spec.dataset.files.train"
    assert "s3://data/teams/other/" in refused[1]


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("without", [None, True, False])
def test_a_class_can_keep_texts_out_of_reports(asked: bool | None, without: bool | None) -> None:
    given, study = read_class(EXAMPLES / "gpu.yaml"), read_study(EXAMPLES / "study.yaml")
    artifacts = study.spec.artifacts.model_copy(update={"texts": asked})
    spec = study.spec.model_copy(update={"artifacts": artifacts})
    made = with_class(spec, given.spec.model_copy(update={"without_texts": without}))
    assert made.artifacts.texts is (False if without else asked)


@pytest.mark.parametrize("document", [None, [], "gpu", {"kind": "FineTuneStudy"}])
def test_what_is_no_class_is_told(document: object) -> None:
    with pytest.raises(ManifestError):
        parse_class(document)
