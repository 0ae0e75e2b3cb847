//! Programs of another processor, run while an image is built for it: packages are finished by scripts of their own.
//!
//! Linux starts them through QEMU's user mode when its table of formats (`binfmt_misc`) says so. That table is the
//! whole host's, but for a user namespace, which may have one of its own since Linux 6.7
//! (`Documentation/admin-guide/binfmt-misc.rst`). So the build gets a namespace in which users are who they are
//! outside, and nothing of the host changes.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use crate::BuildError;
use crate::process::Tool;

/// A processor whose programs QEMU runs.
struct Interpreter {
    /// Debian's name of the processor.
    architecture: &'static str,
    tool: Tool,
    /// Its number in an ELF file (`e_machine`).
    machine: u8,
}

const INTERPRETERS: [Interpreter; 2] = [
    Interpreter {
        architecture: "arm64",
        tool: Tool { name: "qemu-aarch64-static", package: "qemu-user-static" },
        machine: 0xb7,
    },
    Interpreter {
        architecture: "amd64",
        tool: Tool { name: "qemu-x86_64-static", package: "qemu-user-static" },
        machine: 0x3e,
    },
];

/// Users and groups of the namespace, all the same as outside.
const EVERYBODY: &str = "0 0 65536\n";

/// Makes the table, enters the format, and runs the rest of the command line. `F`: the interpreter is opened
/// now, so that it need not be in the tree.
const SCRIPT: &str = "\
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc &&
printf %s \"$0\" >/proc/sys/fs/binfmt_misc/register &&
exec \"$@\"";

/// A user namespace in which programs of another processor can run; gone when it is dropped.
pub(crate) struct Foreign {
    /// Lives for the namespace alone.
    holder: Child,
    /// What the kernel's table is told.
    format: String,
}

impl Foreign {
    /// Prepares for a processor, by Debian's name, and tries whether the host lets us.
    pub(crate) fn prepare(architecture: &str) -> Result<Self, BuildError> {
        let refuse = |why: &str| BuildError::Foreign {
            architecture: architecture.to_owned(),
            why: why.to_owned(),
        };
        let interpreter = INTERPRETERS.iter().find(|known| known.architecture == architecture);
        let interpreter = interpreter.ok_or_else(|| refuse("QEMU's name for it is not known"))?;
        let Interpreter { tool, machine, .. } = interpreter;
        let path = tool.find()?;
        let mut holder = Command::new("setpriv");
        holder.args(["--pdeathsig", "KILL", "unshare", "--user", "sh", "-c", "echo; read wait"]);
        holder.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let unable = |error: std::io::Error| refuse(&error.to_string());
        let holder = holder.spawn().map_err(unable)?;
        let mut foreign = Self {
            holder,
            // An ELF file of 64 bits, little-endian, a program or a library, for this processor.
            format: format!(
                ":cabana:M:0:\\x7f\\x45\\x4c\\x46\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\
                 \\x00\\x02\\x00\\x{machine:02x}\\x00:\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\
                 \\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff:{}:F",
                path.display()
            ),
        };
        // It is in its namespace when it speaks.
        let mut line = [0];
        let spoke = foreign.holder.stdout.as_mut().map(|stdout| stdout.read_exact(&mut line));
        if !matches!(spoke, Some(Ok(()))) {
            return Err(refuse("the host lets nobody make a user namespace"));
        }
        for map in ["uid_map", "gid_map"] {
            let map = format!("/proc/{}/{map}", foreign.holder.id());
            fs::write(map, EVERYBODY).map_err(unable)?;
        }
        let trial = foreign.command(Tool { name: "true", package: "coreutils" }).output();
        let trial = trial.map_err(unable)?;
        if trial.status.success() {
            return Ok(foreign);
        }
        let words = String::from_utf8_lossy(&trial.stderr);
        Err(refuse(words.trim().lines().next().unwrap_or("it said nothing")))
    }

    /// A command in the namespace, and in process and mount namespaces of its own. It dies with the thread that
    /// starts it.
    pub(crate) fn command(&self, tool: Tool) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--user=/proc/{}/ns/user", self.holder.id()));
        command.args(["setpriv", "--pdeathsig", "KILL"]);
        command.args(["unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]);
        command.args(["sh", "-c", SCRIPT, &self.format, tool.name]);
        crate::process::plain(&mut command);
        command
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_nobody_knows_is_refused_in_words() {
        let error = Foreign::prepare("pdp11").err().unwrap().to_string();
        assert!(error.contains("pdp11") && error.contains("6.7"), "{error}");
    }
}
