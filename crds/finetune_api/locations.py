"""Where things are: paths and URIs, which may be read by everybody who may read a study, and so hold no secret."""

import re
from typing import Annotated, Any, TypeAlias

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function

_PASSWORD = r"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#@]*:[^/?#]*@"  # a pattern of what is refused
"""`scheme://user:password@host`. (`abfss://container@account.dfs.core.windows.net` has none.)"""

_PARAMETER = (
    r"(?i)[?&]((aws_?)?access_?key(_?id)?|(aws_?)?secret(_?access)?_?key|(aws_?)?session_?token"
    r"|account_?key|sas_?token|sig|signature|x-(amz|goog)-(signature|credential|security-token)"
    r"|api_?key|password|token)="
)
"""A parameter that is a key, and the signature of a presigned URL."""

_MESSAGE = (
    "must not hold credentials (user:password@, a key or a signature): everybody who may read the study could; "
    "keep them in a Secret, as environment variables"
)

RULE = {
    "rule": f"!self.matches(r'{_PASSWORD}') && !self.matches(r'{_PARAMETER}')",
    "message": _MESSAGE,
}
"""The same for the API server."""


def _without_credentials(location: str) -> str:
    if re.search(_PASSWORD, location) or re.search(_PARAMETER, location):
        shown = re.sub(r"//[^/?#@]*:[^/?#]*@", "//***@", location).partition("?")[0]
        raise PydanticCustomError("credentials", "{text}", {"text": f"{_MESSAGE} (got {shown}…)"})
    return location


class WithoutCredentials:
    """Marks text that must not hold credentials, for pydantic and for the API server."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(_without_credentials, handler(source))

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "x-kubernetes-validations": [RULE]}


Location: TypeAlias = Annotated[str, Field(min_length=1, max_length=1024), WithoutCredentials()]
"""A path, or a URI such as `s3://bucket/data.csv`, of at most 1,024 characters and without credentials."""

ObjectStore: TypeAlias = Annotated[
    str,
    Field(min_length=1, max_length=1024, pattern=r"^(s3|gs|gcs|abfs|abfss|hdfs)://.+"),
    WithoutCredentials(),
]
"""A folder in an object store, such as `s3://bucket/prefix`, likewise."""
