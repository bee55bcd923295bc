"""The base of every contract model: strict, camelCase, frozen, with rules that hold across fields.

A rule is written once beside the model as a pair: a CEL expression for the API server and a Python
predicate for everybody else. `tests/cluster` proves that the pairs agree.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from finetune_api.docstrings import attribute_docs

Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=253)]
"""The name of another object."""


@dataclass(frozen=True)
class Rule:
    """A condition over several fields of one model.

    `cel` and `holds` must accept the same objects. `field` is the JSON path, relative to the model,
    that an error is reported at (`.min`); `detail` adds the offending values to the Python message and
    `message_cel` does the same in the API server. `each` is for rules that several fields can break: in Python
    every field at fault is named, with a message of its own.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]
    field: str = ""
    message_cel: str = ""
    detail: Callable[[Any], str] | None = None
    each: Callable[[Any], list[tuple[str, str]]] | None = None
    once: bool = False
    """Whether the API server checks it only at creation."""

    def at_creation(self) -> "Rule":
        """The rule for a model that cannot change, so that no later write (of the status above all) has to pay for it."""
        return replace(self, once=True)

    def explain(self, value: Any) -> str:
        """The message for `value`, which breaks the rule."""
        return f"{self.message} ({self.detail(value)})" if self.detail else self.message

    def broken(self, value: Any) -> list[tuple[str, str]]:
        """The fields of `value` that break the rule, each with what must hold; empty if none does."""
        if self.holds(value):
            return []
        return self.each(value) if self.each else [(self.field, self.explain(value))]

    def as_validation(self) -> dict[str, str | bool]:
        """The rule as an entry of `x-kubernetes-validations`."""
        entry: dict[str, str | bool] = {"rule": self.cel, "message": self.message}
        if self.once:
            entry |= {"rule": f"oldSelf.hasValue() || ({self.cel})", "optionalOldSelf": True}
        if self.message_cel:
            entry["messageExpression"] = self.message_cel
        if self.field:
            entry["fieldPath"] = self.field
        return entry


class Model(BaseModel):
    """A frozen object of the contract: snake_case in Python, camelCase in JSON, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
    )

    RULES: ClassVar[tuple[Rule, ...]] = ()
    UPDATE_RULES: ClassVar[tuple[Rule, ...]] = ()
    """Rules that compare with the stored object (`oldSelf`): only an API server can check them."""

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [problem for rule in self.RULES for problem in rule.broken(self)]
        if broken:
            raise PydanticCustomError("rule", "{text}", {"text": broken[0][1], "broken": broken})
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        docs = attribute_docs(cls)
        for name, field in cls.model_fields.items():
            if name in docs and field.alias in properties:
                properties[field.alias].setdefault("description", docs[name])
        rules = [rule.as_validation() for rule in (*cls.RULES, *cls.UPDATE_RULES)]
        if rules:
            handler.resolve_ref_schema(schema)["x-kubernetes-validations"] = rules
        return schema

    def to_json(self) -> dict[str, Any]:
        """The object as plain JSON values, with unset optional fields left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_short_json(self) -> dict[str, Any]:
        """The same without fields at their defaults: earlier versions can read it too, as long as
        no field is used that they do not know."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
