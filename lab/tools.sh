#!/usr/bin/env bash
# What building needs besides Rust: a C++ compiler for the fuzz targets; clang, libelf and zlib for
# the agent's probes.
set -euo pipefail
cd "$(dirname "$0")/.."
. lab/common.sh
need g++ libc6-dev clang libelf-dev zlib1g-dev pkg-config
