"""A cluster's API server, as the client's tests have it."""

from tests.client.conftest import client, kubeconfig, server, studies

__all__ = ["client", "kubeconfig", "server", "studies"]
