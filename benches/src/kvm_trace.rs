//! What the kernel's tracepoints say of KVM: when a guest wrote to the exit port, and how often
//! guests exited and why. It is the same for every VMM, since none is asked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;
use crate::guests::EXIT_PORT;
use crate::report::Count;

/// Where tracefs may be.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Counts exits by reason, in the kernel.
const BY_REASON: &str = "hist:keys=isa,exit_reason";
/// Counts what reached user space.
const TO_USER: &str = "hist:keys=reason";

/// KVM's tracepoints, for one who may use them.
#[derive(Debug)]
pub struct KvmTrace {
    root: PathBuf,
}

/// Exits by kind.
#[derive(Clone, Debug, Default)]
pub struct Exits {
    /// As the processor names them.
    pub by_reason: Vec<Count>,
    /// Those that reached the VMM, as KVM names them.
    pub to_user: Vec<Count>,
}

impl KvmTrace {
    /// The tracepoints, with the clock that programs read; `None` where they are not to be had.
    pub fn open() -> Option<Self> {
        let root =
            TRACEFS.iter().map(PathBuf::from).find(|root| root.join("events/kvm").exists())?;
        let trace = Self { root };
        trace.write("trace_clock", "mono").ok()?;
        Some(trace)
    }

    /// Runs `body` and returns when, meanwhile, a guest last wrote to the exit port.
    pub fn exit_port<T>(
        &self,
        body: impl FnOnce() -> Result<T, Error>,
    ) -> Result<(T, Option<Duration>), Error> {
        self.write("trace", "")?;
        self.write("events/kvm/kvm_pio/filter", &format!("port == {EXIT_PORT}"))?;
        self.write("events/kvm/kvm_pio/enable", "1")?;
        let result = body();
        self.write("events/kvm/kvm_pio/enable", "0")?;
        self.write("events/kvm/kvm_pio/filter", "0")?;
        let text = self.read("trace")?;
        Ok((result?, text.lines().rev().find_map(moment)))
    }

    /// Runs `body` and counts exits meanwhile, which makes each of them slower.
    pub fn exits<T>(&self, body: impl FnOnce() -> Result<T, Error>) -> Result<(T, Exits), Error> {
        let (exit, user) = ("events/kvm/kvm_exit", "events/kvm/kvm_userspace_exit");
        self.write(&format!("{exit}/trigger"), BY_REASON)?;
        self.write(&format!("{user}/trigger"), TO_USER)?;
        let result = body();
        let (by_reason, to_user) =
            (self.read(&format!("{exit}/hist"))?, self.read(&format!("{user}/hist"))?);
        self.write(&format!("{exit}/trigger"), &format!("!{BY_REASON}"))?;
        self.write(&format!("{user}/trigger"), &format!("!{TO_USER}"))?;
        let exits = Exits {
            by_reason: counts(&by_reason, |key| Some(reason(key("isa")?, key("exit_reason")?))),
            to_user: counts(&to_user, |key| Some(user_reason(key("reason")?))),
        };
        Ok((result?, exits))
    }

    fn write(&self, file: &str, text: &str) -> Result<(), Error> {
        let path = self.root.join(file);
        write_whole(&path, text).map_err(Error::file(&path))
    }

    fn read(&self, file: &str) -> Result<String, Error> {
        let path = self.root.join(file);
        fs::read_to_string(&path).map_err(Error::file(&path))
    }
}

/// Control files take a line in one write; opening for truncation clears the trace.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, format!("{text}\n"))
}

/// The time of a line such as `vcpu0-97 [000] ..... 12.345678: kvm_pio: pio_write at 0xf4 …`.
fn moment(line: &str) -> Option<Duration> {
    let (head, _) = line.split_once(": kvm_pio: pio_write")?;
    let (seconds, micros) = head.rsplit_once(' ')?.1.split_once('.')?;
    Some(Duration::new(seconds.parse().ok()?, micros.parse::<u32>().ok()? * 1000))
}

/// The lines `{ key: 1, other: 2 } hitcount: 3` of a histogram, most frequent first.
fn counts(text: &str, name: impl Fn(&dyn Fn(&str) -> Option<u32>) -> Option<String>) -> Vec<Count> {
    let count = |line: &str| {
        let (keys, hits) = line.trim().strip_prefix('{')?.split_once("} hitcount:")?;
        let key = |wanted: &str| {
            let mut pairs = keys.split(',').filter_map(|pair| pair.split_once(':'));
            pairs.find(|(key, _)| key.trim() == wanted)?.1.trim().parse().ok()
        };
        Some(Count { kind: name(&key)?, count: hits.trim().parse().ok()? })
    };
    let mut counts: Vec<Count> = Vec::new();
    for line in text.lines().filter_map(count) {
        match counts.iter_mut().find(|known| known.kind == line.kind) {
            Some(known) => known.count += line.count,
            None => counts.push(line),
        }
    }
    counts.sort_by_key(|count| std::cmp::Reverse(count.count));
    counts
}

/// An exit's name (AMD APM 2, appendix C; Intel SDM 3, appendix C).
fn reason(isa: u32, code: u32) -> String {
    const VMX: u32 = 1;
    if isa == VMX {
        return match code {
            1 => "host's interrupt",
            7 => "interrupt window",
            10 => "CPUID",
            12 => "HLT",
            28 => "control register",
            30 => "port",
            31 | 32 => "MSR",
            48 => "nested page fault",
            49 => "nested page misconfiguration",
            52 => "preemption timer",
            code => return format!("VMX {code}"),
        }
        .to_owned();
    }
    match code {
        0x00..=0x3f | 0x65 => "control or debug register",
        0x40..=0x5f => "exception",
        0x60 => "host's interrupt",
        0x64 => "interrupt window",
        0x72 => "CPUID",
        0x78 => "HLT",
        0x7b => "port",
        0x7c => "MSR",
        0x7f => "shutdown",
        0x8d => "XSETBV",
        0x400 => "nested page fault",
        code => return format!("SVM {code:#x}"),
    }
    .to_owned()
}

/// Why `KVM_RUN` returned (`linux/kvm.h`).
fn user_reason(code: u32) -> String {
    match code {
        2 => "port".to_owned(),
        5 => "HLT".to_owned(),
        6 => "MMIO".to_owned(),
        8 => "shutdown".to_owned(),
        10 => "signal".to_owned(),
        26 => "end of interrupt".to_owned(),
        code => format!("KVM_EXIT {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_write_to_the_port_has_its_time() {
        let line =
            " vcpu0-97  [000] ...1.  12.345678: kvm_pio: pio_write at 0xf4 size 1 count 1 val 0x0";
        assert_eq!(moment(line), Some(Duration::from_micros(12_345_678)));
        assert_eq!(moment("# tracer: nop"), None);
    }

    #[test]
    fn a_histogram_is_read_by_its_keys() {
        let text = "# event histogram\n\n\
            { isa:          2, exit_reason:         16 } hitcount:          4\n\
            { isa:          2, exit_reason:         20 } hitcount:          3\n\
            { isa:          2, exit_reason:       1024 } hitcount:       1500\n\n\
            Totals:\n    Hits: 1507\n";
        let counts = counts(text, |key| Some(reason(key("isa")?, key("exit_reason")?)));
        let pairs: Vec<_> = counts.iter().map(|c| (c.kind.as_str(), c.count)).collect();
        assert_eq!(pairs, [("nested page fault", 1500), ("control or debug register", 7)]);
    }
}
