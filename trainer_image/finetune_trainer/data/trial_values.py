"""Which values of a hyperparameter the trials of a study can have, so that the data are ready for them."""

from finetune_api.hyperparameters import JSON_NAMES, Hyperparameters, Scalar
from finetune_api.spaces import ChoiceDomain, NumericDomain
from finetune_api.study import StudySpec


def trial_values(spec: StudySpec, name: str) -> list[Scalar]:
    """Values of the hyperparameter with JSON name `name`: the fixed one or the default, and from each domain
    those listed, or its ends."""
    attribute = JSON_NAMES[name]
    fixed = getattr(spec.hyperparameters, attribute, None)
    values = [Hyperparameters.model_fields[attribute].default if fixed is None else fixed]
    for space in spec.spaces:
        domain = space.domains().get(name)
        if isinstance(domain, ChoiceDomain):
            values += domain.values
        elif isinstance(domain, NumericDomain):
            values += domain.values or [domain.min, domain.max]
    return values
