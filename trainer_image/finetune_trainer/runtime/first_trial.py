"""What a study tries first: the recommendation for its model and rows, as its search spaces have it."""

from finetune_api.hyperparameters import Scalar, resolve
from finetune_api.spaces import ChoiceDomain
from finetune_api.study import StudySpec
from finetune_trainer.data import PreparedData
from finetune_trainer.search.problem import Recommended
from finetune_trainer.search.recommended import first_point


def first_trial(spec: StudySpec, data: PreparedData) -> Recommended | None:
    """The recommended trial, in the space that has most of it; None if no space has any, or the study wants none.

    Where the pretrained model is searched, it is for the first one that the space names. Raises ModelError if a
    model's configuration cannot be loaded.
    """
    search = spec.search
    if search.defaults is False or (search.defaults is None and search.algorithm == "Grid"):
        return None
    fixed = resolve(spec.hyperparameters, {})
    found = []
    for index, of in enumerate(spec.spaces):
        space, own = of.domains(), dict[str, Scalar]()
        models = space.get("pretrainedModel")
        if isinstance(models, ChoiceDomain):
            own = {"pretrainedModel": models.values[0]}
        rows = data.read_by(str(own.get("pretrainedModel", fixed.pretrained_model)))
        config, others = rows.model.config(), {**fixed.to_json(), **own}
        width = getattr(config, "hidden_size", 0)  # families that differ by it have it
        params = first_point(config.model_type, width, len(rows.train), others, space)
        if params:
            found.append(Recommended(index, {**own, **params}))
    return max(found, key=lambda one: len(one.params), default=None)
