//! What can be learnt of a machine that is stuck: by QEMU's monitor, where its processor stands; by an interrupt that
//! no software can mask, what its kernel was about to do.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

/// What the monitor says when it has answered.
const PROMPT: &[u8] = b"(qemu) ";
/// QEMU's main thread answers at once, or never.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at the registers, and for the kernel's last words to arrive.
const PAUSE: Duration = Duration::from_secs(1);
const LOOKS: usize = 3;
/// The registers that say where a processor stands and in which state.
const TELLING: [&str; 5] = ["RIP=", "RAX=", "CR0=", "EFER=", " PC="];

/// QEMU's monitor.
#[derive(Debug)]
pub(crate) struct Monitor(UnixStream);

impl Monitor {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Looks at the processor a few times, then has the kernel panic, which tells its stack on the console. The
    /// machine is of no use afterwards.
    pub(crate) fn autopsy(&mut self) -> String {
        match self.look() {
            Ok(text) => text,
            Err(error) => format!("QEMU's monitor does not answer: {error}"),
        }
    }

    fn look(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.answer()?;
        for _ in 0..LOOKS {
            let registers = self.ask("info registers")?;
            let lines = registers.lines();
            for line in lines.filter(|line| TELLING.iter().any(|telling| line.contains(telling))) {
                text += &format!("{}\n", line.trim_end());
            }
            thread::sleep(PAUSE);
        }
        // Whether its timer still runs, and what interrupts wait for. Arm has no such thing, and says so.
        text += &self.ask("info lapic")?;
        self.0.write_all(b"nmi\n")?;
        // The panic is QEMU's end, after which the console has its words.
        let _ = io::copy(&mut self.0, &mut io::sink());
        thread::sleep(PAUSE);
        Ok(text)
    }

    fn ask(&mut self, command: &str) -> io::Result<String> {
        self.0.write_all(format!("{command}\n").as_bytes())?;
        self.answer()
    }

    /// Everything to the next prompt.
    fn answer(&mut self) -> io::Result<String> {
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(PROMPT) {
            self.0.read_exact(&mut byte)?;
            answer.extend(byte);
        }
        answer.truncate(answer.len() - PROMPT.len());
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}
