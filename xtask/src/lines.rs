//! What a program says, line by line.

use std::io::{BufRead, BufReader, PipeReader};
use std::sync::mpsc::{self, Receiver};
use std::thread;

/// Sends every line of a pipe to a channel.
pub(crate) fn follow(pipe: PipeReader) -> Receiver<String> {
    let (send, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    lines
}
