//! Promises that a thread keeps, and errors with their code.

use std::io;
use std::thread;

use napi::bindgen_prelude::{Object, ToNapiValue};
use napi::{Env, JsDeferred, JsError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A JavaScript error whose `code` is the engine's.
pub(crate) type Failure = napi::Error<String>;

/// What a promise comes to, made on JavaScript's own thread.
type Resolver<T> = Box<dyn FnOnce(Env) -> napi::Result<T>>;

/// A promise that is still to be kept, by any thread.
pub(crate) struct Deferred<T: ToNapiValue>(JsDeferred<T, Resolver<T>>);

impl<T: ToNapiValue + Send + 'static> Deferred<T> {
    /// A promise, and what keeps it.
    pub(crate) fn new(env: &Env) -> napi::Result<(Self, Object<'_>)> {
        let (deferred, promise) = env.create_deferred()?;
        Ok((Self(deferred), promise))
    }

    /// Keeps it.
    pub(crate) fn settle(self, result: Result<T, Failure>) {
        self.0.resolve(Box::new(|env| result.map_err(|failure| with_code(env, failure))));
    }
}

/// Does what waits on a thread of its own.
pub(crate) fn later<T: ToNapiValue + Send + 'static>(
    env: &Env,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> napi::Result<Object<'_>> {
    let (deferred, promise) = Deferred::new(env)?;
    spawn("call", move || deferred.settle(work()))?;
    Ok(promise)
}

/// A thread.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> napi::Result<()> {
    let builder = thread::Builder::new().name(format!("cabana {name}"));
    builder.spawn(body).map_err(|error: io::Error| {
        napi::Error::from_reason(format!("the host refused a thread: {error}"))
    })?;
    Ok(())
}

/// The engine's error for JavaScript.
pub(crate) fn failure(error: impl Into<cabana_engine::Error>) -> Failure {
    let error = error.into();
    Failure::new(error.code().to_owned(), error.to_string())
}

/// A call that cannot be.
pub(crate) fn invalid(why: &str) -> Failure {
    Failure::new("invalid".to_owned(), why.to_owned())
}

/// A description out of its JSON.
pub(crate) fn parse<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, Failure> {
    serde_json::from_str(text)
        .map_err(|error| invalid(&format!("the {what} is not understood: {error}")))
}

/// A description as JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| invalid(&error.to_string()))
}

/// Promises are broken with napi's own status; a JavaScript error that it carries keeps its code.
fn with_code(env: Env, failure: Failure) -> napi::Error {
    let error = JsError::from(failure).into_unknown(env);
    napi::Error::from(error)
}
