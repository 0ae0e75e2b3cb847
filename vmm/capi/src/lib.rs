//! The engine for C. `docs/c.md` is the guide, `include/cabana.h` what a C program sees.
//!
//! Descriptions go in and out as JSON of the one schema (`cabana-api`), so that a new option is no new
//! symbol. Objects are opaque and freed by their own function; strings that are returned are freed by
//! [`cabana_string_free`]. What fails returns NULL, -1 or false, and says why on the same thread:
//! [`cabana_error_code`], [`cabana_error_message`].
//!
//! Every function may be called from any thread. A call that waits ends when its machine does, or when
//! another thread stops or hangs up what it waits for; an object must not be freed while a call uses it.

// Pointers from C become references, and C calls these functions by name.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cabana_api::{CommandSpec, EngineSpec, MachineSpec, SessionLimits, SessionSpec, TtySize};
use cabana_engine::{
    Engine, Error, Events, Exit, Forward, Machine, Place, PolicySpec, Process, ProcessEvent,
    ProcessInput, Remember,
};

/// Makes machines.
pub struct CabanaEngine(Engine);

/// A machine. It starts with its first command; with its last handle and process it stops.
pub struct CabanaMachine {
    machine: Machine,
    events: Mutex<Events>,
}

/// A command in a machine.
pub struct CabanaProcess {
    process: Mutex<Process>,
    input: ProcessInput,
}

/// A TCP port that leads elsewhere.
pub struct CabanaForward(Forward);

/// What happened to a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CabanaEventKind {
    /// It runs; `value` is its number in the guest.
    Started,
    /// It wrote `data` to standard output.
    Stdout,
    /// It wrote `data` to standard error.
    Stderr,
    /// It exited; `value` is its status. Nothing comes after.
    Exited,
    /// Signal `value` ended it. Nothing comes after.
    Signalled,
    /// It was ended because its time was over. Nothing comes after.
    TimedOut,
    /// It runs on in the background without this process: it was left, or somebody else has attached to it.
    /// Nothing comes after.
    Detached,
}

/// An event of a process.
#[repr(C)]
pub struct CabanaEvent {
    /// What happened.
    pub kind: CabanaEventKind,
    /// Bytes that it wrote, good until the next call for this process; not a string.
    pub data: *const u8,
    /// How many.
    pub length: usize,
    /// A number, by kind.
    pub value: i32,
}

thread_local! {
    static ERROR: RefCell<Option<(CString, CString)>> = const { RefCell::new(None) };
}

/// Notes why a call failed.
fn fail(code: &str, message: &str) {
    // A zero byte would end the sentence early.
    let text = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
    ERROR.set(Some((text(code), text(message))));
}

fn note<T>(result: Result<T, Error>) -> Option<T> {
    result.map_err(|error| fail(error.code(), &error.to_string())).ok()
}

/// The text behind a pointer of C's; NULL is the empty object.
///
/// # Safety
///
/// `text` is NULL or a string that ends with a zero byte and stays during the call.
unsafe fn parse<T: serde::de::DeserializeOwned>(what: &str, text: *const c_char) -> Option<T> {
    let text = if text.is_null() {
        c"{}"
    } else {
        // SAFETY: as this function asks.
        unsafe { CStr::from_ptr(text) }
    };
    let parsed = serde_json::from_slice(text.to_bytes());
    parsed.map_err(|error| fail("invalid", &format!("the {what} is not understood: {error}"))).ok()
}

/// A reference to an object of C's.
///
/// # Safety
///
/// `object` is NULL or came from this library and is not freed during the call.
unsafe fn known<'a, T>(what: &str, object: *const T) -> Option<&'a T> {
    // SAFETY: as this function asks.
    let object = unsafe { object.as_ref() };
    if object.is_none() {
        fail("invalid", &format!("the {what} is NULL"));
    }
    object
}

/// A string of C's.
///
/// # Safety
///
/// `text` is NULL or a string that ends with a zero byte and stays during the call.
unsafe fn text<'a>(what: &str, text: *const c_char) -> Option<&'a str> {
    if text.is_null() {
        fail("invalid", &format!("the {what} is NULL"));
        return None;
    }
    // SAFETY: as this function asks.
    let text = unsafe { CStr::from_ptr(text) }.to_str();
    text.map_err(|_| fail("invalid", &format!("the {what} is not UTF-8"))).ok()
}

