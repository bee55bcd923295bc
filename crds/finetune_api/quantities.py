"""Kubernetes quantities such as `500m`, `16Gi` or `2`, as the API server reads them."""

import re
from collections.abc import Mapping
from decimal import Decimal

QUANTITY_PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"

_QUANTITY = re.compile(QUANTITY_PATTERN[1:-1])
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}


def is_quantity(value: int | str) -> bool:
    """Whether `value` is a quantity of zero or more."""
    if isinstance(value, int):
        return value >= 0
    return len(value) <= 32 and _QUANTITY.fullmatch(value) is not None


def parse_quantity(value: int | str) -> Decimal:
    """The number that a quantity stands for, in its base unit. Raises ValueError if it is not a quantity."""
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise ValueError(f"must be a Kubernetes quantity (got {value!r})")
    number, suffix = Decimal(match[1]), match[3] or ""
    if suffix in _BINARY:
        return number * Decimal(1024 ** _BINARY[suffix])
    if suffix in _DECIMAL:
        return number.scaleb(_DECIMAL[suffix])
    return number.scaleb(int(suffix[1:]))


def gpus_in(resources: Mapping[str, int | str]) -> Decimal:
    """GPUs among resources of Kubernetes, whoever made them, by the rule with which KubeRay counts them."""
    counts = [parse_quantity(amount) for name, amount in resources.items() if _is_gpu(name)]
    return sum(counts, Decimal(0))


def _is_gpu(resource: str) -> bool:
    return resource.endswith("gpu") or resource.startswith("nvidia.com/mig-")
