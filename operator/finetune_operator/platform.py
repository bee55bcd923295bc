"""Which class a study has, and the settings that follow from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.class_rules import refusals
from finetune_api.classes import CLASS_LABEL, FineTuneClass
from finetune_api.manifest import ManifestError, parse_class
from finetune_api.study import FineTuneStudy
from finetune_operator.merge import overlay
from finetune_operator.names import CONTAINER
from finetune_operator.settings import Settings


@dataclass(frozen=True)
class Platform:
    """The classes of the cluster, as a study in one namespace sees them."""

    classes: Mapping[str, FineTuneClass | str] = field(default_factory=dict)
    """By name; where one cannot be read, why."""

    named: str | None = None
    """The class that the namespace names."""


class NoClass(Exception):
    """The class of a study is not there, or cannot be used; the text says why."""


def class_of(study: FineTuneStudy, platform: Platform | None) -> FineTuneClass | None:
    """The study's class; None if it has none. Raises NoClass.

    Without a platform, the operator reads no classes, because it has rights in some namespaces only.
    """
    asked = study.spec.class_name
    if platform is None:
        if asked is None:
            return None
        raise NoClass(
            f"spec.className is {asked}, but this operator watches only some namespaces and cannot read classes, which"
            " are cluster-scoped: create the study without it"
        )
    if asked is not None:
        return _read(platform, asked, "spec.className")
    if platform.named is not None:
        return _read(platform, platform.named, f"label {CLASS_LABEL} of the namespace")
    defaults = [
        name
        for name, found in sorted(platform.classes.items())
        if isinstance(found, FineTuneClass) and found.spec.default
    ]
    if len(defaults) > 1:
        raise NoClass(
            f"the FineTuneClasses {', '.join(defaults)} are all the default: set spec.default to false in all but one"
        )
    return _read(platform, defaults[0], "the default") if defaults else None


def _read(platform: Platform, name: str, whence: str) -> FineTuneClass:
    found = platform.classes.get(name)
    if found is None:
        raise NoClass(f"FineTuneClass {name} ({whence}) does not exist")
    if isinstance(found, str):
        raise NoClass(f"FineTuneClass {name} ({whence}) cannot be read by this operator: {found}")
    return found


def denials(study: FineTuneStudy, given: FineTuneClass | None) -> str:
    """What the class does not let the study have, in one line; empty if nothing."""
    if given is None:
        return ""
    namespace = study.metadata.namespace or ""
    found = refusals(study.spec, namespace, given.metadata.name, given.spec)
    return "; ".join(f"{where} {message}" for where, message in found)


def settings_with(settings: Settings, given: FineTuneClass | None) -> Settings:
    """The settings for a study of that class, with an engine that is not Auto. Raises NoClass if the operator cannot run
    the class's engine."""
    changes: dict[str, Any] = {}
    engine = settings.engine
    if given is not None:
        spec = given.spec
        engine = spec.engine or engine
        if settings.engine == "Job" and engine != "Job":
            raise NoClass(
                f"FineTuneClass {given.metadata.name} wants the engine {engine}, which this operator does not watch: set"
                " the chart's value study.engine to Auto"
            )
        part = {
            "spec": {
                "imagePullSecrets": [{"name": name} for name in spec.image_pull_secrets],
                "containers": [
                    {
                        "name": CONTAINER,
                        "env": [{"name": n, "value": v} for n, v in spec.environment.items()],
                    }
                ],
            }
        }
        if spec.image_pull_secrets or spec.environment:
            changes["pod_template"] = overlay(settings.pod_template, part)
        if spec.pod_template:
            below = changes.get("pod_template", settings.pod_template)
            changes["pod_template"] = overlay(below, spec.pod_template)
        changes |= {
            "trainer_image": spec.image or settings.trainer_image,
            "image_pull_policy": spec.image_pull_policy or settings.image_pull_policy,
            "given": spec,
        }
    changes["engine"] = settings.auto_engine if engine == "Auto" else engine
    return settings.model_copy(update=changes)


class Classes:
    """What is known of classes, and of the namespaces that name one."""

    def __init__(self) -> None:
        self._classes: dict[str, FineTuneClass | str] = {}
        self._named: dict[str, str] = {}

    def see(self, kind: str, body: Mapping[str, Any], gone: bool) -> None:
        """Take in a FineTuneClass or a Namespace."""
        meta = body["metadata"]
        if kind == "Namespace":
            named = (meta.get("labels") or {}).get(CLASS_LABEL)
            self._put(self._named, meta["name"], None if gone else named)
        else:
            self._put(self._classes, meta["name"], None if gone else _parsed(body))

    def names(self, kind: str) -> set[str]:
        """Names of everything known of that kind."""
        return set(self._named if kind == "Namespace" else self._classes)

    def of(self, namespace: str) -> Platform:
        """What a study in that namespace sees."""
        return Platform(dict(self._classes), self._named.get(namespace))

    @staticmethod
    def _put(known: dict[str, Any], name: str, value: Any) -> None:
        if value is None:
            known.pop(name, None)
        else:
            known[name] = value


def _parsed(body: Mapping[str, Any]) -> FineTuneClass | str:
    """The class, or why it cannot be read: the API server accepted it, so this operator is older than its CRD."""
    try:
        return parse_class(
            {key: body[key] for key in ("apiVersion", "kind", "metadata", "spec") if key in body}
        )
    except ManifestError as error:
        return "; ".join(map(str, error.problems))
