//! Whom programs in the guest trust.

use std::thread;

use crate::{Command, Error, Guest, ProcessEvent};

/// Where Debian, Alpine, Arch and most programs look.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Variables by which programs with roots of their own are told to look elsewhere: OpenSSL and Go, Python's requests
/// and pip, Node.js, curl, git.
const VARIABLES: &[&str] = &[
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
];

/// Lets the command's programs trust what [`Guest::trust`] added, unless its environment says otherwise.
pub fn trusting(command: &mut Command) {
    for variable in VARIABLES {
        let name = variable.as_bytes();
        if !command.env.iter().any(|(own, _)| own == name) {
            command.env.push((name.to_vec(), BUNDLE.as_bytes().to_vec()));
        }
    }
}

pub(crate) fn add(guest: &Guest, pem: &str) -> Result<(), Error> {
    let script = format!("mkdir -p \"$(dirname {BUNDLE})\" && cat >>{BUNDLE}");
    let mut command = Command::new(["/bin/sh", "-c", &script]);
    command.stdin = true;
    let mut process = guest.exec(&command)?;
    // Beside the reading below, which makes room for more.
    let (input, pem) = (process.input(), pem.to_owned());
    let write = move || {
        input.write_stdin(pem.as_bytes());
        input.close_stdin();
    };
    let builder = thread::Builder::new().name("trust".to_owned()).stack_size(128 << 10);
    builder.spawn(write).map_err(Error::host("a thread"))?;
    let mut why = String::new();
    loop {
        match process.next_event()? {
            ProcessEvent::Stderr(bytes) => why.push_str(&String::from_utf8_lossy(bytes)),
            ProcessEvent::Exited(status) if status.shell_code() == 0 => return Ok(()),
            ProcessEvent::Exited(_) => {
                let what = format!("adding certificates to {BUNDLE}");
                return Err(Error::Setup { what, why: why.trim().to_owned() });
            }
            _ => {}
        }
    }
}