/// The inside of a machine, or of its session if that is not NULL.
///
/// # Safety
///
/// `machine` is a machine, `session` NULL or a string; both stay during the call.
unsafe fn place(machine: *const CabanaMachine, session: *const c_char) -> Option<Place> {
    // SAFETY: as this function asks.
    let machine = unsafe { known("machine", machine) }?;
    if session.is_null() {
        return Some(machine.machine.place());
    }
    // SAFETY: as this function asks.
    let session = unsafe { text("session", session) }?;
    note(machine.machine.session(session)).map(|session| session.place().clone())
}

/// Frees an object of C's.
///
/// # Safety
///
/// `object` is NULL or came from this library, and nobody uses it any more.
unsafe fn free<T>(object: *mut T) {
    if !object.is_null() {
        // SAFETY: every object comes from `Box::into_raw`, and this is its end.
        drop(unsafe { Box::from_raw(object) });
    }
}

fn hand_out<T>(object: Option<T>) -> *mut T {
    object.map_or(ptr::null_mut(), |object| Box::into_raw(Box::new(object)))
}

fn string(text: Option<String>) -> *mut c_char {
    let text = text.and_then(|text| CString::new(text).ok());
    text.map_or(ptr::null_mut(), CString::into_raw)
}

fn json(value: &impl serde::Serialize) -> Option<String> {
    serde_json::to_string(value).map_err(|error| fail("invalid", &error.to_string())).ok()
}

/// The code of this thread's last failure; it never changes its meaning. NULL if nothing failed. Good until
/// the next call on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn cabana_error_code() -> *const c_char {
    ERROR.with_borrow(|error| error.as_ref().map_or(ptr::null(), |(code, _)| code.as_ptr()))
}

/// One sentence about this thread's last failure, for people. NULL if nothing failed. Good until the next
/// call on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn cabana_error_message() -> *const c_char {
    ERROR.with_borrow(|error| error.as_ref().map_or(ptr::null(), |(_, message)| message.as_ptr()))
}

/// Frees a string that was returned.
///
/// # Safety
///
/// `text` is NULL or was returned by this library to be freed, once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_string_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: it came from `CString::into_raw`, as this function asks.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// An engine, by a JSON object of `home`, `worker`, `scratch` and `in_process`, all optional; NULL for
/// defaults.
///
/// # Safety
///
/// `spec` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_engine_new(spec: *const c_char) -> *mut CabanaEngine {
    // SAFETY: as this function asks.
    let spec = unsafe { parse::<EngineSpec>("engine", spec) };
    hand_out(spec.and_then(|spec| note(Engine::new(spec.into()))).map(CabanaEngine))
}

/// Frees an engine. Its machines live on until they are freed.
///
/// # Safety
///
/// `engine` is NULL or an engine that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_engine_free(engine: *mut CabanaEngine) {
    // SAFETY: as this function asks.
    unsafe { free(engine) };
}

/// A machine, by a JSON object (`MachineSpec` of docs/serve.schema.json). Nothing starts yet.
///
/// # Safety
///
/// `engine` is an engine, `spec` NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_machine_new(
    engine: *const CabanaEngine,
    spec: *const c_char,
) -> *mut CabanaMachine {
    // SAFETY: as this function asks.
    let (engine, spec) =
        unsafe { (known("engine", engine), parse::<MachineSpec>("machine", spec)) };
    let made = engine.zip(spec).and_then(|(engine, spec)| note(engine.0.machine(spec)));
    hand_out(made.map(|made| CabanaMachine { events: Mutex::new(made.events()), machine: made }))
}

/// Starts a machine and waits until it takes commands. 0, or -1.
///
/// # Safety
///
/// `machine` is a machine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_machine_start(machine: *const CabanaMachine) -> c_int {
    // SAFETY: as this function asks.
    let machine = unsafe { known("machine", machine) };
    status(machine.and_then(|machine| note(machine.machine.start())))
}

