//! The programs that compile the kernel: are they there, and which ones are they?

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::{Architecture, Error};

/// Programs of the build, and the Debian package of each.
const PROGRAMS: [(&str, &str); 9] = [
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("strip", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
];

/// What it takes besides to build for a processor that is not the host's, but for the processor's name.
const CROSS: [(&str, &str); 3] = [("gcc", "gcc"), ("ld", "binutils"), ("objcopy", "binutils")];

/// The header of objtool's library, and its Debian package.
const HEADER: (&str, &str) = ("gelf.h", "libelf-dev");

/// Checks that everything is installed.
pub(crate) fn check(architecture: Architecture) -> Result<(), Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut missing = missing_programs(architecture, &path);
    let has_compiler = !missing.iter().any(|(program, _)| *program == "gcc");
    if has_compiler && !has_header() {
        missing.push((HEADER.0.to_owned(), HEADER.1.to_owned()));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let (programs, mut packages): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    packages.dedup();
    Err(Error::ToolsMissing { programs, packages })
}

/// The compiler's and the linker's own words for their versions.
pub(crate) fn identity(architecture: Architecture) -> String {
    let own = |program| version(&format!("{}{program}", architecture.prefix()));
    format!("{}; {}", own("gcc"), own("ld"))
}

/// The programs that are not there, each with its package.
fn missing_programs(architecture: Architecture, path: &OsStr) -> Vec<(String, String)> {
    let folders: Vec<_> = std::env::split_paths(path).collect();
    let is_there = |program: &str| folders.iter().any(|folder| folder.join(program).is_file());
    let own = PROGRAMS.map(|(program, package)| (program.to_owned(), package.to_owned()));
    let (prefix, name) = (architecture.prefix(), architecture.name().replace('_', "-"));
    let cross = CROSS.map(|(program, package)| {
        (format!("{prefix}{program}"), format!("{package}-{name}-linux-gnu"))
    });
    let cross = cross.into_iter().filter(|_| architecture.is_foreign());
    own.into_iter().chain(cross).filter(|(program, _)| !is_there(program)).collect()
}

fn has_header() -> bool {
    Command::new("gcc")
        .args(["-E", "-include", HEADER.0, "-x", "c", "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The first line of `program --version`; empty where it does not run (then the build says so).
fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").env("LC_ALL", "C").output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let folder = tempfile::tempdir().unwrap();
        for (program, _) in PROGRAMS {
            if program != "bc" && program != "strip" {
                std::fs::write(folder.path().join(program), "").unwrap();
            }
        }
        let missing = missing_programs(Architecture::HOST, folder.path().as_os_str());
        let pair = |program: &str, package: &str| (program.to_owned(), package.to_owned());
        assert_eq!(missing, [pair("strip", "binutils"), pair("bc", "bc")]);
        let (programs, packages) = missing.into_iter().unzip();
        let text = Error::ToolsMissing { programs, packages }.to_string();
        assert_eq!(
            text,
            "the kernel cannot be built without strip, bc; install with: apt-get install binutils bc"
        );
    }

    #[test]
    fn nothing_is_found_on_an_empty_path() {
        assert_eq!(missing_programs(Architecture::HOST, OsStr::new("")).len(), PROGRAMS.len());
    }

    #[test]
    fn another_processor_takes_a_compiler_of_its_own() {
        let foreign = if Architecture::HOST == Architecture::X86_64 {
            Architecture::Aarch64
        } else {
            Architecture::X86_64
        };
        let missing = missing_programs(foreign, OsStr::new(""));
        let (program, package) = &missing[PROGRAMS.len()];
        assert_eq!(program, &format!("{}gcc", foreign.prefix()));
        assert!(package.ends_with("-linux-gnu") && !package.contains('_'), "{package}");
    }

    #[test]
    fn a_program_that_does_not_run_has_no_version() {
        assert_eq!(version("/nonexistent/gcc"), "");
    }
}
