//! A machine, its sessions, its files and its ports.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cabana_engine::{Error, Place};
use napi::Env;
use napi::bindgen_prelude::{Buffer, Function, Object};
use napi::threadsafe_function::ThreadsafeFunctionCallMode;
use napi_derive::napi;
use serde::Serialize;

use crate::process::Process;
use crate::promise::{Failure, failure, invalid, json, later, parse, spawn};

/// The longest file that is read at once.
const LARGEST_FILE: usize = 64 << 20;
/// Events that wait for JavaScript; the machine's own listeners have as many.
const WAITING: usize = 1024;

/// A machine.
#[napi]
pub struct Machine {
    machine: Mutex<Option<cabana_engine::Machine>>,
}

#[napi]
impl Machine {
    pub(crate) fn new(machine: cabana_engine::Machine) -> Self {
        Self { machine: Mutex::new(Some(machine)) }
    }

    fn open(&self) -> Result<cabana_engine::Machine, Failure> {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.clone().ok_or_else(|| invalid("the machine is closed"))
    }

    /// A promise of what a call on the machine says.
    fn call<'env, T, W>(&self, env: &'env Env, work: W) -> napi::Result<Object<'env>>
    where
        T: napi::bindgen_prelude::ToNapiValue + Send + 'static,
        W: FnOnce(cabana_engine::Machine) -> Result<T, Failure> + Send + 'static,
    {
        let machine = self.open();
        later(env, move || work(machine?))
    }

    /// The same, in a session or the machine itself.
    fn within<'env, T, W>(
        &self,
        env: &'env Env,
        session: Option<String>,
        work: W,
    ) -> napi::Result<Object<'env>>
    where
        T: napi::bindgen_prelude::ToNapiValue + Send + 'static,
        W: FnOnce(Place) -> Result<T, Failure> + Send + 'static,
    {
        self.call(env, move |machine| {
            let place = match session {
                None => machine.place(),
                Some(name) => machine.session(&name).map_err(failure)?.place().clone(),
            };
            work(place)
        })
    }

    /// Calls with each `MachineEvent` from now on, and with null after the last. By itself it keeps no program alive.
    #[napi(ts_args_type = "callback: (event: string | null) => void")]
    pub fn listen(&self, callback: Function<'_, Option<String>, ()>) -> Result<(), Failure> {
        let events = self.open()?.events();
        let callback = callback.build_threadsafe_function::<Option<String>>();
        let callback =
            callback.weak::<true>().callee_handled::<false>().max_queue_size::<WAITING>();
        let callback = callback.build().map_err(|error| invalid(&error.reason))?;
        let tell = move || {
            for event in events {
                let Ok(event) = json(&event) else { continue };
                let told = callback.call(Some(event), ThreadsafeFunctionCallMode::Blocking);
                if told != napi::Status::Ok {
                    return;
                }
            }
            callback.call(None, ThreadsafeFunctionCallMode::Blocking);
        };
        spawn("events", tell).map_err(|error| invalid(&error.reason))
    }

    /// How it is: a `MachineStatus`.
    #[napi]
    pub fn status(&self) -> Result<String, Failure> {
        json(&self.open()?.status())
    }

    /// Starts it and waits until it takes commands.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn start<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        self.call(env, |machine| machine.start().map_err(failure))
    }

    /// Flushes and ends it.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn shutdown<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        self.call(env, |machine| machine.shutdown().map_err(failure))
    }

    /// Ends it as if its power had failed; a start that is under way, too.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn stop<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        self.call(env, |machine| {
            machine.stop();
            Ok(())
        })
    }

    /// Lets it stand still until it is used; whether it does.
    #[napi(ts_return_type = "Promise<boolean>")]
    pub fn suspend<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        self.call(env, |machine| machine.suspend().map_err(failure))
    }

    /// Stops it and gives it up; its name is free then.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn close<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner).take();
        later(env, move || {
            if let Some(machine) = machine {
                machine.stop();
            }
            Ok(())
        })
    }

    /// What its console said last.
    #[napi(ts_return_type = "Promise<string>")]
    pub fn console<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        self.call(env, |machine| machine.console().map_err(failure))
    }

    /// Starts a command, by a `CommandSpec`.
    #[napi(ts_return_type = "Promise<Process>")]
    pub fn exec<'env>(&self, env: &'env Env, command: String) -> napi::Result<Object<'env>> {
        self.call(env, move |machine| {
            let process = machine.exec(&parse("command", &command)?).map_err(failure)?;
            Process::new(process)
        })
    }

    /// All commands in the background: an array of `BackgroundStatus`.
    #[napi(ts_return_type = "Promise<string>")]
    pub fn background<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        self.call(env, |machine| told(machine.background_commands()))
    }

    /// Goes on with a command in the background.
    #[napi(ts_return_type = "Promise<Process>")]
    pub fn attach<'env>(&self, env: &'env Env, background: f64) -> napi::Result<Object<'env>> {
        self.call(env, move |machine| {
            Process::new(machine.attach(background as u64).map_err(failure)?)
        })
    }

    /// Makes a session, by a `SessionSpec`: a `SessionStatus`.
    #[napi(ts_return_type = "Promise<string>")]
    pub fn create_session<'env>(&self, env: &'env Env, spec: String) -> napi::Result<Object<'env>> {
        self.call(env, move |machine| {
            let made = machine.create_session(parse("session", &spec)?);
            told(made.and_then(|session| session.status()))
        })
    }

    /// Gives a session other limits, all of them, by `SessionLimits`: a `SessionStatus`.
    #[napi(ts_return_type = "Promise<string>")]
    pub fn limit_session<'env>(
        &self,
        env: &'env Env,
        session: String,
        limits: String,
    ) -> napi::Result<Object<'env>> {
        self.call(env, move |machine| {
            let limits = parse("limits", &limits)?;
            told(machine.session(&session).and_then(|session| session.limit(limits)))
        })
    }

    /// All sessions: an array of `SessionStatus`.
    #[napi(ts_return_type = "Promise<string>")]
    pub fn sessions<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        self.call(env, |machine| told(machine.sessions()))
    }

    /// Ends a session's processes and deletes what it has.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn remove_session<'env>(
        &self,
        env: &'env Env,
        session: String,
    ) -> napi::Result<Object<'env>> {
        self.call(env, move |machine| {
            machine.session(&session).and_then(|session| session.remove()).map_err(failure)
        })
    }

    /// How its network is: a `NetworkStatus`.
    #[napi(ts_return_type = "Promise<string>")]
    pub fn network<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        self.call(env, |machine| told(machine.network()))
    }

    /// Puts other rules in place of the machine's or a session's, by a `PolicySpec`; null gives a session the machine's.
    /// Their number.
    #[napi(ts_return_type = "Promise<string>")]
    pub fn set_policy<'env>(
        &self,
        env: &'env Env,
        session: Option<String>,
        policy: String,
    ) -> napi::Result<Object<'env>> {
        self.call(env, move |machine| match session {
            None => told(machine.set_policy(parse("policy", &policy)?)),
            Some(name) => {
                let policy = parse("policy", &policy)?;
                told(machine.session(&name).and_then(|session| session.set_policy(policy)))
            }
        })
    }

    /// Answers a question of its network, by its number and a `Remember`.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn answer<'env>(
        &self,
        env: &'env Env,
        ask: f64,
        allow: bool,
        remember: String,
    ) -> napi::Result<Object<'env>> {
        self.call(env, move |machine| {
            machine.answer(ask as u64, allow, parse("remember", &remember)?).map_err(failure)
        })
    }

    /// Copies from the host: `Copied`.
    #[napi(ts_return_type = "Promise<string>")]
    pub fn copy_in<'env>(
        &self,
        env: &'env Env,
        session: Option<String>,
        host: String,
        guest: String,
    ) -> napi::Result<Object<'env>> {
        self.within(env, session, move |place| told(place.copy_in(&PathBuf::from(host), &guest)))
    }

    /// Copies to the host: `Copied`.
    #[napi(ts_return_type = "Promise<string>")]
    pub fn copy_out<'env>(
        &self,
        env: &'env Env,
        session: Option<String>,
        guest: String,
        host: String,
    ) -> napi::Result<Object<'env>> {
        self.within(env, session, move |place| told(place.copy_out(&guest, &PathBuf::from(host))))
    }

    /// Reads a file.
    #[napi(ts_return_type = "Promise<Buffer>")]
    pub fn read_file<'env>(
        &self,
        env: &'env Env,
        session: Option<String>,
        path: String,
    ) -> napi::Result<Object<'env>> {
        self.within(env, session, move |place| {
            place.read_file(&path, LARGEST_FILE).map(Buffer::from).map_err(failure)
        })
    }

    /// Writes a file.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn write_file<'env>(
        &self,
        env: &'env Env,
        session: Option<String>,
        path: String,
        data: Buffer,
        mode: u32,
    ) -> napi::Result<Object<'env>> {
        let data = Vec::from(data);
        self.within(env, session, move |place| {
            place.write_file(&path, &data, mode).map_err(failure)
        })
    }

    /// Shows a folder of the host's, by a `ShareSpec`.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn add_share<'env>(
        &self,
        env: &'env Env,
        session: Option<String>,
        share: String,
    ) -> napi::Result<Object<'env>> {
        self.within(env, session, move |place| {
            place.add_share(&parse("share", &share)?).map_err(failure)
        })
    }

    /// Takes a folder away.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn remove_share<'env>(
        &self,
        env: &'env Env,
        session: Option<String>,
        guest: String,
    ) -> napi::Result<Object<'env>> {
        self.within(env, session, move |place| place.remove_share(&guest).map_err(failure))
    }

    /// The folders that are shown: an array of `ShareSpec`.
    #[napi(ts_return_type = "Promise<string>")]
    pub fn shares<'env>(
        &self,
        env: &'env Env,
        session: Option<String>,
    ) -> napi::Result<Object<'env>> {
        self.within(env, session, |place| told(place.shares()))
    }

    /// Leads a port of the host's into the guest, or one of the guest's to the host if `back` is true.
    #[napi(ts_return_type = "Promise<Forward>")]
    pub fn forward<'env>(
        &self,
        env: &'env Env,
        session: Option<String>,
        listens: String,
        leads_to: String,
        back: bool,
    ) -> napi::Result<Object<'env>> {
        self.within(env, session, move |place| {
            let (listens, to) = (address(&listens)?, address(&leads_to)?);
            let made =
                if back { place.forward_back(listens, to) } else { place.forward(listens, to) };
            made.map(|made| Forward(Mutex::new(Some(made)))).map_err(failure)
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let machine = self.machine.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // Its end may take a moment, which JavaScript should not wait for.
        let _ = spawn("end", move || drop(machine));
    }
}

/// A port that leads elsewhere, until it is closed or forgotten.
#[napi]
pub struct Forward(Mutex<Option<cabana_engine::Forward>>);

#[napi]
impl Forward {
    /// Where it is listened; empty once it is closed.
    #[napi]
    pub fn listens(&self) -> String {
        let forward = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forward.as_ref().map_or_else(String::new, |forward| forward.listens().to_string())
    }

    /// Ends it, with its connections.
    #[napi]
    pub fn close(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn told(result: Result<impl Serialize, Error>) -> Result<String, Failure> {
    json(&result.map_err(failure)?)
}

fn address(text: &str) -> Result<SocketAddr, Failure> {
    text.parse().map_err(|_| invalid(&format!("{text:?} is no address, such as 127.0.0.1:8080")))
}
