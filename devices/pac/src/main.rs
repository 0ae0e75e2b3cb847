//! `cabana-pac`: runs the scripts that name proxies, for a parent at the other end of its standard input.
//!
//! The first process only waits for the second, which interprets, and starts it anew when it has ended before its
//! parent did. A script that brings the interpreter down by a defect of the interpreter's costs that question alone.

mod script;

use std::io;
use std::process::{Command, ExitCode};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use cabana_os::{AsHandle, Channel, FromHandle, OwnedHandle, confine, process};
use cabana_pac::link::{self, Ending, MAX_SCRIPT, Reply, Request};

use script::Script;

/// The argument of the second process.
const INTERPRET: &str = "interpret";
/// Between the end of an interpreter and the start of the next.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes of memory: eight times what a script may take, since its own limit is to be met first.
const MEMORY: u64 = 256 << 20;
/// Seconds of a processor for a request: twice what a script may take, and what has begun.
const SECONDS: u64 = 5;
/// A program was called by hand.
const NOT_CALLED_SO: u8 = 125;

fn main() -> ExitCode {
    process::close_inherited();
    let input = io::stdin().as_handle().try_clone_to_owned();
    let done = match std::env::args().nth(1).as_deref() {
        Some(INTERPRET) => input.and_then(|input| interpret(Channel::from_handle(input)?)),
        _ => input.and_then(|input| wait_and_start_again(&input)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cabana-pac: only cabana calls it ({error})");
            ExitCode::from(NOT_CALLED_SO)
        }
    }
}

/// The first process's life. It reads nothing of what passes to the second.
fn wait_and_start_again(input: &OwnedHandle) -> io::Result<()> {
    let channel = Channel::from_handle(input.try_clone()?)?;
    loop {
        let mut command = Command::new(process::own_program()?);
        let mut child = command.arg(INTERPRET).stdin(input.try_clone()?).spawn()?;
        process::end_together(&child)?;
        let ended = child.wait()?;
        let ending = match (ended.code(), process::signal_of(ended)) {
            // Its parent has had enough.
            (Some(0), _) => return Ok(()),
            (Some(status), _) => Ending::Status(status),
            (None, signal) => Ending::Signal(signal.unwrap_or(0)),
        };
        link::send(&channel, &Reply::Ended(ending))?;
        thread::sleep(PAUSE);
    }
}

/// The second process's life.
fn interpret(channel: Channel) -> io::Result<()> {
    script::learn_time_zone();
    if let Err(why) = confine::computation(MEMORY) {
        return link::send(&channel, &Reply::Unconfined(why.to_string()));
    }
    let channel = Rc::new(channel);
    let (mut pieces, mut collected) = (0, Vec::new());
    let mut script = None;
    while let Some(request) = link::receive(&channel)? {
        confine::limit_time(SECONDS)?;
        let (number, result) = match request {
            Request::Piece { number, bytes } => {
                if number != pieces {
                    (pieces, collected) = (number, Vec::new());
                }
                if collected.len() + bytes.len() > MAX_SCRIPT {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                collected.extend(bytes);
                continue;
            }
            Request::Load { number } => {
                let bytes =
                    if number == pieces { std::mem::take(&mut collected) } else { Vec::new() };
                // The old one's memory first.
                drop(script.take());
                let text = String::from_utf8(bytes).map_err(io::Error::other)?;
                let made = Script::new(&text, &channel);
                (number, made.map(|made| script = Some(made)).map(|()| String::new()))
            }
            Request::Find { number, url, host } => {
                let script = script.as_ref().ok_or_else(|| "it is not there".to_owned());
                (number, script.and_then(|script| script.find(&url, &host)))
            }
            // Nobody has asked.
            Request::Addresses(_) => return Err(io::ErrorKind::InvalidData.into()),
        };
        let result = result.map(link::shortened).map_err(link::shortened);
        link::send(&channel, &Reply::Done { number, result })?;
    }
    Ok(())
}
