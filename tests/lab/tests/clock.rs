//! The instruction clock: in the lab's machine one instruction takes one nanosecond.

// The loop whose instructions are counted is written in assembler, because only so their number is
// known.
#![allow(unsafe_code)]

use std::arch::asm;
use std::time::Instant;

use cabana_lab::{Command, Error, Lab, Options, Parts};

/// How often the loop of two instructions runs.
const ROUNDS: u64 = 50_000_000;

/// Set where this test calls itself inside the lab.
const INSIDE: &str = "CABANA_LAB_CLOCK_INSIDE";

/// Takes the time of the loop by the clock of the machine that this runs on.
fn time_loop() -> u128 {
    let start = Instant::now();
    // SAFETY: counts a register down and touches nothing else.
    unsafe { asm!("2: dec {0}", "jnz 2b", inout(reg) ROUNDS => _, options(nomem, nostack)) };
    start.elapsed().as_nanos()
}

/// The time that the loop takes by the machine's monotonic clock.
fn nanoseconds(lab: &Lab) -> u64 {
    let own = std::env::current_exe().unwrap();
    let command = Command::new([own.as_os_str()])
        .args(["--exact", "an_instruction_takes_a_nanosecond", "--nocapture"])
        .env(INSIDE, "1")
        .cwd("/");
    let output = lab.output(command).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, number) = text.split_once("nanoseconds=").unwrap_or_else(|| panic!("{output:?}"));
    number.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn an_instruction_takes_a_nanosecond() {
    if std::env::var_os(INSIDE).is_some() {
        println!("nanoseconds={}", time_loop());
        return;
    }
    let parts = match Parts::prepare(&mut |step| eprintln!("lab: {step}")) {
        Err(Error::Missing { what, advice }) => {
            println!("skipped: {what} is missing: {advice}");
            return;
        }
        parts => parts.unwrap(),
    };
    let own = std::env::current_exe().unwrap();
    let options = Options {
        instruction_clock: true,
        writable: vec![own.parent().unwrap().to_owned()],
        ..Options::default()
    };
    let lab = Lab::start(&parts, &options).unwrap();
    // The first run loads the program.
    nanoseconds(&lab);
    let times = [nanoseconds(&lab), nanoseconds(&lab), nanoseconds(&lab)];
    println!("{} instructions took {times:?} ns", 2 * ROUNDS);
    for time in times {
        let instructions = 2 * ROUNDS;
        // The kernel's timer ticks add a little.
        assert!((instructions..instructions + instructions / 20).contains(&time), "{times:?}");
    }
}
