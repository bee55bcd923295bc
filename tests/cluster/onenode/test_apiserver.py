"""A control plane of its own: killed and restarted, it is the same one."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.build import KUBERNETES
from tests.needs import ToolMissing, not_run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    folder = tmp_path_factory.mktemp("apiserver")
    try:
        started = ApiServer(folder, controllers=("garbage-collector-controller",))
    except ToolMissing as missing:
        not_run(missing)
    with started:
        yield started


def test_it_says_which_version_it_is(server: ApiServer) -> None:
    assert f"Server Version: {KUBERNETES}" in server.kubectl("version")


def test_a_killed_apiserver_comes_back_with_its_data(server: ApiServer) -> None:
    server.kubectl("create", "namespace", "kept-by-etcd")
    server.apiserver.kill()
    assert not server.apiserver.running
    server.start()
    assert "kept-by-etcd" in server.kubectl("get", "namespaces", "--output=name")


def test_a_killed_etcd_comes_back_with_its_data(server: ApiServer) -> None:
    server.kubectl("create", "namespace", "kept-on-disk")
    server.etcd.kill()
    server.start()
    assert "kept-on-disk" in server.kubectl("get", "namespaces", "--output=name")


def test_two_run_side_by_side(server: ApiServer, tmp_path: Path) -> None:
    server.kubectl("create", "namespace", "only-in-the-first")
    with ApiServer(tmp_path) as second:
        assert second.url != server.url
        assert "only-in-the-first" not in second.kubectl("get", "namespaces", "--output=name")
    assert not second.apiserver.running


def test_other_users_are_authorized_by_rbac(server: ApiServer) -> None:
    asked = ["get", "pods", f"--kubeconfig={server.kubeconfig_for('alice')}"]
    with pytest.raises(subprocess.CalledProcessError):
        server.kubectl(*asked)
    server.kubectl("create", "clusterrole", "lister", "--verb=list", "--resource=pods")
    server.kubectl("create", "clusterrolebinding", "alice", "--clusterrole=lister", "--user=alice")
    # The authorizer sees a new binding through its watch, a moment later.
    server.apiserver.wait_until(lambda: succeeds(server, asked))


def succeeds(server: ApiServer, arguments: list[str]) -> bool:
    try:
        server.kubectl(*arguments)
    except subprocess.CalledProcessError:
        return False
    return True
