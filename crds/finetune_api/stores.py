"""Where a study keeps what it makes."""

from typing import ClassVar

from finetune_api.locations import ObjectStore
from finetune_api.schema import Model, Name, Rule


class ClaimStorage(Model):
    """A PersistentVolumeClaim in the study's namespace."""

    claim_name: Name
    """Name of the claim."""


class Storage(Model):
    """Where records, checkpoints, the table of trials and the final model are kept."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.persistentVolumeClaim) != has(self.uri)",
            message="must have exactly one of persistentVolumeClaim and uri",
            holds=lambda self: (self.persistent_volume_claim is None) != (self.uri is None),
        ),
        Rule(
            cel="!has(self.secretName) || has(self.uri)",
            message="secretName must go with uri",
            holds=lambda self: self.secret_name is None or self.uri is not None,
            field=".secretName",
        ),
    )

    persistent_volume_claim: ClaimStorage | None = None
    """Must be ReadWriteMany if the study's pods run on more than one node."""

    uri: ObjectStore | None = None
    """An object store, for example `s3://bucket/prefix`."""

    secret_name: Name | None = None
    """Secret whose keys become environment variables of the study's pods (credentials)."""


def study_folder(root: str, namespace: str, name: str, uid: str, adopts: bool) -> str:
    """Where a study's files are below a storage's root, which may be a URI with options.

    No other study, of whatever name, ever has the same, unless it adopts the folder.
    """
    base, mark, options = root.partition("?")
    own = "adopted" if adopts else uid
    return f"{base.rstrip('/')}/{namespace}/{name}/{own}{mark}{options}"
