"""What can go wrong when a cluster is asked: one hierarchy.

A manifest that is not a valid study is a `finetune_api.manifest.ManifestError`, raised before anything is sent.
"""


class ClientError(Exception):
    """A request about a study that did not do what was asked."""


class NotFound(ClientError):
    """There is no such study, pod or namespace, or the study was deleted while somebody waited for it."""


class Refused(ClientError):
    """The API server does not accept the request: a missing right, a rule, a policy. The text is its message."""


class Unreachable(ClientError):
    """The API server does not answer, or cannot answer now; trying again later may help."""


class BadConfiguration(Unreachable):
    """There is no kubeconfig, context or account with which to reach a cluster."""


class StudyFailed(ClientError):
    """The study has ended without a result.

    Args:
        name: of the study.
        reason: one of `finetune_api.status.Reason`.
        message: what to mend, in the words of its status.
    """

    def __init__(self, name: str, reason: str, message: str) -> None:
        super().__init__(f"{name} failed ({reason}): {message}")
        self.name = name
        self.reason = reason
        self.message = message
