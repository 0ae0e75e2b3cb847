//! A command in a machine.

use std::sync::mpsc::{Receiver, Sender, channel};

use cabana_api::TtySize;
use cabana_engine::{ProcessEvent, ProcessInput};
use napi::Env;
use napi::bindgen_prelude::{Buffer, Either3, Null, Object};
use napi_derive::napi;
use serde_json::json;

use crate::promise::{Deferred, Failure, failure, invalid, later, spawn};

/// What happened to a process: JSON of an event without bytes, one with bytes, or nothing after its end.
type Happened = Either3<String, Output, Null>;

/// What a command wrote.
#[napi(object)]
pub struct Output {
    /// `stdout` or `stderr`.
    pub kind: String,
    /// The bytes.
    pub data: Buffer,
}

/// A command in a machine. One that is forgotten before its end is hung up.
#[napi]
pub struct Process {
    input: ProcessInput,
    asked: Sender<Deferred<Happened>>,
}

#[napi]
impl Process {
    pub(crate) fn new(process: cabana_engine::Process) -> Result<Self, Failure> {
        let (input, (asked, asks)) = (process.input(), channel());
        spawn("process", move || follow(process, asks)).map_err(|error| invalid(&error.reason))?;
        Ok(Self { input, asked })
    }

    /// What happens next; null after its end. One question at a time.
    #[napi(ts_return_type = "Promise<string | Output | null>")]
    pub fn next<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        let (deferred, promise) = Deferred::new(env)?;
        if let Err(unheard) = self.asked.send(deferred) {
            unheard.0.settle(Ok(Either3::C(Null)));
        }
        Ok(promise)
    }

    /// Gives it input: a promise of whether it takes more.
    #[napi(ts_return_type = "Promise<boolean>")]
    pub fn write<'env>(&self, env: &'env Env, data: Buffer) -> napi::Result<Object<'env>> {
        let input = self.input.clone();
        let data = Vec::from(data);
        later(env, move || Ok(input.write_stdin(&data)))
    }

    /// Ends its input.
    #[napi]
    pub fn close_stdin(&self) {
        self.input.close_stdin();
    }

    /// Sends a Linux signal to its process group.
    #[napi]
    pub fn signal(&self, signal: i32) {
        self.input.signal(signal);
    }

    /// Says that its terminal has a new size.
    #[napi]
    pub fn resize(&self, rows: u16, cols: u16) {
        self.input.resize(TtySize { rows, cols });
    }

    /// Leaves it running, if it is in the background.
    #[napi]
    pub fn detach(&self) {
        self.input.detach();
    }

    /// Ends it; who waits for it hears so.
    #[napi]
    pub fn hang_up(&self) {
        self.input.hang_up();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its thread may wait for an event.
        self.input.hang_up();
    }
}

/// Reads an event for each question, to the last.
fn follow(mut process: cabana_engine::Process, asks: Receiver<Deferred<Happened>>) {
    while let Ok(deferred) = asks.recv() {
        let happened = process.next_event();
        let over = matches!(
            happened,
            Err(_) | Ok(None | Some(ProcessEvent::Exited(_) | ProcessEvent::Detached))
        );
        let happened = match happened {
            Ok(Some(ProcessEvent::Started(pid))) => Ok(started(pid, process.background())),
            happened => happened.map(told).map_err(failure),
        };
        if over {
            // Whoever asks again is answered by `next`, and this thread's time is over.
            drop(asks);
            return deferred.settle(happened);
        }
        deferred.settle(happened);
    }
}

fn told(event: Option<ProcessEvent<'_>>) -> Happened {
    let bytes = |kind: &str, bytes: &[u8]| {
        Either3::B(Output { kind: kind.to_owned(), data: bytes.to_vec().into() })
    };
    match event {
        None => Either3::C(Null),
        Some(ProcessEvent::Stdout(data)) => bytes("stdout", data),
        Some(ProcessEvent::Stderr(data)) => bytes("stderr", data),
        Some(ProcessEvent::Started(pid)) => started(pid, None),
        Some(ProcessEvent::Exited(exit)) => text(&json!({ "kind": "exited", "exit": exit })),
        Some(ProcessEvent::Detached) => text(&json!({ "kind": "detached" })),
    }
}

fn started(pid: u32, background: Option<u64>) -> Happened {
    match background {
        Some(background) => {
            text(&json!({ "kind": "started", "pid": pid, "background": background }))
        }
        None => text(&json!({ "kind": "started", "pid": pid })),
    }
}

fn text(value: &serde_json::Value) -> Happened {
    Either3::A(value.to_string())
}