/// Ends all processes, flushes, and ends the machine. The next command starts it again. 0, or -1.
///
/// # Safety
///
/// `machine` is a machine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_machine_shutdown(machine: *const CabanaMachine) -> c_int {
    // SAFETY: as this function asks.
    let machine = unsafe { known("machine", machine) };
    status(machine.and_then(|machine| note(machine.machine.shutdown())))
}

/// Ends the machine now, as if its power had failed; a start that is under way, too.
///
/// # Safety
///
/// `machine` is a machine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_machine_stop(machine: *const CabanaMachine) {
    // SAFETY: as this function asks.
    if let Some(machine) = unsafe { known("machine", machine) } {
        machine.machine.stop();
    }
}

/// Lets an idle machine's processors stand still until its next command. 1 if they do, 0 if a process runs,
/// -1 on failure.
///
/// # Safety
///
/// `machine` is a machine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_machine_suspend(machine: *const CabanaMachine) -> c_int {
    // SAFETY: as this function asks.
    let machine = unsafe { known("machine", machine) };
    machine.and_then(|machine| note(machine.machine.suspend())).map_or(-1, c_int::from)
}

/// How the machine is: JSON (`MachineStatus`), to be freed.
///
/// # Safety
///
/// `machine` is a machine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_machine_status(machine: *const CabanaMachine) -> *mut c_char {
    // SAFETY: as this function asks.
    let machine = unsafe { known("machine", machine) };
    string(machine.and_then(|machine| json(&machine.machine.status())))
}

/// Waits at most this many milliseconds for what happens to the machine: JSON (`MachineEvent`), to be
/// freed. NULL if nothing did. Events since the machine was made wait here, 1,024 at most.
///
/// # Safety
///
/// `machine` is a machine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_machine_next_event(
    machine: *const CabanaMachine,
    milliseconds: u32,
) -> *mut c_char {
    // SAFETY: as this function asks.
    let Some(machine) = (unsafe { known("machine", machine) }) else { return ptr::null_mut() };
    let events = machine.events.lock().unwrap_or_else(PoisonError::into_inner);
    let event = events.next_within(Duration::from_millis(milliseconds.into()));
    string(event.and_then(|event| json(&event)))
}

/// Frees a machine, which stops unless a process of it is left.
///
/// # Safety
///
/// `machine` is NULL or a machine that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_machine_free(machine: *mut CabanaMachine) {
    // SAFETY: as this function asks.
    unsafe { free(machine) };
}

/// Starts a command, by a JSON object (`CommandSpec`), and the machine before it if need be.
///
/// # Safety
///
/// `machine` is a machine, `command` a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_machine_exec(
    machine: *const CabanaMachine,
    command: *const c_char,
) -> *mut CabanaProcess {
    // SAFETY: as this function asks.
    let (machine, command) =
        unsafe { (known("machine", machine), parse::<CommandSpec>("command", command)) };
    let started =
        machine.zip(command).and_then(|(machine, command)| note(machine.machine.exec(&command)));
    process(started)
}

/// All commands in the background: a JSON array (`BackgroundStatus`), to be freed. A command is there whose
/// `background` is true.
///
/// # Safety
///
/// `machine` is a machine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_machine_background(machine: *const CabanaMachine) -> *mut c_char {
    // SAFETY: as this function asks.
    let machine = unsafe { known("machine", machine) };
    let all = machine.and_then(|machine| note(machine.machine.background_commands()));
    string(all.and_then(|all| json(&all)))
}

/// Goes on with a command in the background, by its number. What it has written meanwhile comes first; whoever
/// has been attached to it before is told that it is detached.
///
/// # Safety
///
/// `machine` is a machine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_machine_attach(
    machine: *const CabanaMachine,
    background: u64,
) -> *mut CabanaProcess {
    // SAFETY: as this function asks.
    let machine = unsafe { known("machine", machine) };
    process(machine.and_then(|machine| note(machine.machine.attach(background))))
}

