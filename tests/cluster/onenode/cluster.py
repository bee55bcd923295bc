"""The whole one-node cluster: up, down, and where it keeps its things."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster.onenode import network, node
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.build import NODE_PROGRAMS, build_all, cache_folder
from tests.cluster.onenode.locks import exclusive
from tests.cluster.onenode.mounts import unmount_below
from tests.cluster.onenode.packages import NODE, require
from tests.cluster.onenode.processes import ClusterError, Service, state_folder

# Where kubelet and containerd write outside their own folders.
_KUBELET_HOME = Path("/var/lib/kubelet")
_CONTAINER_LOGS = Path("/var/log/containers")
_CGROUPS = Path("/sys/fs/cgroup")


class Cluster:
    """The cluster of one state folder, running or not; any process may hold one."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_folder()
        self.kubeconfig = self.folder / "kubeconfig"

    def up(self) -> Path:
        """Start whatever does not run, wait until the node is ready, return the kubeconfig.

        Raises ToolMissing where this machine cannot have a cluster, ClusterError where it fails.
        """
        require(NODE)
        build_all(NODE_PROGRAMS)
        with _one_at_a_time():
            return self._up()

    def _up(self) -> Path:
        if not self.folder.exists() and network.another_kubernetes():
            raise ClusterError(
                "another Kubernetes seems to run on this machine (its KUBE- or CNI- chains are in"
                " iptables); a second one would break both"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _remember_kubelet_home(self.folder)
        network.up(self.folder)
        server = self.server()
        server.start()
        runtime = self.runtime()
        runtime.start()
        for service in self._node_services(server, runtime):
            service.start()
        self._wait_ready(server)
        return self.kubeconfig

    def down(self) -> None:
        """End everything the cluster started and delete everything it made."""
        with _one_at_a_time():
            if self.folder.exists():
                self._down()

    def _down(self) -> None:
        _say(f"taking down the cluster in {self.folder}")
        for name in ("coredns", "kubelet", "kube-proxy", "kube-scheduler"):
            self._stop(name)
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            self._stop(name)
        self._end_containers()
        network.down(self.folder)
        unmount_below(self.folder)
        _remove_cgroups()
        _remove_container_logs(self.folder)
        if (self.folder / "kubelet-home-is-ours").exists():
            shutil.rmtree(_KUBELET_HOME, ignore_errors=True)
        shutil.rmtree(self.folder)

    @property
    def running(self) -> bool:
        """Whether the API server and kubelet of this state folder run."""
        names = ("kube-apiserver", "kubelet")
        return all(Service(name, (), self.folder).running for name in names)

    def server(self) -> ApiServer:
        """The control plane, on the node's address, with all of the default controllers."""
        return ApiServer(
            self.folder,
            controllers=("*",),
            address=network.NODE_ADDRESS,
            controller_arguments=[
                f"--cluster-cidr={network.POD_RANGE}",
                "--node-monitor-grace-period=30s",
                # Claims bind at once instead of after up to 15 s.
                "--pvclaimbinder-sync-period=1s",
            ],
        )

    def runtime(self) -> node.Containerd:
        """The container runtime."""
        return node.Containerd(self.folder)

    def _node_services(self, server: ApiServer, runtime: node.Containerd) -> list[Service]:
        return [
            node.scheduler(self.folder, server),
            node.kubelet(self.folder, server, runtime),
            node.kube_proxy(self.folder, server),
            node.coredns(self.folder, server),
        ]

    def _wait_ready(self, server: ApiServer) -> None:
        kubelet = Service("kubelet", (), self.folder)

        def ready() -> bool:
            # The node may not be registered yet, or the default service account not be made.
            with contextlib.suppress(subprocess.CalledProcessError):
                account = server.kubectl(
                    "get", "serviceaccount", "default", "--ignore-not-found", "-oname"
                )
                nodes = server.kubectl(
                    "get", "nodes", "-o", 'jsonpath={..conditions[?(@.type=="Ready")].status}'
                )
                return bool(account) and nodes == "True"
            return False

        kubelet.wait_until(ready, timeout=120)

    def _stop(self, name: str) -> None:
        # The API server would wait for every open watch; its data are deleted anyway.
        Service(name, (), self.folder).stop(grace=3)

    def _end_containers(self) -> None:
        runtime = self.runtime()
        namespaces: set[Path] = set()
        if runtime.folder.exists():
            runtime.start()
            namespaces = runtime.network_namespaces()
            runtime.remove_containers()
            self._stop("containerd")
        for pid in runtime.shims():
            os.kill(pid, signal.SIGKILL)
        for namespace in namespaces:
            network.delete_namespace(namespace)


def _one_at_a_time() -> contextlib.AbstractContextManager[None]:
    return exclusive(cache_folder() / "cluster.lock")


def _remember_kubelet_home(folder: Path) -> None:
    """Note whether kubelet's fixed folder (device plugins) will be ours to delete."""
    if not _KUBELET_HOME.exists():
        (folder / "kubelet-home-is-ours").touch()


def _remove_cgroups() -> None:
    """Remove the control groups of the pods, whose processes may take a moment to end."""
    for top in [*_CGROUPS.glob("*/kubepods"), *_CGROUPS.glob("kubepods")]:
        for group in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
            _remove_cgroup(group)
        _remove_cgroup(top)


def _remove_cgroup(group: Path) -> None:
    for _ in range(50):
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    _say(f"could not remove the control group {group}")


def _remove_container_logs(folder: Path) -> None:
    if not _CONTAINER_LOGS.exists():
        return
    for link in _CONTAINER_LOGS.iterdir():
        if link.is_symlink() and str(link.readlink()).startswith(str(folder)):
            link.unlink()


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)
