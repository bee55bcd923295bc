"""What a slot says of itself before it trains."""

from pathlib import Path

import pytest
import torch

from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.environment import SlotResources
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.search.items import RefitItem, Segment, TrainItem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.worker.item import Item, Material
from finetune_trainer.worker.model_worker import ModelWorker
from tests.trainer.conftest import MakeSpec
from tests.trainer.one_slot import Line
from tests.trainer.small_trials import small

pytestmark = pytest.mark.usefixtures("one_thread")

SEGMENT: Segment = ({"learningRate": 1e-4}, 1)
ITEMS: list[Item] = [
    TrainItem(trial=0, params=SEGMENT[0], to_epoch=1, checkpoint=None, seed=1),
    RefitItem(trial=0, segments=(SEGMENT,), seed=1),
]


@pytest.mark.parametrize("item", ITEMS, ids=["train", "refit"])
@pytest.mark.parametrize(
    ("built", "why"),
    [("13.0", "it finds no driver or no device"), (None, "the build for CPUs only")],
)
def test_a_slot_with_a_gpu_that_torch_does_not_see_fails_what_it_is_given(
    item: Item,
    built: str | None,
    why: str,
    make_spec: MakeSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    spec = make_spec()
    data: PreparedData = small(prepare(spec, Path("/")), 16, 8)
    claim(Storage.open(str(tmp_path)), parts_of(spec))
    slot = ModelWorker(Material(spec, str(tmp_path), None, SlotResources(1, 0.5)), data)
    line = Line(lambda: False)
    (event,) = slot.work(item, line)
    if isinstance(event, ev.Failed):
        assert event.failure_class == "UserError"  # which is not tried again
        message = f"UserError: {event.message}"
    else:
        assert isinstance(event, ev.RefitRequeued)
        message = event.message
    field = "UserError: spec.cluster.resourcesPerWorker: must have no GPU where torch sees none "
    assert message.startswith(f"{field}(got 0.5 for each trial; torch {torch.__version__}")
    assert why in message
    assert line.said == []  # nor has it a setting
