//! Where programs of ours are.

use std::env::{self, consts::EXE_SUFFIX};
use std::path::PathBuf;

use super::process::library_path;

/// Finds a program of ours: the one that `variable` names, else the first of `names` beside this library, beside this
/// program or on `$PATH`.
pub fn find_program(variable: &str, names: &[&str]) -> Option<PathBuf> {
    if let Some(program) = env::var_os(variable) {
        return Some(program.into());
    }
    let own = [library_path(), env::current_exe().ok()].into_iter().flatten();
    let mut folders: Vec<_> = own.filter_map(|file| file.parent().map(PathBuf::from)).collect();
    folders.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    let named = |folder: &PathBuf, name: &str| folder.join(format!("{name}{EXE_SUFFIX}"));
    let mut candidates =
        folders.iter().flat_map(|folder| names.iter().map(move |name| named(folder, name)));
    candidates.find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_beside_this_one_and_on_the_path() {
        let own = env::current_exe().unwrap();
        let name = own.file_stem().unwrap().to_str().unwrap();
        let found = find_program("CABANA_NO_SUCH_VARIABLE", &["no-such-program", name]).unwrap();
        assert_eq!(found.file_name(), own.file_name());
        let usual = if cfg!(windows) { "cmd" } else { "sh" };
        assert!(find_program("CABANA_NO_SUCH_VARIABLE", &[usual]).is_some());
        assert_eq!(find_program("CABANA_NO_SUCH_VARIABLE", &["no-such-program"]), None);
    }
}