/// Makes a session, by a JSON object (`SessionSpec`), and starts the machine before if need be: JSON
/// (`SessionStatus`), to be freed. A command runs in it whose `session` names it.
///
/// # Safety
///
/// `machine` is a machine, `spec` a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_session_create(
    machine: *const CabanaMachine,
    spec: *const c_char,
) -> *mut c_char {
    // SAFETY: as this function asks.
    let (machine, spec) =
        unsafe { (known("machine", machine), parse::<SessionSpec>("session", spec)) };
    let made = machine.zip(spec).and_then(|(machine, spec)| {
        note(machine.machine.create_session(spec).and_then(|session| session.status()))
    });
    string(made.and_then(|status| json(&status)))
}

/// Gives a session other limits, all of them, by a JSON object (`SessionLimits`): JSON (`SessionStatus`), to
/// be freed.
///
/// # Safety
///
/// `machine` is a machine, `session` and `limits` are strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_session_limit(
    machine: *const CabanaMachine,
    session: *const c_char,
    limits: *const c_char,
) -> *mut c_char {
    // SAFETY: as this function asks.
    let (machine, session, limits) = unsafe {
        let limits = parse::<SessionLimits>("limits", limits);
        (known("machine", machine), text("session", session), limits)
    };
    let limited = machine.zip(session).zip(limits).and_then(|((machine, session), limits)| {
        note(machine.machine.session(session).and_then(|session| session.limit(limits)))
    });
    string(limited.and_then(|status| json(&status)))
}

/// All sessions of a machine: a JSON array (`SessionStatus`), to be freed.
///
/// # Safety
///
/// `machine` is a machine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_session_list(machine: *const CabanaMachine) -> *mut c_char {
    // SAFETY: as this function asks.
    let machine = unsafe { known("machine", machine) };
    string(machine.and_then(|machine| note(machine.machine.sessions())).and_then(|all| json(&all)))
}

/// Ends a session's processes and deletes what it has. 0, or -1.
///
/// # Safety
///
/// `machine` is a machine, `session` a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_session_remove(
    machine: *const CabanaMachine,
    session: *const c_char,
) -> c_int {
    // SAFETY: as this function asks.
    let (machine, session) = unsafe { (known("machine", machine), text("session", session)) };
    status(machine.zip(session).and_then(|(machine, session)| {
        note(machine.machine.session(session).and_then(|session| session.remove()))
    }))
}

/// How a machine's network is: JSON (`NetworkStatus`), to be freed.
///
/// # Safety
///
/// `machine` is a machine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_network_status(machine: *const CabanaMachine) -> *mut c_char {
    // SAFETY: as this function asks.
    let machine = unsafe { known("machine", machine) };
    string(
        machine
            .and_then(|machine| note(machine.machine.network()))
            .and_then(|status| json(&status)),
    )
}

/// Puts other rules, a JSON object (`PolicySpec`), in place of those of a session, or of the machine itself if
/// `session` is NULL. They hold at once, for what is open too. 0, or -1.
///
/// # Safety
///
/// `machine` is a machine, `session` a string or NULL, `policy` a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_network_policy(
    machine: *const CabanaMachine,
    session: *const c_char,
    policy: *const c_char,
) -> c_int {
    // SAFETY: as this function asks.
    let (machine, policy) =
        unsafe { (known("machine", machine), parse::<PolicySpec>("policy", policy)) };
    let Some((machine, policy)) = machine.zip(policy) else { return -1 };
    if session.is_null() {
        return status(note(machine.machine.set_policy(policy)).map(drop));
    }
    // SAFETY: as this function asks.
    let session = unsafe { text("session", session) };
    status(session.and_then(|session| {
        let session = note(machine.machine.session(session))?;
        note(session.set_policy(Some(policy))).map(drop)
    }))
}

/// Answers a question of a machine's network, which an event told of by its number. `remember` is JSON (`Remember`):
/// `"once"`, `"session"` or `"machine"`. 0, or -1.
///
/// # Safety
///
/// `machine` is a machine, `remember` a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_network_answer(
    machine: *const CabanaMachine,
    ask: u64,
    allow: bool,
    remember: *const c_char,
) -> c_int {
    // SAFETY: as this function asks.
    let (machine, remember) =
        unsafe { (known("machine", machine), parse::<Remember>("remember", remember)) };
    status(
        machine
            .zip(remember)
            .and_then(|(machine, remember)| note(machine.machine.answer(ask, allow, remember))),
    )
}

