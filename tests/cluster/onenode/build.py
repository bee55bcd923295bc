"""Builds the programs of a Kubernetes node from their Go modules, once, into a cache outside the checkout."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.onenode.locks import exclusive

KUBERNETES = "v1.35.4"

_HERE = Path(__file__).parent
_STAMP = "k8s.io/component-base/version"


class ToolMissing(RuntimeError):
    """A program that the cluster needs cannot be had on this machine."""


def cache_folder() -> Path:
    """Where built programs and images are kept: `$FINETUNE_CACHE`, or `finetune` in the user's cache."""
    named = os.environ.get("FINETUNE_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(named) if named else Path(home) / "finetune"


def installed(program: str, version: str, install: Callable[[Path], None]) -> Path:
    """The folder of a program in the cache; `install` fills it, once, one process at a time."""
    folder = cache_folder() / f"{program}-{version}"
    with exclusive(cache_folder() / f"{program}.lock"):
        if not (folder / "installed").exists():
            install(folder)
            (folder / "installed").touch()
    return folder


@dataclass(frozen=True)
class Module:
    """A Go module in this package and the programs built from it (program → package)."""

    folder: Path
    programs: dict[str, str]
    ldflags: str = "-s -w"

    @property
    def target(self) -> Path:
        """The folder of the built programs; its name changes with whatever they are built from."""
        digest = hashlib.sha256(self.ldflags.encode())
        for path in sorted(self.folder.iterdir()):
            if path.name in ("go.mod", "go.sum") or path.suffix == ".go":
                digest.update(path.read_bytes())
        return cache_folder() / "bin" / f"{self.folder.name}-{digest.hexdigest()[:12]}"


MODULES = {
    "kubernetes": Module(
        _HERE / "go" / "kubernetes",
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
                "kubectl",
            )
        },
        # Unstamped, clients would see v0.0.0-master.
        f"-s -w -X {_STAMP}.gitVersion={KUBERNETES} -X {_STAMP}.gitMajor=1 -X {_STAMP}.gitMinor=35"
        f" -X {_STAMP}.gitTreeState=clean",
    ),
    "etcd": Module(_HERE / "go" / "etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    "coredns": Module(_HERE / "go" / "coredns", {"coredns": "github.com/coredns/coredns"}),
    "helm": Module(_HERE / "go" / "helm", {"helm": "helm.sh/helm/v4/cmd/helm"}),
    "kuberay": Module(
        _HERE / "go" / "kuberay", {"ray-operator": "github.com/ray-project/kuberay/ray-operator"}
    ),
    "pause": Module(_HERE / "go" / "pause", {"pause": "."}),
    "celcost": Module(_HERE.parent / "celcost", {"celcost": "."}),
    "kstatus": Module(_HERE.parent / "kstatus", {"kstatus": "."}),
    "versitygw": Module(
        _HERE.parent / "stores" / "versitygw",
        {"versitygw": "github.com/versity/versitygw/cmd/versitygw"},
    ),
    "fakegcs": Module(
        _HERE.parent / "stores" / "fakegcs",
        {"fake-gcs-server": "github.com/fsouza/fake-gcs-server"},
    ),
}

_MODULE_OF = {program: module for module in MODULES.values() for program in module.programs}


def program(name: str) -> Path:
    """The path of program `name`, building its module first if it is not in the cache.

    Raises ToolMissing if there is no Go compiler, CalledProcessError if the build fails.
    """
    module = _MODULE_OF[name]
    path = module.target / name
    if not path.exists():
        with exclusive(cache_folder() / "build.lock"):
            _build(module)
    return path


def source(name: str, package: str) -> Path:
    """The folder of the Go module `package` that module `name` is built from."""
    found = subprocess.run(
        [_go(), "list", "-m", "-f", "{{.Dir}}", package],
        cwd=MODULES[name].folder,
        check=True,
        text=True,
        capture_output=True,
    )
    return Path(found.stdout.strip())


def build_all() -> None:
    """Build whatever is not in the cache."""
    for name in _MODULE_OF:
        program(name)


def _go() -> str:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise ToolMissing(
            "Go 1.26 or newer must be installed to build Kubernetes (no `go` on PATH)"
        )
    return go


def _build(module: Module) -> None:
    go = _go()
    module.target.mkdir(parents=True, exist_ok=True)
    for name, package in module.programs.items():
        path = module.target / name
        if path.exists():
            continue
        _say(f"building {name} (once; cached in {module.target})")
        started = time.monotonic()
        partial = path.with_suffix(".partial")
        command = [
            go,
            "build",
            "-trimpath",
            f"-ldflags={module.ldflags}",
            "-o",
            str(partial),
            package,
        ]
        env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
        subprocess.run(command, cwd=module.folder, env=env, check=True)
        partial.rename(path)
        _say(f"built {name} in {time.monotonic() - started:.0f} s")


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    build_all()
