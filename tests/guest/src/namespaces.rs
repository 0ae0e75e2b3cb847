//! A network and a mount namespace that a test makes for itself, with addresses that look public.

use std::process::Command;

/// Looks public, and is nobody's: in the namespace it is ours.
pub const MIRROR: &str = "93.184.216.34";
/// Somebody else's.
pub const EVIL: &str = "198.51.100.66";
/// Where clouds keep the secrets of their machines.
pub const METADATA: &str = "169.254.169.254";
/// The host's own network.
pub const PRIVATE: &str = "10.9.9.9";
/// Set in the process that runs in the namespaces.
const INSIDE: &str = "CABANA_TEST_NAMESPACE";

/// Runs the rest of a test in namespaces of its own, in a process of its own: whether this is it.
pub fn in_namespaces(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        for address in [MIRROR, EVIL, METADATA, PRIVATE] {
            run("ip", &["addr", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        run("ip", &["-6", "addr", "add", "2001:4860::66/128", "dev", "lo", "nodad"]);
        return true;
    }
    let words = ["--net", "--mount"];
    let possible = Command::new("unshare").args(words).arg("true").status();
    if !possible.is_ok_and(|status| status.success()) {
        println!("skipped: only root makes network and mount namespaces");
        return false;
    }
    let mut command = Command::new("unshare");
    command.args(words).arg(std::env::current_exe().unwrap()).args([
        test,
        "--exact",
        "--nocapture",
        "--include-ignored",
    ]);
    assert!(
        command.env(INSIDE, "1").status().unwrap().success(),
        "{test} failed in its namespaces"
    );
    false
}

/// Runs a program of the host's, which has to succeed.
pub fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {output:?}");
}
