//! The portable crates' tests, built and linked for targets that this machine is not: Wine runs those for Windows,
//! QEMU's user mode those for arm64.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::build;
use super::libtest::Report;
use super::runner::{self, Place};
use super::summary::Row;
use crate::cargo;
use crate::check::cross::{crates, product};
use crate::failure::{Failure, succeed};
use crate::progress::say;
use crate::target::missing;

/// Debian's, which are not on the path.
const WINE: &str = "/usr/lib/wine/wine64";
/// Waits until the server of the program before has gone, which the next one would still find while it leaves.
const WINE_REST: &[&str] = &["/usr/lib/wine/wineserver64", "--wait"];
const QEMU: &str = "/usr/bin/qemu-aarch64-static";
const MINGW: &str = "x86_64-w64-mingw32-gcc";

/// What Wine has not: tests.
const NOT_IN_WINE: &[(&str, &str)] = &[
    (
        "a_port_where_nobody_is_is_said_so_and_may_come_to_life",
        "its sockets do not tell of datagrams that were refused",
    ),
    ("a_path_has_one_listener", "it lets several serve a pipe of one name"),
    ("a_copy_of_a_disk_over_a_base_has_all_of_both", "it does not tell of holes"),
    ("discarded_and_zeroed_ranges_read_as_zero_and_cost_no_space", "it makes no holes"),
    ("a_snapshot_has_the_bytes_that_it_had", WHOLE_READ),
    ("what_was_written_is_read", WHOLE_READ),
    ("other_versions_are_refused_by_name", WHOLE_READ),
    ("what_is_no_whole_snapshot_is_refused", WHOLE_READ),
    ("a_changed_byte_is_found_wherever_it_is", WHOLE_READ),
    ("a_copy_is_as_good_with_its_holes_filled", WHOLE_READ),
    ("a_snapshot_that_fails_leaves_the_old_one", WHOLE_READ),
    ("a_huge_hole_costs_nothing", "it does not tell of holes, and would read 512 GiB of them"),
    ("sparse_files_stay_sparse_and_are_verified_by_their_data", WHOLE_READ),
    // Of Wine: what it has not of Windows.
    ("a_file_that_is_open_outlives_its_name", OPEN_KEEPS),
    ("directories_are_made_and_removed", OPEN_KEEPS),
    ("the_host_is_seen_at_every_open", OPEN_KEEPS),
    ("every_change_is_written_down_before_it_is_made_and_comes_back", OPEN_KEEPS),
    ("what_is_written_after_removal_is_no_part_of_what_was_removed", OPEN_KEEPS),
    ("every_moment_comes_back_exactly", OPEN_KEEPS),
    ("a_killed_server_loses_nothing", OPEN_KEEPS),
    ("guest_and_host_write_in_turns", OPEN_KEEPS),
    ("links_hard_and_symbolic", NO_LINKS),
    ("links_lead_nowhere", NO_LINKS),
    ("the_guest_sees_its_names_and_windows_would_take_those_on_the_host", NO_LINKS),
    ("holes_are_punched_found_and_copied", "it neither makes holes nor takes room ahead"),
    (
        "a_directory_that_the_host_moves_out_leads_no_further",
        "it finds ids beneath the share alone",
    ),
    ("a_journal_on_another_file_system_copies", "it has no second volume"),
    ("finding_costs_next_to_nothing", "a look at a file is a dozen requests of its server's"),
    ("queues_in_parallel_agree", SLOW),
    ("garbage_does_no_harm", SLOW),
    ("buffers_of_any_shape_and_overlap_do_no_harm", SLOW),
    ("a_request_that_changes_while_it_is_read_does_no_harm", SLOW),
    // Of Windows: what no file system there has.
    ("modes_survive_whatever_the_umask", NO_MODES),
    ("set_id_bits_cross_in_neither_direction", NO_MODES),
    ("what_is_kept_is_for_its_owner_alone", NO_MODES),
    ("fifos_and_sockets_are_made_and_devices_are_not", "Windows has neither as files"),
    ("user_attributes_pass_and_no_others", "a share on Windows has no extended attributes"),
    ("a_file_without_a_name_can_get_one", "Windows has no such files"),
    ("names_move_replace_and_exchange", NO_EXCHANGE),
    ("a_race_of_renames_leads_nowhere", NO_EXCHANGE),
    ("readers_see_the_old_artifact_or_the_new_one", NO_EXCHANGE),
    ("names_are_bytes", NAMES_ARE_TEXT),
    ("names_that_are_paths_are_refused_in_every_operation", NAMES_ARE_TEXT),
    ("who_is_sent_back_opens_whatever_comes_in_between", "Windows opens nothing without a name"),
    ("what_the_host_does_not_have_is_an_error_and_no_zeroes", "no file there pretends to a length"),
];

const OPEN_KEEPS: &str = "a file that is open keeps its name there until it is closed";
const NO_LINKS: &str = "it makes no symbolic links";
const SLOW: &str = "takes minutes there: a request is a dozen of its server's";
const NO_MODES: &str = "Windows has no permissions like Unix's";
const NO_EXCHANGE: &str = "Windows exchanges no names";
const NAMES_ARE_TEXT: &str = "Windows' names are text, and what it takes for a path is spelt";

