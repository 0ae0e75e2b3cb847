//! Linux's numbers of signals.

/// The terminal is gone.
pub const HANGUP: i32 = 1;
/// Ctrl-C.
pub const INTERRUPT: i32 = 2;
/// Ctrl-\.
pub const QUIT: i32 = 3;
/// Whatever a program takes it for.
pub const USER1: i32 = 10;
/// Whatever a program takes it for.
pub const USER2: i32 = 12;
/// Nobody reads any more.
pub const PIPE: i32 = 13;
/// A request to end.
pub const TERMINATE: i32 = 15;
/// The terminal has another size.
pub const WINDOW: i32 = 28;