/// Copies a file or a folder of the host's into a session, or into the machine itself if `session` is NULL: JSON
/// (`Copied`), to be freed. A `guest` that ends with a slash is a folder to put it in.
///
/// # Safety
///
/// `machine` is a machine, `session` NULL or a string, `host` and `guest` are strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_copy_in(
    machine: *const CabanaMachine,
    session: *const c_char,
    host: *const c_char,
    guest: *const c_char,
) -> *mut c_char {
    // SAFETY: as this function asks.
    let (place, host, guest) =
        unsafe { (place(machine, session), text("host", host), text("guest", guest)) };
    let copied = place
        .zip(host)
        .zip(guest)
        .and_then(|((place, host), guest)| note(place.copy_in(Path::new(host), guest)));
    string(copied.and_then(|copied| json(&copied)))
}

/// Copies a file or a folder of a session's, or of the machine's own if `session` is NULL, to the host: JSON
/// (`Copied`), to be freed. A `host` that is a folder, or ends with a slash, gets it under its own name.
///
/// # Safety
///
/// `machine` is a machine, `session` NULL or a string, `guest` and `host` are strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_copy_out(
    machine: *const CabanaMachine,
    session: *const c_char,
    guest: *const c_char,
    host: *const c_char,
) -> *mut c_char {
    // SAFETY: as this function asks.
    let (place, host, guest) =
        unsafe { (place(machine, session), text("host", host), text("guest", guest)) };
    let copied = place
        .zip(host)
        .zip(guest)
        .and_then(|((place, host), guest)| note(place.copy_out(guest, Path::new(host))));
    string(copied.and_then(|copied| json(&copied)))
}

/// Leads a loopback TCP port of the host's to one of a session's, or of the machine's own if `session` is NULL,
/// until it is freed. `port` 0 is any free one, see [`cabana_forward_port`].
///
/// # Safety
///
/// `machine` is a machine, `session` NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_forward_new(
    machine: *const CabanaMachine,
    session: *const c_char,
    port: u16,
    guest_port: u16,
) -> *mut CabanaForward {
    // SAFETY: as this function asks.
    let place = unsafe { place(machine, session) };
    let forward = place.and_then(|place| note(place.forward(local(port), local(guest_port))));
    hand_out(forward.map(CabanaForward))
}

/// Leads a loopback TCP port of a session's, or of the machine's own if `session` is NULL, to one of the host's,
/// until it is freed or the machine ends. `guest_port` 0 is any free one, see [`cabana_forward_port`].
///
/// # Safety
///
/// `machine` is a machine, `session` NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_forward_back(
    machine: *const CabanaMachine,
    session: *const c_char,
    guest_port: u16,
    port: u16,
) -> *mut CabanaForward {
    // SAFETY: as this function asks.
    let place = unsafe { place(machine, session) };
    let forward = place.and_then(|place| note(place.forward_back(local(guest_port), local(port))));
    hand_out(forward.map(CabanaForward))
}

/// The port that is listened on. 0 for NULL.
///
/// # Safety
///
/// `forward` is NULL or a port that leads elsewhere.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_forward_port(forward: *const CabanaForward) -> u16 {
    // SAFETY: as this function asks.
    unsafe { known("forward", forward) }.map_or(0, |forward| forward.0.listens().port())
}

/// Ends a port that leads elsewhere, with its connections.
///
/// # Safety
///
/// `forward` is NULL or one that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_forward_free(forward: *mut CabanaForward) {
    // SAFETY: as this function asks.
    unsafe { free(forward) };
}

