//! The programs that compile the kernel: are they there, and which ones are they?

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::Error;

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

/// The header of objtool's library, and its Debian package.
const HEADER: (&str, &str) = ("gelf.h", "libelf-dev");

/// Checks that everything is installed.
pub(crate) fn check() -> Result<(), Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut missing = missing_programs(&path);
    let has_compiler = !missing.iter().any(|(program, _)| *program == "gcc");
    if has_compiler && !has_header() {
        missing.push(HEADER);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let (programs, mut packages): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    packages.dedup();
    Err(Error::ToolsMissing { programs, packages })
}

/// The compiler's and the linker's own words for their versions.
pub(crate) fn identity() -> String {
    format!("{}; {}", version("gcc"), version("ld"))
}

fn missing_programs(path: &OsStr) -> Vec<(&'static str, &'static str)> {
    let folders: Vec<_> = std::env::split_paths(path).collect();
    let is_there = |program: &str| folders.iter().any(|folder| folder.join(program).is_file());
    PROGRAMS.into_iter().filter(|(program, _)| !is_there(program)).collect()
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
        let missing = missing_programs(folder.path().as_os_str());
        assert_eq!(missing, [("strip", "binutils"), ("bc", "bc")]);
        let (programs, packages) = missing.into_iter().unzip();
        let text = Error::ToolsMissing { programs, packages }.to_string();
        assert_eq!(
            text,
            "the kernel cannot be built without strip, bc; install with: apt-get install binutils bc"
        );
    }

    #[test]
    fn nothing_is_found_on_an_empty_path() {
        assert_eq!(missing_programs(OsStr::new("")).len(), PROGRAMS.len());
    }

    #[test]
    fn a_program_that_does_not_run_has_no_version() {
        assert_eq!(version("/nonexistent/gcc"), "");
    }
}
