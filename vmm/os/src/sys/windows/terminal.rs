//! The console that standard input is.

use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::System::Console::{
    CONSOLE_MODE, CONSOLE_SCREEN_BUFFER_INFO, ENABLE_ECHO_INPUT, ENABLE_LINE_INPUT,
    ENABLE_PROCESSED_INPUT, ENABLE_VIRTUAL_TERMINAL_INPUT, ENABLE_VIRTUAL_TERMINAL_PROCESSING,
    GetConsoleMode, GetConsoleScreenBufferInfo, GetStdHandle, STD_INPUT_HANDLE, STD_OUTPUT_HANDLE,
    SetConsoleMode,
};

/// A console that passes every key on, and takes what terminals take; as it was before when dropped.
pub struct RawMode {
    input: CONSOLE_MODE,
    output: Option<CONSOLE_MODE>,
}

impl RawMode {
    /// `None` if standard input is no console.
    pub fn enter() -> Option<Self> {
        let (input, output) = (mode(stdin())?, mode(stdout()));
        let lines = ENABLE_ECHO_INPUT | ENABLE_LINE_INPUT | ENABLE_PROCESSED_INPUT;
        if !set(stdin(), input & !lines | ENABLE_VIRTUAL_TERMINAL_INPUT) {
            return None;
        }
        if let Some(output) = output {
            set(stdout(), output | ENABLE_VIRTUAL_TERMINAL_PROCESSING);
        }
        Some(Self { input, output })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        set(stdin(), self.input);
        self.output.map(|output| set(stdout(), output));
    }
}

/// Rows and columns, if it has any.
pub fn size() -> Option<(u16, u16)> {
    let mut told = CONSOLE_SCREEN_BUFFER_INFO::default();
    // SAFETY: fills the structure; whatever the handle is, the call looks.
    if unsafe { GetConsoleScreenBufferInfo(stdout(), &raw mut told) } == 0 {
        return None;
    }
    let length = |from: i16, to: i16| u16::try_from(i32::from(to) - i32::from(from) + 1).ok();
    let window = told.srWindow;
    Some((length(window.Top, window.Bottom)?, length(window.Left, window.Right)?))
}

fn stdin() -> HANDLE {
    // SAFETY: asks for a handle of this process.
    unsafe { GetStdHandle(STD_INPUT_HANDLE) }
}

fn stdout() -> HANDLE {
    // SAFETY: as above.
    unsafe { GetStdHandle(STD_OUTPUT_HANDLE) }
}

fn mode(console: HANDLE) -> Option<CONSOLE_MODE> {
    let mut mode = 0;
    // SAFETY: writes one value; whatever the handle is, the call looks.
    (unsafe { GetConsoleMode(console, &raw mut mode) } != 0).then_some(mode)
}

fn set(console: HANDLE, mode: CONSOLE_MODE) -> bool {
    // SAFETY: plain values; whatever the handle is, the call looks.
    unsafe { SetConsoleMode(console, mode) != 0 }
}
