//! What pjdfstest says of a file system, beside what it may say of a share.

use std::collections::BTreeSet;

/// Names of the cases that may fail, and must.
const EXCEPTIONS: &str = include_str!("../pjdfstest/exceptions.txt");
/// Fewer cases than this are not the suite.
const CASES: usize = 350;

/// Panics unless the output of `pjdfstest` is that of a run in which just the exceptions failed.
#[allow(unreachable_pub)]
pub fn check(output: &str) {
    let results = |word: &'static str| {
        let lines = output.lines().filter_map(move |line| line.strip_suffix(word));
        lines.map(str::trim).filter(|name| name.contains("::")).collect::<BTreeSet<_>>()
    };
    let (passed, failed) = (results("ok"), results("FAILED"));
    println!("pjdfstest: {} cases passed, {} failed", passed.len(), failed.len());
    let wrong: Vec<_> = failed.iter().filter(|name| !is_exception(name)).collect();
    let said: String = wrong.iter().map(|name| said(output, name)).collect();
    assert!(wrong.is_empty(), "these fail and should not: {wrong:?}\n{said}");
    let better: Vec<_> = passed.iter().filter(|name| is_exception(name)).collect();
    assert!(better.is_empty(), "these pass now; take them off the exceptions: {better:?}");
    assert!(passed.len() + failed.len() > CASES, "too few cases: {output}");
}

/// What the suite says of a case: the line with its result, and those that are indented below.
fn said(output: &str, name: &str) -> String {
    let of_case = |line: &&str| line.split_whitespace().next() == Some(name);
    let mut lines = output.lines().skip_while(|line| !of_case(line));
    let first = lines.next().into_iter();
    let said = first.chain(lines.take_while(|line| line.starts_with([' ', '\t'])));
    said.flat_map(|line| [line, "\n"]).collect()
}

fn is_exception(name: &str) -> bool {
    let exceptions = EXCEPTIONS.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    exceptions.into_iter().any(|exception| match exception.strip_prefix('*') {
        Some(ending) => name.ends_with(ending),
        None => name == exception,
    })
}
