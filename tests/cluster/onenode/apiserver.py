"""etcd and kube-apiserver on this machine, as many pairs as a test wants, each on its own ports."""

import json
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.cluster.loopback import listens
from tests.cluster.onenode.build import KUBERNETES, program
from tests.cluster.onenode.certificates import Authority
from tests.cluster.onenode.processes import Service

SERVICE_RANGE = "10.235.0.0/16"
_FIRST_SERVICE_ADDRESS = "10.235.0.1"


class ApiServer:
    """A control plane without nodes: etcd, kube-apiserver and, if wanted, some controllers.

    Use it as a context manager, or `start()` and `stop()` it. `etcd`, `apiserver` and
    `controller_manager` are services that a test may `kill()`, `stop()` and `start()` one by one;
    ports, data and certificates stay the same; `wait_ready()` afterwards.

    Args:
        folder: where certificates, data, logs and pid files go; starting again on it keeps the data.
        controllers: names of kube-controller-manager's controllers to run, `*` for the default
            ones; none at all if empty. The garbage collector is `garbage-collector-controller`.
        address: what the API server listens on.
        arguments: further arguments of kube-apiserver.
        controller_arguments: further arguments of kube-controller-manager.
    """

    def __init__(
        self,
        folder: Path,
        controllers: Sequence[str] = (),
        address: str = "127.0.0.1",
        arguments: Sequence[str] = (),
        controller_arguments: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.authority = Authority(folder / "certificates")
        self._address = address
        self._ports = _ports(folder / "ports.json", address)
        self.url = f"https://{address}:{self._ports['api']}"
        self.kubeconfig = self.authority.kubeconfig(
            folder / "kubeconfig", self.url, "admin", ["system:masters"]
        )
        self.etcd = Service("etcd", self._etcd_command(), folder)
        self.apiserver = Service("kube-apiserver", [*self._apiserver_command(), *arguments], folder)
        self.controller_manager = (
            Service(
                "kube-controller-manager",
                [*self._controller_manager_command(controllers), *controller_arguments],
                folder,
            )
            if controllers
            else None
        )

    def __enter__(self) -> "ApiServer":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start whatever does not run and return when the API server is ready."""
        self.etcd.start()
        self.apiserver.start()
        self.wait_ready()
        if self.controller_manager is not None:
            self.controller_manager.start()

    def stop(self) -> None:
        """Stop everything; the data stay."""
        for service in (self.controller_manager, self.apiserver, self.etcd):
            if service is not None:
                service.stop()

    def wait_ready(self, timeout: float = 240.0) -> None:
        """Return when `/readyz` answers ok; raises ClusterError if an own process ends first."""
        self.etcd.wait_until(lambda: listens(self._ports["etcd"]), timeout)
        self.apiserver.wait_until(self._ready, timeout)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints as the cluster's administrator; CalledProcessError, its words noted, if it fails."""
        command = [str(program("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        try:
            done = subprocess.run(command, input=stdin, check=True, text=True, capture_output=True)
        except subprocess.CalledProcessError as error:
            error.add_note(str(error.stderr))
            raise
        return done.stdout

    def serve(self, crd: Path, resource: str) -> None:
        """Apply a CustomResourceDefinition; returns when its resource (`group/version/plural`) is served."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crd))
        group, _, plural = resource.split("/")
        self.apiserver.wait_until(lambda: self._established(f"{plural}.{group}"), 30)
        self.kubectl("get", "--raw", f"/apis/{resource}")

    def _established(self, crd: str) -> bool:
        status = json.loads(self.kubectl("get", "crd", crd, "-o=json")).get("status", {})
        conditions = status.get("conditions") or []
        return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

    def kubeconfig_for(self, name: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig of another user, e.g. `system:serviceaccount:ns:name` (with its groups)."""
        file = "-".join([name, *groups]).replace(":", ".")
        path = self.folder / f"{file}.kubeconfig"
        return self.authority.kubeconfig(path, self.url, name, groups)

    def _ready(self) -> bool:
        pair = self.authority.issue("client-readyz", "admin", ["system:masters"])
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        context.load_cert_chain(pair.certificate, pair.key)
        # A proxy from the environment must not stand between us and this machine.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _etcd_command(self) -> list[str]:
        client = f"https://127.0.0.1:{self._ports['etcd']}"
        peer = f"http://127.0.0.1:{self._ports['peer']}"
        pair = self.authority.issue("etcd", "etcd", hosts=["localhost", "127.0.0.1"])
        return [
            str(program("etcd")),
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            f"--cert-file={pair.certificate}",
            f"--key-file={pair.key}",
            f"--trusted-ca-file={self.authority.certificate}",
            "--client-cert-auth",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _apiserver_command(self) -> list[str]:
        authority = self.authority
        hosts = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        hosts += ["127.0.0.1", self._address, _FIRST_SERVICE_ADDRESS]
        serving = authority.issue("apiserver", "kube-apiserver", hosts=list(dict.fromkeys(hosts)))
        etcd = authority.issue("apiserver-etcd", "kube-apiserver-etcd")
        kubelet = authority.issue("apiserver-kubelet", "kube-apiserver-kubelet", ["system:masters"])
        private, public = authority.signing_keys("service-accounts")
        return [
            str(program("kube-apiserver")),
            f"--etcd-servers=https://127.0.0.1:{self._ports['etcd']}",
            f"--etcd-cafile={authority.certificate}",
            f"--etcd-certfile={etcd.certificate}",
            f"--etcd-keyfile={etcd.key}",
            f"--bind-address={self._address}",
            f"--advertise-address={self._address}",
            f"--secure-port={self._ports['api']}",
            # A loopback address is refused as an endpoint of the kubernetes Service.
            *(["--endpoint-reconciler-type=none"] if self._address == "127.0.0.1" else []),
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--client-ca-file={authority.certificate}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--kubelet-certificate-authority={authority.certificate}",
            f"--kubelet-client-certificate={kubelet.certificate}",
            f"--kubelet-client-key={kubelet.key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--profiling=false",
        ]

    def _controller_manager_command(self, controllers: Sequence[str]) -> list[str]:
        private, _ = self.authority.signing_keys("service-accounts")
        kubeconfig = self.authority.kubeconfig(
            self.folder / "controller-manager.kubeconfig",
            self.url,
            "system:kube-controller-manager",
        )
        return [
            str(program("kube-controller-manager")),
            f"--kubeconfig={kubeconfig}",
            f"--controllers={','.join(controllers)}",
            f"--service-account-private-key-file={private}",
            f"--root-ca-file={self.authority.certificate}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports['controllers']}",
        ]


def version() -> str:
    """The version of Kubernetes that is run."""
    return KUBERNETES


def _ports(path: Path, address: str) -> dict[str, int]:
    """Free ports, remembered: a restarted server comes back where its clients look for it."""
    if not path.exists():
        hosts = {
            "api": address,
            "etcd": "127.0.0.1",
            "peer": "127.0.0.1",
            "controllers": "127.0.0.1",
        }
        sockets = {name: socket.create_server((host, 0)) for name, host in hosts.items()}
        path.write_text(json.dumps({name: s.getsockname()[1] for name, s in sockets.items()}))
        for open_socket in sockets.values():
            open_socket.close()
    ports: dict[str, int] = json.loads(path.read_text())
    return ports
