//! What cargo starts on a Mac is signed first.

#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

#[test]
fn a_program_is_signed_with_the_entitlement_and_then_run_with_its_arguments() {
    let folder = env::temp_dir().join(format!("cabana-signing-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    // Stands for Apple's own, which only a Mac has.
    let codesign = folder.join("codesign");
    fs::write(&codesign, "#!/bin/sh\necho signed: \"$@\"\n").unwrap();
    fs::set_permissions(&codesign, fs::Permissions::from_mode(0o755)).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("run-signed");
    let path = format!("{}:{}", folder.display(), env::var("PATH").unwrap());
    let run = Command::new(&script).args(["/bin/echo", "ran", "it"]).env("PATH", path).output();
    fs::remove_dir_all(&folder).unwrap();
    let output = String::from_utf8(run.unwrap().stdout).unwrap();
    let [signed, ran] = output.lines().collect::<Vec<_>>()[..] else { panic!("{output}") };
    assert!(signed.starts_with("signed: --force --sign - --entitlements "), "{signed}");
    assert!(signed.ends_with(" /bin/echo"), "{signed}");
    assert_eq!(ran, "ran it");
    let entitlements = script.with_file_name("hypervisor.entitlements");
    let entitlements = fs::read_to_string(entitlements).unwrap();
    assert!(entitlements.contains("<key>com.apple.security.hypervisor</key>"));
}
