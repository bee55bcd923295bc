"""The node's programs: containerd, kubelet, kube-proxy and CoreDNS, with their configuration files."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import yaml

from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.archive import Image, write_archive
from tests.cluster.onenode.build import program
from tests.cluster.onenode.network import NODE_ADDRESS, POD_RANGE
from tests.cluster.onenode.packages import tool
from tests.cluster.onenode.processes import ClusterError, Service

NAME = "onenode"
PAUSE_IMAGE = "finetune.local/pause:1"


class Containerd:
    """A containerd of our own: socket, images and containers under `folder`/containerd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "containerd"
        self.socket = self.folder / "containerd.sock"
        self._config = self.folder / "config.toml"
        command = [tool("containerd"), f"--config={self._config}"]
        self.service = Service("containerd", command, folder)
        self._cni = folder / "cni"

    def start(self) -> None:
        """Start it and bring in the pause image."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._config.write_text(_containerd_config(self.folder, self.socket, self._cni))
        self.service.start()
        self.service.wait_until(self._answers)
        if PAUSE_IMAGE not in self.images():
            archive = self.folder / "pause.tar"
            image = Image(PAUSE_IMAGE, entrypoint=["/pause"], user="65535:65535")
            write_archive(archive, image, files={"pause": program("pause")})
            self.import_image(archive)
            archive.unlink()

    def ctr(self, *arguments: str) -> str:
        """What `ctr` prints, in the namespace that kubelet uses."""
        command = [tool("ctr"), f"--address={self.socket}", "--namespace=k8s.io", *arguments]
        return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout

    def images(self) -> list[str]:
        """The names of the images it has."""
        return self.ctr("images", "list", "--quiet").split()

    def import_image(self, archive: Path) -> None:
        """Bring in a docker or OCI archive under the names it carries."""
        self.ctr("images", "import", str(archive))

    def network_namespaces(self) -> set[Path]:
        """The network namespaces of its pods."""
        found = set()
        for container in self.ctr("containers", "list", "--quiet").split():
            spec = json.loads(self.ctr("containers", "info", container))["Spec"]
            for namespace in spec["linux"]["namespaces"]:
                if namespace["type"] == "network" and "path" in namespace:
                    path = Path(namespace["path"])
                    found.add(path)
        return {path for path in found if path.name.startswith("cni-")}

    def remove_containers(self, timeout: float = 240.0) -> None:
        """End and forget every container; ClusterError if some are left after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while containers := self.ctr("containers", "list", "--quiet").split():
            if time.monotonic() > deadline:
                raise ClusterError(f"containers must be gone, but these are left: {containers}")
            # containerd deletes a sandbox's tasks itself when it sees them end: either may be first.
            for task in self.ctr("tasks", "list", "--quiet").split():
                self._try_ctr("tasks", "delete", "--force", task)
            self._try_ctr("containers", "delete", *containers)

    def shims(self) -> list[int]:
        """The pids of its shims, by the socket in their command lines."""
        mark = f"-address\0{self.socket}\0".encode()
        return [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if b"containerd-shim" in (line := _read(path)) and mark in line
        ]

    def _answers(self) -> bool:
        return self._try_ctr("version")

    def _try_ctr(self, *arguments: str) -> bool:
        command = [tool("ctr"), f"--address={self.socket}", "--namespace=k8s.io", *arguments]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def kubelet(folder: Path, server: ApiServer, runtime: Containerd) -> Service:
    """kubelet, which never evicts a pod and never deletes an image."""
    authority = server.authority
    pair = authority.issue("kubelet", NAME, hosts=[NAME, NODE_ADDRESS])
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pair.certificate),
        "tlsPrivateKeyFile": str(pair.key),
        "containerRuntimeEndpoint": f"unix://{runtime.socket}",
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "podLogsDir": str(folder / "pods"),
        "volumePluginDir": str(folder / "kubelet" / "plugins"),
        # Virtual machines with cgroup v1 and without CAP_SYS_RESOURCE.
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        # A nearly full disk is no reason to evict a test.
        "evictionHard": dict.fromkeys(
            ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available"), "0%"
        ),
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": False,
        "registerNode": True,
        "nodeStatusUpdateFrequency": "5s",
        "syncFrequency": "10s",
        "shutdownGracePeriod": "0s",
    }
    path = folder / "kubelet.yaml"
    path.write_text(yaml.safe_dump(config))
    kubeconfig = authority.kubeconfig(
        folder / "kubelet.kubeconfig", server.url, f"system:node:{NAME}", ["system:nodes"]
    )
    command = [
        str(program("kubelet")),
        f"--config={path}",
        f"--kubeconfig={kubeconfig}",
        f"--root-dir={folder / 'kubelet'}",
        f"--hostname-override={NAME}",
        f"--node-ip={NODE_ADDRESS}",
    ]
    # Root's tools are not on every user's PATH.
    env = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    return Service("kubelet", command, folder, env)


def kube_proxy(folder: Path, server: ApiServer) -> Service:
    """kube-proxy in iptables mode."""
    kubeconfig = server.authority.kubeconfig(
        folder / "kube-proxy.kubeconfig", server.url, "system:kube-proxy"
    )
    command = [
        str(program("kube-proxy")),
        f"--kubeconfig={kubeconfig}",
        "--proxy-mode=iptables",
        # Its default of a second is long for a test that waits for a Service.
        "--iptables-min-sync-period=100ms",
        f"--cluster-cidr={POD_RANGE}",
        f"--hostname-override={NAME}",
        "--conntrack-max-per-core=0",
        f"--healthz-bind-address={NODE_ADDRESS}:10256",
        f"--metrics-bind-address={NODE_ADDRESS}:10249",
    ]
    env = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    return Service("kube-proxy", command, folder, env)


def scheduler(folder: Path, server: ApiServer) -> Service:
    """kube-scheduler."""
    kubeconfig = server.authority.kubeconfig(
        folder / "scheduler.kubeconfig", server.url, "system:kube-scheduler"
    )
    command = [
        str(program("kube-scheduler")),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--leader-elect=false",
        f"--bind-address={NODE_ADDRESS}",
    ]
    return Service("kube-scheduler", command, folder)


def coredns(folder: Path, server: ApiServer) -> Service:
    """CoreDNS on the node's address; names outside the cluster go to the machine's own resolvers."""
    kubeconfig = server.authority.kubeconfig(
        folder / "coredns.kubeconfig", server.url, "coredns", ["system:masters"]
    )
    resolvers = re.findall(r"^nameserver\s+(\S+)", _resolv_conf(), re.MULTILINE)
    forward = f"    forward . {' '.join(resolvers)}\n" if resolvers else ""
    corefile = folder / "Corefile"
    corefile.write_text(
        f".:53 {{\n    bind {NODE_ADDRESS}\n    errors\n"
        f"    kubernetes cluster.local in-addr.arpa {{\n        kubeconfig {kubeconfig}\n"
        "        ttl 1\n    }\n"
        f"{forward}}}\n"
    )
    return Service("coredns", [str(program("coredns")), f"-conf={corefile}"], folder)


def _containerd_config(folder: Path, socket: Path, cni: Path) -> str:
    return f"""version = 2
root = "{folder / "root"}"
state = "{folder / "state"}"
disabled_plugins = ["io.containerd.internal.v1.tracing", "io.containerd.snapshotter.v1.devmapper"]

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{folder / "opt"}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
# Without CAP_SYS_RESOURCE every sandbox would fail to lower its score.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{cni}"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _resolv_conf() -> str:
    path = Path("/etc/resolv.conf")
    return path.read_text() if path.exists() else ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process ended meanwhile
        return b""
