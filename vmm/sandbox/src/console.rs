//! The end of what the guest's console said: where a dying kernel leaves its last words.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// More than a kernel's last words.
const KEPT: usize = 16 << 10;

/// Keeps the last bytes that were written to it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ConsoleTail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
}

impl ConsoleTail {
    /// Takes output of the guest.
    pub(crate) fn push(&self, output: &[u8]) {
        let mut bytes = self.lock();
        bytes.extend(&output[output.len().saturating_sub(KEPT)..]);
        let excess = bytes.len().saturating_sub(KEPT);
        bytes.drain(..excess);
    }

    /// What is kept, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.lock().make_contiguous()).into_owned()
    }

    /// The line that says why the guest ended: a panic's or the agent's, else the last one.
    pub fn last_words(&self) -> String {
        let text = self.text();
        let mut lines = text.lines().map(clean).filter(|line| !line.is_empty());
        let mut last = String::new();
        let told = lines.find(|line| {
            last.clone_from(line);
            line.contains("Kernel panic") || line.starts_with("cabana-agent:")
        });
        match told.unwrap_or(last) {
            words if words.is_empty() => "it said nothing on its console".to_owned(),
            words => words,
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without the kernel's time stamp and whatever a terminal would obey.
fn clean(line: &str) -> String {
    let line = line.trim();
    let line = match line.strip_prefix('[').and_then(|line| line.split_once(']')) {
        Some((time, rest)) if time.trim().parse::<f64>().is_ok() => rest.trim_start(),
        _ => line,
    };
    line.chars().filter(|character| !character.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_panic_is_found_among_the_last_lines() {
        let tail = ConsoleTail::default();
        tail.push(b"[    0.010000] Linux version 6.12\r\n");
        tail.push(b"[    0.123456] Kernel panic - not syncing: Attempted to kill init!\r\n");
        tail.push(b"[    0.123460] CPU: 0 PID: 1\r\n");
        assert_eq!(tail.last_words(), "Kernel panic - not syncing: Attempted to kill init!");
    }

    #[test]
    fn without_a_panic_the_last_line_counts() {
        let tail = ConsoleTail::default();
        assert_eq!(tail.last_words(), "it said nothing on its console");
        tail.push(b"one\n\x1b[31mtwo\n\n");
        assert_eq!(tail.last_words(), "[31mtwo");
    }

    #[test]
    fn only_the_end_is_kept() {
        let tail = ConsoleTail::default();
        tail.push(&vec![b'a'; 3 * KEPT]);
        tail.push(b"z");
        assert_eq!(tail.text().len(), KEPT);
        assert!(tail.text().ends_with("az"));
    }
}
