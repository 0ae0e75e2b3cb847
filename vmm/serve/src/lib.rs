//! The engine over newline-delimited JSON, so that any language can drive it. `docs/serve.md` is the
//! guide; the lines themselves are defined in `cabana-api`.

mod client;
mod connection;
mod place;
mod server;

pub use client::{Asker, Client, ClientError, Incoming};
pub use place::{Place, PlaceError, Taken};
pub use server::Server;
