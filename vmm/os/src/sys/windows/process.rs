//! What belongs to this process: randomness, its clocks.

use std::ffi::OsString;
use std::io;
use std::os::windows::ffi::OsStringExt;
use std::os::windows::io::{
    AsHandle, AsRawHandle, BorrowedHandle, FromRawHandle, IntoRawHandle, OwnedHandle,
};
use std::os::windows::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use windows_sys::Win32::Foundation::{CloseHandle, DuplicateHandle, FILETIME, HMODULE};
use windows_sys::Win32::Security::Cryptography::{
    BCRYPT_USE_SYSTEM_PREFERRED_RNG, BCryptGenRandom,
};
use windows_sys::Win32::Storage::FileSystem::GetFinalPathNameByHandleW;
use windows_sys::Win32::System::Console::{
    FreeConsole, GetStdHandle, STD_OUTPUT_HANDLE, SetStdHandle,
};
use windows_sys::Win32::System::JobObjects::JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
use windows_sys::Win32::System::LibraryLoader::{
    GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
    GetModuleFileNameW, GetModuleHandleExW,
};
use windows_sys::Win32::System::Threading::{
    CREATE_NEW_PROCESS_GROUP, CREATE_NO_WINDOW, GetCurrentProcess, GetCurrentThread,
    GetProcessTimes, GetThreadTimes, PROCESS_SYNCHRONIZE, TerminateProcess,
};

use super::job::{Job, Limits};

pub use crate::sys::portable::{monotonic, realtime, realtime_coarse, release_spare};
pub use crate::sys::programs::find_program;

/// Characters of the longest path.
const LONGEST_PATH: usize = 32_768;

/// Windows has no limit of open files that a program could raise.
#[allow(clippy::unnecessary_wraps, reason = "the same on every system")]
pub fn raise_open_files() -> io::Result<()> {
    Ok(())
}

/// All threads share one heap already.
pub fn share_heap() {}

