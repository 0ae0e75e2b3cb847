//! A client, for the command line and for tests.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use cabana_api::{
    Call, Fault, Greeting, MachineEvent, Outcome, ProcessEvent, Reply, Request, VERSION,
};

/// One end of a conversation with a server.
#[derive(Debug)]
pub struct Client<R, W> {
    lines: BufReader<R>,
    asker: Asker<W>,
}

/// The asking half of a [`Client`]: cheap to clone, for any thread.
#[derive(Debug)]
pub struct Asker<W> {
    shared: Arc<Mutex<Asking<W>>>,
}

#[derive(Debug)]
struct Asking<W> {
    writer: W,
    last_id: u64,
}

/// What a server says.
#[derive(Debug)]
pub enum Incoming {
    /// The answer to the request of this number.
    Answer(u64, Outcome),
    /// Something happened to a process.
    Process(u64, ProcessEvent),
    /// Something happened to a machine.
    Machine(String, MachineEvent),
}

/// Why a conversation cannot go on, or a request was not met.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The stream.
    #[error("the machine's holder does not answer: {0}")]
    Io(#[from] io::Error),
    /// The server is gone.
    #[error("the machine's holder has gone")]
    Gone,
    /// A line that makes no sense.
    #[error("the machine's holder says what cannot be understood: {0}")]
    Nonsense(String),
    /// A server of another generation.
    #[error(
        "the machine's holder speaks version {0}, and this is {VERSION}; end it with `cabana down`"
    )]
    Version(u32),
    /// The request was not met.
    #[error("{}", .0.message)]
    Refused(Fault),
}

impl<R: Read, W: Write> Client<R, W> {
    /// Hears the greeting.
    pub fn new(reader: R, writer: W) -> Result<Self, ClientError> {
        let shared = Arc::new(Mutex::new(Asking { writer, last_id: 0 }));
        let mut client = Self { lines: BufReader::new(reader), asker: Asker { shared } };
        let greeting: Greeting = client.line()?;
        if greeting.cabana != VERSION {
            return Err(ClientError::Version(greeting.cabana));
        }
        Ok(client)
    }

    /// The asking half.
    pub fn asker(&self) -> Asker<W> {
        self.asker.clone()
    }

    /// Waits for what the server says next.
    pub fn next_line(&mut self) -> Result<Incoming, ClientError> {
        Ok(match self.line()? {
            Reply::Answer { id, outcome } => Incoming::Answer(id, outcome),
            Reply::Process { process, event } => Incoming::Process(process, event),
            Reply::Machine { machine, event } => Incoming::Machine(machine, event),
            Reply::Misread { misread } => return Err(ClientError::Nonsense(misread)),
        })
    }

    /// Asks for something and waits for the answer; hands what else comes to `other`.
    pub fn call(
        &mut self,
        call: Call,
        mut other: impl FnMut(Incoming),
    ) -> Result<Outcome, ClientError> {
        let asked = self.asker.ask(call)?;
        loop {
            match self.next_line()? {
                Incoming::Answer(id, Outcome::Error(fault)) if id == asked => {
                    return Err(ClientError::Refused(fault));
                }
                Incoming::Answer(id, outcome) if id == asked => return Ok(outcome),
                incoming => other(incoming),
            }
        }
    }

    fn line<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(ClientError::Gone);
        }
        serde_json::from_str(&line).map_err(|error| ClientError::Nonsense(error.to_string()))
    }
}

impl<W: Write> Asker<W> {
    /// Asks for something; the number of the request.
    pub fn ask(&self, call: Call) -> Result<u64, ClientError> {
        let mut asking = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        asking.last_id += 1;
        let id = asking.last_id;
        let mut line = serde_json::to_vec(&Request { id, call }).map_err(io::Error::from)?;
        line.push(b'\n');
        asking.writer.write_all(&line)?;
        asking.writer.flush()?;
        Ok(id)
    }
}

impl<W> Clone for Asker<W> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}
