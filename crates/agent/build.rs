//! Compiles the probes, and the skeleton through which they are loaded.

use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from);
    let out = out.unwrap_or_default().join("tracker.skel.rs");
    SkeletonBuilder::new()
        .source("bpf/tracker.bpf.c")
        .clang_args(["-Wall", "-Werror", "-Ibpf"])
        .build_and_generate(&out)
        .unwrap_or_else(|error| panic!("compiling the probes: {error:?}"));
    println!("cargo::rerun-if-changed=bpf");
}
