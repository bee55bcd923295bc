"""What a study fixes and what it searches: models with one field for each hyperparameter.

They are made of the declarations in `hyperparameters`. Editors and mypy see their fields in the stub beside this
module, which `python -m finetune_api.generate` writes.
"""

from typing import Annotated, Any

from pydantic import Field, create_model

from finetune_api.hyperparameters import Hyperparameters, described, kind_of
from finetune_api.schema import Model
from finetune_api.spaces import DOMAINS, SearchSpaceBase


def _optional(name: str) -> Any:
    metadata = Hyperparameters.model_fields[name].metadata
    note = Field(None, description=described(name))
    return Annotated[(kind_of(name), Field(), *metadata)] | None, note


FixedHyperparameters: type[Model] = create_model(
    "FixedHyperparameters",
    __base__=Model,
    __doc__="Values for all trials. A hyperparameter that is neither here nor searched has its documented default.",
    **{name: _optional(name) for name in Hyperparameters.model_fields},
)
"""`spec.hyperparameters`: as `Hyperparameters`, with every field optional."""

_SPACES: dict[str, Any] = {
    name: (model | None, Field(None, description=model.__doc__)) for name, model in DOMAINS.items()
}
SearchSpace: type[SearchSpaceBase] = create_model(
    "SearchSpace", __base__=SearchSpaceBase, __doc__=SearchSpaceBase.__doc__, **_SPACES
)
"""One space of `spec.searchSpaces`: every hyperparameter an optional, typed field."""
