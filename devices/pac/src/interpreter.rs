//! The parent's end.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cabana_os::{Channel, OwnedHandle, process};

use crate::link::{
    self, Ending, MAX_ADDRESSES, MAX_ANSWER, MAX_NAME, MAX_PIECE, MAX_SCRIPT, Reply, Request,
};

/// How long the program may be silent: far longer than it lets a script compute.
const PATIENCE: Duration = Duration::from_secs(10);
/// Names the program outright.
const VARIABLE: &str = "CABANA_PAC";
/// What of the environment counts for a script: where the host is on the clock.
const TIME_ZONE: &str = "TZ";

/// The same signal on every system that has it.
const SIGXCPU: i32 = 24;

/// What a script may ask about the world. It may block.
pub trait World {
    /// Every address of a name.
    fn resolve(&self, name: &str) -> Vec<IpAddr>;

    /// The addresses by which this host speaks to the world.
    fn own_addresses(&self) -> Vec<IpAddr>;
}

/// Why there is no interpreter.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It is not there.
    #[error(
        "there is no `cabana-pac` beside this program or on $PATH, which the proxies' script needs; install it, or \
         name it in ${VARIABLE}"
    )]
    Missing,
    /// It cannot be run.
    #[error("cannot start {}, which the proxies' script needs: {source}", program.display())]
    Start {
        /// What was found.
        program: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// Why a script gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The script is wrong, or took too much.
    #[error("the script failed: {0}")]
    Script(String),
    /// The interpreter ended over it; another one has begun, which knows no script.
    #[error("the script's interpreter ended ({})", in_words(*.0))]
    Ended(Ending),
    /// The interpreter would not run without its walls.
    #[error("the script's interpreter cannot confine itself: {0}")]
    Unconfined(String),
    /// It says nothing.
    #[error("the script's interpreter does not answer")]
    Silent,
    /// The program is gone, and nobody starts it again.
    #[error("the script's interpreter is gone")]
    Gone,
}

fn in_words(ending: Ending) -> String {
    match ending {
        Ending::Signal(SIGXCPU) => "it computed for too long".to_owned(),
        Ending::Signal(signal) => format!("killed by signal {signal}"),
        Ending::Status(status) => format!("exit status {status}"),
    }
}

/// The program, at work for one script at a time. It ends when this is dropped, or with this process.
#[derive(Debug)]
pub struct Interpreter {
    channel: Channel,
    program: Child,
    number: u64,
}

impl Interpreter {
    /// Starts the program `$CABANA_PAC`, else the `cabana-pac` beside this library, beside this program, or on
    /// `$PATH`. To be called before this process confines itself.
    pub fn start() -> Result<Self, StartError> {
        Self::start_at(process::find_program(VARIABLE, &["cabana-pac"]).ok_or(StartError::Missing)?)
    }

    /// The same with this program.
    pub fn start_at(program: PathBuf) -> Result<Self, StartError> {
        let (channel, child) =
            spawn(&program).map_err(|source| StartError::Start { program, source })?;
        Ok(Self { channel, program: child, number: 0 })
    }

    /// Its process, which has the interpreter for a child.
    pub fn id(&self) -> u32 {
        self.program.id()
    }

    /// Gives it a script in place of the last.
    pub fn load(&mut self, script: &str, world: &dyn World) -> Result<(), Failure> {
        if script.len() > MAX_SCRIPT {
            return Err(Failure::Script("it is longer than 1 MiB".to_owned()));
        }
        self.number += 1;
        let number = self.number;
        for piece in script.as_bytes().chunks(MAX_PIECE) {
            self.send(&Request::Piece { number, bytes: piece.to_owned() })?;
        }
        self.send(&Request::Load { number })?;
        self.hear(world).map(drop)
    }

    /// Asks the script about a connection.
    pub fn find(&mut self, url: &str, host: &str, world: &dyn World) -> Result<String, Failure> {
        self.number += 1;
        let (number, url, host) = (self.number, url.to_owned(), host.to_owned());
        self.send(&Request::Find { number, url, host })?;
        self.hear(world)
    }

    fn send(&self, request: &Request) -> Result<(), Failure> {
        link::send(&self.channel, request).map_err(|error| broken(&error))
    }

    /// Waits for the answer to the last request, and answers what the script asks meanwhile.
    fn hear(&self, world: &dyn World) -> Result<String, Failure> {
        loop {
            let heard = link::receive(&self.channel).map_err(|error| broken(&error))?;
            let mut addresses = match heard.ok_or(Failure::Gone)? {
                Reply::Done { number, result } if number == self.number => {
                    return match result {
                        Ok(said) if said.len() <= MAX_ANSWER => Ok(said),
                        Ok(_) => Err(Failure::Script("its answer is too long".to_owned())),
                        Err(why) => Err(Failure::Script(printable(why))),
                    };
                }
                // To a question for which nobody waits any more.
                Reply::Done { .. } => continue,
                Reply::Ended(ending) => return Err(Failure::Ended(ending)),
                Reply::Unconfined(why) => return Err(Failure::Unconfined(printable(why))),
                Reply::Resolve(name) if name.len() <= MAX_NAME => world.resolve(&name),
                Reply::Resolve(_) => Vec::new(),
                Reply::OwnAddresses => world.own_addresses(),
            };
            addresses.truncate(MAX_ADDRESSES);
            self.send(&Request::Addresses(addresses))?;
        }
    }
}

impl Drop for Interpreter {
    /// In a process that has confined itself both calls fail, and the channel's end does it.
    fn drop(&mut self) {
        self.channel.shut();
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn spawn(program: &PathBuf) -> io::Result<(Channel, Child)> {
    let (ours, theirs) = Channel::pair()?;
    ours.set_patience(PATIENCE)?;
    let mut command = Command::new(program);
    // Nothing of this process's, and no signal of its terminal's.
    process::bare(&mut command);
    process::set_apart(&mut command);
    command.stdin(OwnedHandle::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    command.envs(std::env::var_os(TIME_ZONE).map(|zone| (TIME_ZONE, zone)));
    let child = command.spawn()?;
    ours.set_peer(&child)?;
    process::end_together(&child)?;
    Ok((ours, child))
}

fn broken(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock => Failure::Silent,
        _ => Failure::Gone,
    }
}

/// What a script says of itself, as one line.
fn printable(text: String) -> String {
    link::shortened(text).escape_debug().to_string()
}
