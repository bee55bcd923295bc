"""The node's own address, its pod network, and taking both off the machine again."""

import contextlib
import json
import re
import subprocess
from pathlib import Path

from tests.cluster.onenode.apiserver import SERVICE_RANGE
from tests.cluster.onenode.packages import tool

DEVICE = "finetune0"
NODE_ADDRESS = "10.233.0.1"
POD_RANGE = "10.234.0.0/24"

# What kubelet and kube-proxy change on the machine, so that it can be put back.
_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "net/netfilter/nf_conntrack_max",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_CNI_RESULTS = Path("/var/lib/cni/results")
_CHAIN = "FINETUNE"
# Chains of kube-proxy, kubelet and the CNI plugins, and our own.
_OURS = re.compile(rf"\b((KUBE|CNI)-|{_CHAIN}\b)")


def another_kubernetes() -> bool:
    """Whether the packet filter already holds another Kubernetes's chains."""
    return any(_OURS.search(line) for line in _saved_rules("iptables-save"))


def up(folder: Path) -> None:
    """Make the node's device and write the CNI configuration into `folder`/cni."""
    remembered = folder / "sysctls.json"
    if not remembered.exists():
        values = {name: _sysctl(name).read_text() for name in _SYSCTLS if _sysctl(name).exists()}
        remembered.write_text(json.dumps(values))
    if not Path(f"/sys/class/net/{DEVICE}").exists():
        # A bridge without ports: `dummy` devices are a module that some machines lack.
        _ip("link", "add", DEVICE, "type", "bridge")
        _ip("address", "add", f"{NODE_ADDRESS}/32", "dev", DEVICE)
    _ip("link", "set", DEVICE, "up")
    _sysctl("net/ipv4/ip_forward").write_text("1")
    _allow_pods()
    configuration = folder / "cni" / "10-finetune.conflist"
    configuration.parent.mkdir(exist_ok=True)
    configuration.write_text(json.dumps(_conflist(folder), indent=1))


def down(folder: Path) -> None:
    """Take off the device, the pods' routes, the packet filter's chains, and changed settings."""
    if Path(f"/sys/class/net/{DEVICE}").exists():
        _ip("link", "delete", DEVICE)
    for family in ("iptables", "ip6tables"):
        _remove_chains(family)
    for cached in _CNI_RESULTS.glob("finetune-*-eth0"):
        sandbox = cached.name.removeprefix("finetune-").removesuffix("-eth0")
        (_CNI_RESULTS / f"cni-loopback-{sandbox}-lo").unlink(missing_ok=True)
        cached.unlink()
    remembered = folder / "sysctls.json"
    if remembered.exists():
        for name, value in json.loads(remembered.read_text()).items():
            # Some are read-only in a container or a locked-down machine; then nothing changed either.
            with contextlib.suppress(OSError):
                _sysctl(name).write_text(value)


def delete_namespace(path: Path) -> None:
    """Delete a pod's network namespace, and with it the pod's end of the wire and ours."""
    subprocess.run([tool("umount"), "--lazy", path], check=False, stderr=subprocess.DEVNULL)
    path.unlink(missing_ok=True)


def _conflist(folder: Path) -> dict[str, object]:
    # One wire a pod instead of a bridge: traffic between pods is routed, so Services work without
    # the module br_netfilter.
    return {
        "cniVersion": "0.4.0",
        "name": "finetune",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(folder / "addresses"),
                    "ranges": [[{"subnet": POD_RANGE}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _allow_pods() -> None:
    """Let pods' packets through, whatever else the machine forwards or refuses.

    A Service's address that kube-proxy has not programmed yet is refused at once: otherwise its
    packets would leave by the default route, to whoever answers there.
    """
    if any(_CHAIN in line for line in _saved_rules("iptables-save")):
        return
    for rule in (
        f"-N {_CHAIN}",
        f"-A {_CHAIN} -d {SERVICE_RANGE} -j REJECT",
        f"-A {_CHAIN} -s {POD_RANGE} -j ACCEPT",
        f"-A {_CHAIN} -d {POD_RANGE} -j ACCEPT",
        f"-I FORWARD -j {_CHAIN}",
        f"-I OUTPUT -j {_CHAIN}",
    ):
        subprocess.run([tool("iptables"), "--wait", *rule.split()], check=True)


def _remove_chains(family: str) -> None:
    """Filter our chains, and the rules that lead to them, out of the packet filter."""
    rules = _saved_rules(f"{family}-save")
    kept = [line for line in rules if not _OURS.search(line)]
    if kept != rules:
        text = "\n".join(kept) + "\n"
        subprocess.run([tool(f"{family}-restore")], input=text, text=True, check=True)


def _saved_rules(program: str) -> list[str]:
    return subprocess.run(
        [tool(program)], check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ).stdout.splitlines()


def _ip(*arguments: str) -> None:
    subprocess.run([tool("ip"), *arguments], check=True)


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name