/// A handle to this process for another one, which may wait for its end and do nothing else to it.
pub fn own_handle() -> io::Result<OwnedHandle> {
    let mut handle = ptr::null_mut();
    // SAFETY: the handles are constants for this process itself; the call makes another.
    let made = unsafe {
        let this = GetCurrentProcess();
        DuplicateHandle(this, this, this, &raw mut handle, PROCESS_SYNCHRONIZE, 0, 0)
    };
    if made == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system made the handle for us alone.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Lets a child end when this process does, however that is: both belong to a job that ends with its last handle, which this
/// process has.
pub fn end_together(child: &Child) -> io::Result<()> {
    static JOB: OnceLock<Job> = OnceLock::new();
    let job = if let Some(job) = JOB.get() {
        job
    } else {
        let flags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
        let job = Job::new(&Limits { flags, ..Limits::default() })?;
        JOB.get_or_init(|| job)
    };
    job.take(child.as_handle())
}

/// Gives a program that is about to be started nothing of this process's: no folder, and of the environment what the system's own
/// libraries look for.
pub fn bare(command: &mut Command) {
    const ROOT: &str = "SystemRoot";
    command.env_clear().current_dir("/").envs(std::env::var_os(ROOT).map(|root| (ROOT, root)));
}

/// Lets a program that is about to be started have nothing of this process's console.
pub fn set_apart(command: &mut Command) {
    command.creation_flags(CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW);
}

/// Nothing: the folder of temporary files is this user's own.
pub fn user_suffix() -> String {
    String::new()
}

/// Leaves the console: neither its end nor its Ctrl-C is meant for this process from now on.
pub fn detach() {
    // SAFETY: whoever has none keeps none.
    unsafe { FreeConsole() };
}

/// Lets nothing that this process says from now on reach who reads its standard output, who is not to wait for its end.
pub fn silence() -> io::Result<()> {
    let nowhere = std::fs::File::options().write(true).open("NUL")?;
    // SAFETY: standard output is another handle from now on, which stays open; nobody has the old one.
    unsafe {
        let old = GetStdHandle(STD_OUTPUT_HANDLE);
        if SetStdHandle(STD_OUTPUT_HANDLE, nowhere.into_raw_handle()) == 0 {
            return Err(io::Error::last_os_error());
        }
        CloseHandle(old);
    }
    Ok(())
}

/// No signal ends a process of Windows.
pub fn signal_of(_status: ExitStatus) -> Option<i32> {
    None
}

/// Nothing is inherited but what was named.
pub fn close_inherited() {}

/// Ends this process now: no destructor runs, nothing is flushed.
pub fn end_now(status: i32) -> ! {
    // SAFETY: ends the process, of which the handle is a constant; nothing comes after.
    unsafe { TerminateProcess(GetCurrentProcess(), status as u32) };
    std::process::abort()
}

/// The path by which a handle of this process is opened again, for as long as nobody gives the file another name.
pub fn path_of(handle: BorrowedHandle<'_>) -> PathBuf {
    let mut room = vec![0_u16; LONGEST_PATH];
    // SAFETY: no more is written than there is room for.
    let len = unsafe {
        let (at, len) = (room.as_mut_ptr(), room.len() as u32);
        GetFinalPathNameByHandleW(handle.as_raw_handle(), at, len, 0)
    };
    path(&room, len)
}

/// Nothing here asks the system once and for all.
pub fn learn() {}

/// This program itself, to be started once more.
pub fn own_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// The file that holds this very code: the program, or the library that it has loaded.
pub fn library_path() -> Option<PathBuf> {
    let mut module: HMODULE = ptr::null_mut();
    let flags =
        GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    let here = library_path as *const u16;
    let mut room = vec![0_u16; LONGEST_PATH];
    // SAFETY: asks which module an address belongs to, which stays while its code runs; no more of its path is written
    // than there is room for.
    let len = unsafe {
        if GetModuleHandleExW(flags, here, &raw mut module) == 0 {
            return None;
        }
        GetModuleFileNameW(module, room.as_mut_ptr(), room.len() as u32)
    };
    (len > 0).then(|| path(&room, len))
}

/// What a call has written; nothing if it did not fit.
fn path(room: &[u16], len: u32) -> PathBuf {
    OsString::from_wide(room.get(..len as usize).unwrap_or_default()).into()
}

/// Random bytes of the host's generator (`BCryptGenRandom`).
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let (at, len) = (bytes.as_mut_ptr(), N as u32);
    let flags = BCRYPT_USE_SYSTEM_PREFERRED_RNG;
    // SAFETY: fills as many bytes as there are; the system's own generator needs no handle.
    let status = unsafe { BCryptGenRandom(std::ptr::null_mut(), at, len, flags) };
    if status < 0 {
        return Err(io::Error::other(format!("BCryptGenRandom failed with {status:#x}")));
    }
    Ok(bytes)
}

/// Processor time of this process.
pub fn processor_time() -> Duration {
    let [mut made, mut ended, mut kernel, mut user] = [FILETIME::default(); 4];
    // SAFETY: fills the four structures; the handle is a constant for this process itself.
    unsafe {
        let this = GetCurrentProcess();
        GetProcessTimes(this, &raw mut made, &raw mut ended, &raw mut kernel, &raw mut user)
    };
    duration(kernel) + duration(user)
}

/// Processor time of this thread.
pub fn thread_time() -> Duration {
    let [mut made, mut ended, mut kernel, mut user] = [FILETIME::default(); 4];
    // SAFETY: fills the four structures; the handle is a constant for this thread itself.
    unsafe {
        let this = GetCurrentThread();
        GetThreadTimes(this, &raw mut made, &raw mut ended, &raw mut kernel, &raw mut user)
    };
    duration(kernel) + duration(user)
}

/// In steps of 100 ns.
fn duration(time: FILETIME) -> Duration {
    let steps = u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime);
    Duration::new(steps / 10_000_000, (steps % 10_000_000 * 100) as u32)
}
