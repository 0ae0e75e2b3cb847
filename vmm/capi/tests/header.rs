//! `include/cabana.h` is what cbindgen makes of the sources, and a C program that makes no machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

#[test]
fn the_header_is_that_of_the_sources() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = Vec::new();
    cbindgen::generate(folder).unwrap().write(&mut text);
    let path = folder.join("include/cabana.h");
    if env::var_os("UPDATE_HEADER").is_some() {
        return fs::write(path, text).unwrap();
    }
    let header = fs::read(&path).unwrap_or_default();
    assert!(text == header, "{} is old; cbindgen.toml says how to write it", path.display());
}

/// The folder in which cargo has put this package's shared library for its tests.
fn libraries() -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().to_owned()
}

#[test]
fn c_programs_link_and_hear_of_errors() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let program = out.path().join("errors");
    let libraries = libraries();
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-fsanitize=address,undefined"])
        .arg(folder.join("tests/errors.c"))
        .arg("-I")
        .arg(folder.join("include"))
        .arg("-L")
        .arg(&libraries)
        .arg(format!("-Wl,-rpath,{}", libraries.display()))
        .args(["-lcabana", "-o"])
        .arg(&program)
        .output();
    let compiled = match compiled {
        Ok(compiled) => compiled,
        Err(error) => return println!("skipped: no C compiler: {error}"),
    };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let ran = Command::new(&program).env("CABANA_HOME", out.path()).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
}
