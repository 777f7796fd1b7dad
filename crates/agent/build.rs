//! Compiles the probes, and the skeleton through which they are loaded.

use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from);
    let out = out.unwrap_or_default().join("tracker.skel.rs");
    let mut args = vec!["-Wall", "-Werror", "-Ibpf"];
    if std::env::var_os("CARGO_FEATURE_FAULTS").is_some() {
        args.push("-DFAULTS");
    }
    SkeletonBuilder::new()
        .source("bpf/tracker.bpf.c")
        .clang_args(args)
        .build_and_generate(&out)
        .unwrap_or_else(|error| panic!("compiling the probes: {error:?}"));
    println!("cargo::rerun-if-changed=bpf");
}
