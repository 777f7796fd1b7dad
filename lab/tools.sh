#!/usr/bin/env bash
# What building needs besides Rust: a C++ compiler for the fuzz targets; clang, libelf and zlib for
# the agent's probes; libvirt's library for `unmoor migrate`, which `make build` does without.
set -euo pipefail
cd "$(dirname "$0")/.."
. lab/common.sh
need g++ libc6-dev clang libelf-dev zlib1g-dev pkg-config libvirt-dev