/// Waits for what happens to a process. 1 and an event; 0 after its end; -1 if it could not be started or
/// its machine died.
///
/// # Safety
///
/// `process` is a process, `into` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_process_next(
    process: *const CabanaProcess,
    into: *mut CabanaEvent,
) -> c_int {
    // SAFETY: as this function asks.
    let Some(process) = (unsafe { known("process", process) }) else { return -1 };
    let mut process = process.process.lock().unwrap_or_else(PoisonError::into_inner);
    let happened = match note(process.next_event()) {
        None => return -1,
        Some(None) => return 0,
        Some(Some(happened)) => happened,
    };
    let (kind, data, value): (_, &[u8], _) = match happened {
        ProcessEvent::Started(pid) => (CabanaEventKind::Started, &[], pid as i32),
        ProcessEvent::Stdout(bytes) => (CabanaEventKind::Stdout, bytes, 0),
        ProcessEvent::Stderr(bytes) => (CabanaEventKind::Stderr, bytes, 0),
        ProcessEvent::Exited(Exit::Code(code)) => (CabanaEventKind::Exited, &[], code.into()),
        ProcessEvent::Exited(Exit::Signal(signal)) => {
            (CabanaEventKind::Signalled, &[], signal.into())
        }
        ProcessEvent::Exited(Exit::TimedOut) => (CabanaEventKind::TimedOut, &[], 0),
        ProcessEvent::Detached => (CabanaEventKind::Detached, &[], 0),
    };
    let event = CabanaEvent { kind, data: data.as_ptr(), length: data.len(), value };
    // SAFETY: as this function asks.
    unsafe { into.write(event) };
    1
}

/// What others attach to a process by, once it has started; 0 if it is not in the background.
///
/// # Safety
///
/// `process` is a process, for which no call of `cabana_process_next` waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_process_background(process: *const CabanaProcess) -> u64 {
    // SAFETY: as this function asks.
    let process = unsafe { known("process", process) };
    process.map_or(0, |process| {
        let process = process.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.background().unwrap_or(0)
    })
}

/// Leaves a process in the background running; its last event is `Detached`. Another one is ended.
///
/// # Safety
///
/// `process` is a process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_process_detach(process: *const CabanaProcess) {
    // SAFETY: as this function asks.
    if let Some(process) = unsafe { known("process", process) } {
        process.input.detach();
    }
}

/// Gives a process input; waits while it takes none. 1, or 0 if it takes no more.
///
/// # Safety
///
/// `process` is a process, `data` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_process_write(
    process: *const CabanaProcess,
    data: *const u8,
    length: usize,
) -> c_int {
    // SAFETY: as this function asks.
    let Some(process) = (unsafe { known("process", process) }) else { return 0 };
    if length == 0 {
        return 1;
    }
    // SAFETY: as this function asks.
    let bytes = unsafe { std::slice::from_raw_parts(data, length) };
    process.input.write_stdin(bytes).into()
}

/// Ends a process's input.
///
/// # Safety
///
/// `process` is a process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_process_close_stdin(process: *const CabanaProcess) {
    // SAFETY: as this function asks.
    if let Some(process) = unsafe { known("process", process) } {
        process.input.close_stdin();
    }
}

/// Sends a Linux signal to a process's group.
///
/// # Safety
///
/// `process` is a process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_process_signal(process: *const CabanaProcess, signal: c_int) {
    // SAFETY: as this function asks.
    if let Some(process) = unsafe { known("process", process) } {
        process.input.signal(signal);
    }
}

/// Says that a process's terminal has a new size.
///
/// # Safety
///
/// `process` is a process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_process_resize(
    process: *const CabanaProcess,
    rows: u16,
    columns: u16,
) {
    // SAFETY: as this function asks.
    if let Some(process) = unsafe { known("process", process) } {
        process.input.resize(TtySize { rows, cols: columns });
    }
}

/// Ends a process by hanging up, unless it is in the background; a call that waits for it returns.
///
/// # Safety
///
/// `process` is a process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_process_hang_up(process: *const CabanaProcess) {
    // SAFETY: as this function asks.
    if let Some(process) = unsafe { known("process", process) } {
        process.input.hang_up();
    }
}

/// Frees a process; one that still runs is hung up, or runs on in the background.
///
/// # Safety
///
/// `process` is NULL or a process that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabana_process_free(process: *mut CabanaProcess) {
    // SAFETY: as this function asks.
    unsafe { free(process) };
}

fn process(started: Option<Process>) -> *mut CabanaProcess {
    hand_out(
        started
            .map(|started| CabanaProcess { input: started.input(), process: Mutex::new(started) }),
    )
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

fn status(done: Option<()>) -> c_int {
    if done.is_some() { 0 } else { -1 }
}
