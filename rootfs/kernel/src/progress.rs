//! How far the build is: `make` says what it does line by line, and the number of lines is known
//! from earlier builds.

use std::fmt;

/// What the build is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The source tarball is being unpacked.
    Unpack,
    /// The fragments are being merged and the result verified.
    Configure,
    /// `make` compiles and links.
    Compile,
    /// The results are being stripped, checked and put in place.
    Install,
}

/// A report from a running build.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// The whole build's progress, from 0 to 1, never falling.
    pub fraction: f64,
    /// What is being done now, for instance the file that is compiled; may be empty.
    pub detail: String,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Unpack => "unpacking the kernel's source",
            Stage::Configure => "configuring the kernel",
            Stage::Compile => "compiling the kernel",
            Stage::Install => "installing the kernel",
        };
        write!(f, "{stage} ({:.0} %)", self.fraction * 100.0)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

/// Where each stage begins on the whole build's scale. Unpacking takes some 10 seconds of 250.
pub(crate) fn stage_start(stage: Stage) -> f64 {
    match stage {
        Stage::Unpack => 0.0,
        Stage::Configure => 0.05,
        Stage::Compile => 0.07,
        Stage::Install => 0.99,
    }
}

/// Turns the lines of `make` into progress.
#[derive(Debug)]
pub(crate) struct Estimate {
    expected: usize,
    done: usize,
}

impl Estimate {
    pub(crate) fn new(expected: usize) -> Self {
        Self { expected: expected.max(1), done: 0 }
    }

    /// Steps seen so far.
    pub(crate) fn steps(&self) -> usize {
        self.done
    }

    /// Takes a line of output; a line that is a step of the build gives a report.
    pub(crate) fn line(&mut self, line: &str) -> Option<Progress> {
        let detail = step(line)?;
        self.done += 1;
        let part = (self.done as f64 / self.expected as f64).min(1.0);
        let (start, end) = (stage_start(Stage::Compile), stage_start(Stage::Install));
        Some(Progress {
            stage: Stage::Compile,
            fraction: start + part * (end - start),
            detail: detail.to_owned(),
        })
    }
}

/// The object of a line like `  CC      mm/slub.o`; `None` for warnings and remarks.
fn step(line: &str) -> Option<&str> {
    let (verb, object) = line.strip_prefix("  ")?.split_once(' ')?;
    let is_verb = verb.len() > 1
        && verb.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    let object = object.trim();
    (is_verb && !object.is_empty()).then_some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_from_other_lines() {
        assert_eq!(step("  CC      mm/slub.o"), Some("mm/slub.o"));
        assert!(step("  VDSO2C  arch/x86/entry/vdso/vdso-image-64.c").is_some());
        assert_eq!(step("  AR      built-in.a"), Some("built-in.a"));
        for other in [
            "",
            "  ",
            "  CC",
            "CC mm/slub.o",
            "mm/slub.c:12: warning: x",
            "  note: y",
            "make[1]: Entering directory",
        ] {
            assert_eq!(step(other), None, "{other:?}");
        }
    }

    #[test]
    fn progress_rises_through_the_stages_and_never_passes_the_end() {
        let mut estimate = Estimate::new(4);
        let mut last = stage_start(Stage::Compile);
        for number in 0..10 {
            let report = estimate.line(&format!("  CC      file{number}.o")).unwrap();
            assert!(report.fraction >= last, "{} after {last}", report.fraction);
            assert!(report.fraction <= stage_start(Stage::Install));
            last = report.fraction;
        }
        assert_eq!(estimate.steps(), 10);
        assert!((last - stage_start(Stage::Install)).abs() < 1e-9);
    }

    #[test]
    fn half_of_the_steps_is_half_of_the_compilation() {
        let mut estimate = Estimate::new(100);
        let half = (0..50).filter_map(|_| estimate.line("  CC      x.o")).last().unwrap();
        let middle = f64::midpoint(stage_start(Stage::Compile), stage_start(Stage::Install));
        assert!((half.fraction - middle).abs() < 1e-9);
    }

    #[test]
    fn a_remark_is_no_progress() {
        let mut estimate = Estimate::new(10);
        assert_eq!(estimate.line("a.c:1: warning: unused"), None);
        assert_eq!(estimate.steps(), 0);
    }

    #[test]
    fn a_report_reads_as_a_sentence() {
        let report =
            Progress { stage: Stage::Compile, fraction: 0.421, detail: "mm/slub.o".to_owned() };
        assert_eq!(report.to_string(), "compiling the kernel (42 %): mm/slub.o");
    }
}
