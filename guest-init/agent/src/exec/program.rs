//! What a child becomes: everything that `execve(2)` takes, made before the fork.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::ptr;

use cabana_protocol::{Exec, ExecFailed};

use super::child::other;

/// The environment, unless the request clears it; a session has its own `HOME` and `USER`.
const DEFAULT_ENV: [(&str, &str); 4] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LANG", "C.UTF-8"),
];

const DEFAULT_TERM: &str = "xterm-256color";

/// Where a command is looked up if the environment has no `PATH`, as `execvp(3)` does.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/bin:/usr/bin";

/// A program, its arguments and its environment.
pub(super) struct Program {
    /// The files that it may be, in order.
    candidates: Vec<CString>,
    /// Of `argv` and `envp`, which point into what follows them.
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    _strings: [Vec<CString>; 2],
}

impl Program {
    /// The program that is asked for; `user` is the name and the home of its session's user.
    pub(super) fn new(exec: &Exec, user: Option<(&str, &str)>) -> Result<Self, ExecFailed> {
        let Some(program) = exec.argv.first() else {
            return Err(other("no command was given".into()));
        };
        let environment = environment(exec, user)?;
        let path = environment.get(&b"PATH"[..]).map_or(DEFAULT_PATH, Vec::as_slice);
        let candidates = if program.contains(&b'/') || program.is_empty() {
            vec![string(program)?]
        } else {
            let folders = path.split(|byte| *byte == b':');
            let join = |folder: &[u8]| {
                let folder = if folder.is_empty() { b"." } else { folder };
                string(&[folder, b"/", program].concat())
            };
            folders.map(join).collect::<Result<_, _>>()?
        };
        let argv =
            exec.argv.iter().map(|argument| string(argument)).collect::<Result<Vec<_>, _>>()?;
        let pair = |(key, value): (&Vec<u8>, &Vec<u8>)| string(&[key, &b"="[..], value].concat());
        let envp = environment.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
        let pointers = |strings: &[CString]| {
            strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
        };
        Ok(Self {
            candidates,
            argv: pointers(&argv),
            envp: pointers(&envp),
            _strings: [argv, envp],
        })
    }

    /// Becomes the program, or says why not, as `execvp(3)` has it: a file that may not be executed is the
    /// answer only when no other is found. It makes system calls alone.
    pub(super) fn execute(&self) -> io::Error {
        let mut denied = false;
        for candidate in &self.candidates {
            // SAFETY: the strings end with zero, the lists with a null pointer, and all of them live as
            // long as `self`.
            unsafe {
                libc::execve(candidate.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => denied = true,
                _ => return error,
            }
        }
        io::Error::from_raw_os_error(if denied { libc::EACCES } else { libc::ENOENT })
    }
}

fn environment(
    exec: &Exec,
    user: Option<(&str, &str)>,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ExecFailed> {
    let mut environment = BTreeMap::new();
    let mut set = |key: &[u8], value: &[u8]| environment.insert(key.to_vec(), value.to_vec());
    if !exec.clear_env {
        for (key, value) in DEFAULT_ENV {
            set(key.as_bytes(), value.as_bytes());
        }
        if let Some((name, home)) = user {
            set(b"HOME", home.as_bytes());
            set(b"USER", name.as_bytes());
        }
        if exec.tty.is_some() {
            set(b"TERM", DEFAULT_TERM.as_bytes());
        }
    }
    if let (Some(term), Some(_)) = (&exec.term, exec.tty) {
        set(b"TERM", term.as_bytes());
    }
    for (key, value) in &exec.env {
        if key.is_empty() || key.contains(&b'=') {
            let key = String::from_utf8_lossy(key);
            return Err(other(format!("`{key}` cannot be the name of an environment variable")));
        }
        set(key, value);
    }
    Ok(environment)
}

fn string(bytes: &[u8]) -> Result<CString, ExecFailed> {
    CString::new(bytes).map_err(|_| {
        other(format!("`{}` has a zero byte in it", String::from_utf8_lossy(bytes).escape_debug()))
    })
}
