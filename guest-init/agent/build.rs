//! Leaves the unwind tables out of the released agent, a tenth of what every boot unpacks: it aborts where it panics, and
//! prints no stack.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=no_unwind.ld");
    let is = |name, value| env::var(name).is_ok_and(|found| found == value);
    // For arm64, where no start is measured, another linker is called in another way.
    let x86 = is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_ENV", "musl");
    if x86 && is("PROFILE", "release") {
        let folder = env::var("CARGO_MANIFEST_DIR").expect("Cargo names the crate's folder");
        println!(
            "cargo::rustc-link-arg-bin=cabana-agent=-Wl,--no-eh-frame-hdr,-T,{folder}/no_unwind.ld"
        );
    }
}
