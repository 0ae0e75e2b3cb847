//! Reads what a test binary prints with `--show-output`.

/// How a test says in its output that it did not test.
const SKIPPED: &str = "skipped: ";

/// What came of one binary's tests, or of several binaries'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Tests that tested and found nothing wrong.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that could not run here, or that run only when asked for.
    pub skipped: u64,
    /// Reasons of skipped tests, each with the tests' names.
    pub reasons: Vec<String>,
    /// What failed: names, or a sentence for a binary that came to no end.
    pub failures: Vec<String>,
}

impl Report {
    /// Adds another report's numbers and words to these.
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.reasons.extend(other.reasons);
        self.failures.extend(other.failures);
    }

    /// Reads a binary's whole output. `name` names the binary in the report.
    pub(super) fn read(name: &str, output: &str) -> Option<Self> {
        let mut report = Self::default();
        let (mut test, mut passed_section) = ("", false);
        let mut last_skipped = "";
        for line in output.lines() {
            if let Some(result) = line.strip_prefix("test result: ") {
                report.passed = count(result, "passed")?.saturating_sub(report.skipped);
                report.failed = count(result, "failed")?;
                report.skipped += count(result, "ignored")?;
                return Some(report);
            } else if line == "successes:" || line == "failures:" {
                passed_section = line == "successes:";
                test = "";
            } else if let Some(header) = section_header(line) {
                test = header;
                if !passed_section {
                    report.failures.push(format!("{name}: {test}"));
                }
            } else if let Some(reason) = line.strip_prefix(SKIPPED)
                && passed_section
                && !test.is_empty()
                && test != last_skipped
            {
                last_skipped = test;
                report.skipped += 1;
                report.reasons.push(format!("{name}: {test}: {reason}"));
            }
        }
        None
    }
}

/// The test's name in `---- NAME stdout ----`.
fn section_header(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// The number before a word in `ok. 5 passed; 0 failed; …`.
fn count(result: &str, word: &str) -> Option<u64> {
    let parts = result.split([';', '.']);
    let mut numbers = parts.filter_map(|part| part.trim().strip_suffix(word));
    numbers.next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "\nrunning 5 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... ignored\n\
        test d ... ok\ntest e ... ok\n\nsuccesses:\n\n---- d stdout ----\nskipped: no qemu\n\
        skipped: said twice\n\n---- e stdout ----\nhello\n\n\nsuccesses:\n    a\n    d\n    e\n\n\
        failures:\n\n---- b stdout ----\nskipped: not so\nthread 'b' panicked\n\n\nfailures:\n    b\n\n\
        test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in \
        0.00s\n";

    #[test]
    fn a_test_that_says_so_is_skipped_and_not_passed() {
        let report = Report::read("lab", MIXED).unwrap();
        assert_eq!((report.passed, report.failed, report.skipped), (2, 1, 2));
        assert_eq!(report.reasons, ["lab: d: no qemu"]);
        assert_eq!(report.failures, ["lab: b"]);
    }

    #[test]
    fn a_binary_without_tests_is_an_empty_report() {
        let output = "\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 \
                      measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(Report::read("x", output), Some(Report::default()));
    }

    #[test]
    fn a_binary_that_dies_leaves_no_report() {
        assert_eq!(Report::read("x", "running 2 tests\ntest a ... ok\n"), None);
    }

    #[test]
    fn reports_add_up() {
        let mut sum = Report::read("lab", MIXED).unwrap();
        sum.add(Report::read("lab", MIXED).unwrap());
        assert_eq!((sum.passed, sum.failed, sum.skipped), (4, 2, 4));
    }
}