const WHOLE_READ: &str = "it does not tell of holes, and would read 16 GiB of them";

/// What QEMU's user mode has not: packages that nothing of them would run without.
const NO_PACKAGE: &[(&str, &str)] = &[
    ("cabana-hv-kvm", "there is no KVM"),
    ("cabana-fs", "it has no openat2"),
    ("cabana-journal", "it has no openat2"),
    ("cabana-lab", "it starts this machine's QEMU"),
    ("cabana-test-hv", "there is no KVM; the Arm lab runs it"),
];

/// What QEMU's user mode has not: tests.
const NO_TEST: &[(&str, &str)] = &[
    ("a_copy_has_all_that_the_original_has", "it has no openat2"),
    ("links_fifos_and_folders_are_copied_as_what_they_are", "it has no openat2"),
    ("no_link_leads_out_and_no_name_is_overwritten", "it has no openat2"),
    ("the_kernel_takes_the_program_and_every_jump_is_short", "it has no seccomp"),
    ("what_is_lent_arrives_whole_and_comes_back", "it drops what comes of error queues"),
    (
        "pages_that_were_touched_are_told_from_their_neighbours_and_from_those_that_were_written_to",
        "it does not hand MADV_DONTDUMP on",
    ),
];

/// What runs programs of another system or processor.
pub(super) struct Interpreter {
    /// For people.
    pub name: &'static str,
    pub program: &'static Path,
    pub environment: Vec<(&'static str, OsString)>,
    /// What is run before each program, if anything.
    pub before: &'static [&'static str],
    /// Tests that it cannot run, each with the reason.
    pub unable: &'static [(&'static str, &'static str)],
}

/// Runs both; what cannot be had skips its own, loudly.
pub(super) fn run() -> Result<Vec<Row>, Failure> {
    Ok(vec![windows()?, arm64()?])
}

fn windows() -> Result<Row, Failure> {
    let (name, target) = ("cross (Wine)", "x86_64-pc-windows-gnu");
    if let Some(why) = lacks(target, &[WINE, MINGW])? {
        return Ok(Row::skipped(name, &why));
    }
    let prefix = cargo::target_folder().join("tools/wine/prefix");
    random_bytes(&prefix)?;
    let interpreter = Interpreter {
        name,
        program: Path::new(WINE),
        environment: vec![("WINEPREFIX", prefix.into()), ("WINEDEBUG", "-all".into())],
        before: WINE_REST,
        unable: NOT_IN_WINE,
    };
    let packages: Vec<_> = crates(target).chain(product(target)).collect();
    test(interpreter, target, &packages, &[])
}

fn arm64() -> Result<Row, Failure> {
    let (name, target) = ("cross (arm64)", "aarch64-unknown-linux-musl");
    if let Some(why) = lacks(target, &[QEMU])? {
        return Ok(Row::skipped(name, &why));
    }
    let interpreter = Interpreter {
        name,
        program: Path::new(QEMU),
        environment: Vec::new(),
        before: &[],
        unable: NO_TEST,
    };
    let packages = crates(target).filter(|package| {
        let unable = NO_PACKAGE.iter().find(|(unable, _)| unable == package);
        if let Some((package, why)) = unable {
            say(&format!("{name}: without {package}: {why}"));
        }
        unable.is_none()
    });
    // Tests in folders of their own start processes and have deadlines of a processor.
    test(interpreter, target, &packages.collect::<Vec<_>>(), &["--lib"])
}

fn test(
    interpreter: Interpreter,
    target: &str,
    packages: &[&str],
    which: &[&str],
) -> Result<Row, Failure> {
    let start = Instant::now();
    let name = interpreter.name;
    say(&format!("{name}: building the tests of {} crates", packages.len()));
    let mut words = vec!["--target", target];
    words.extend(which);
    words.extend(packages.iter().flat_map(|package| ["--package", package]));
    let mut report = Report::default();
    for (test, why) in interpreter.unable {
        report.skipped += 1;
        report.reasons.push(format!("{name}: {test}: {why}"));
    }
    let place = Place::Through(interpreter);
    for binary in build::of(&words)? {
        report.add(runner::run(&binary, &place, false)?.0);
    }
    Ok(Row { name, report, seconds: start.elapsed().as_secs_f64() })
}

/// What is missing of these programs and the target's library, if anything.
fn lacks(target: &str, programs: &[&str]) -> Result<Option<String>, Failure> {
    for program in programs {
        if Command::new(program).arg("--version").output().is_err() {
            return Ok(Some(format!("there is no {program}; `cargo xtask setup` installs it")));
        }
    }
    missing(target)
}

/// Builds the library of which Wine has none, where programs without an environment find it, too.
fn random_bytes(prefix: &Path) -> Result<(), Failure> {
    let system = prefix.join("drive_c/windows/system32");
    fs::create_dir_all(&system).map_err(Failure::file(&system))?;
    let source = prefix.with_file_name("bcryptprimitives.c");
    fs::write(&source, include_bytes!("bcryptprimitives.c")).map_err(Failure::file(&source))?;
    let mut compiler = Command::new(MINGW);
    compiler.args(["-shared", "-o"]).arg(system.join("bcryptprimitives.dll")).arg(source);
    succeed(compiler.arg("-ladvapi32"))
}
