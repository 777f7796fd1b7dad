#!/usr/bin/env bash
# What building needs besides Rust: a C++ compiler for the fuzz targets; clang for the agent's probes,
# and what builds its libelf; libvirt's library for `unmoor migrate`, which `make build` does without.
set -euo pipefail
cd "$(dirname "$0")/.."
. lab/common.sh
check_system
need g++ libc6-dev make clang pkg-config libvirt-dev
need autoconf automake autopoint bison flex gawk
