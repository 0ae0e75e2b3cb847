//! Requests that are not commands, see [`cabana_protocol::service`].

mod files;
mod tunnel;

use std::sync::Arc;

use cabana_protocol::{Cause, Failed, Reply, Request};

pub(crate) use self::tunnel::Tunnels;
use crate::exec::{ExecError, Link};
use crate::init::{freeze, shares};
use crate::server::Server;
use crate::session::{Session, SessionError, Sessions};
use crate::sockets::{self, MACHINE};

/// Answers a request, to the end of its connection.
pub(crate) fn serve(server: &Server, mut link: Link, request: Request) -> Result<(), ExecError> {
    let about = about(&request);
    let answer = match request {
        Request::CreateSession(spec) => {
            server.sessions().and_then(|sessions| sessions.create(&spec)).map(Reply::Session)
        }
        Request::UpdateSession { name, limits } => server
            .sessions()
            .and_then(|sessions| sessions.update(&name, limits))
            .map(Reply::Session),
        Request::RemoveSession { name } => {
            server.sessions().and_then(|sessions| sessions.remove(&name)).map(|()| Reply::Done)
        }
        Request::ListSessions => {
            let sessions = server.sessions().map(Sessions::list);
            Ok(Reply::Sessions(sessions.unwrap_or_default()))
        }
        Request::ListProcesses => Ok(Reply::Processes(server.background().list())),
        Request::AddShare { session: Some(session), share } => server
            .sessions()
            .and_then(|sessions| sessions.add_share(&session, &share))
            .map(|()| Reply::Done),
        Request::AddShare { session: None, share } => shares::mount_one(&share)
            .map(|()| Reply::Done)
            .map_err(|failed| SessionError::of_setup(&failed)),
        Request::RemoveShare { session: Some(session), guest_path } => server
            .sessions()
            .and_then(|sessions| sessions.remove_share(&session, &guest_path))
            .map(|()| Reply::Done),
        Request::RemoveShare { session: None, guest_path } => shares::unmount_one(&guest_path)
            .map(|()| Reply::Done)
            .map_err(|failed| SessionError::of_setup(&failed)),
        Request::Push { session, path } => match place(server, session) {
            Ok(session) => return files::push(link, session.as_deref(), &path, &about),
            Err(error) => Err(error),
        },
        Request::Pull { session, path } => match place(server, session) {
            Ok(session) => return files::pull(link, session.as_deref(), &path, &about),
            Err(error) => Err(error),
        },
        Request::Connect { session, address, port } => match place(server, session) {
            Ok(session) => return tunnel::connect(link, session.as_ref(), &address, port, &about),
            Err(error) => Err(error),
        },
        Request::Listen { session, address, port } => match place(server, session) {
            Ok(session) => {
                return tunnel::listen(server, link, session.as_ref(), &address, port, &about);
            }
            Err(error) => Err(error),
        },
        Request::Accept { connection } => return tunnel::accept(server, link, connection, &about),
        Request::FindOwner { session, udp, address } => place(server, session).map(|session| {
            let tables = session.map_or(MACHINE.to_owned(), |session| session.network_tables());
            Reply::Owner(sockets::owner(&tables, udp, address))
        }),
        Request::Freeze => freeze_all(server).map(|()| Reply::Done),
        Request::Thaw => {
            freeze::thaw().map(|()| Reply::Done).map_err(|failed| SessionError::of_setup(&failed))
        }
    };
    link.finish(&answer.unwrap_or_else(|error| Reply::Failed(error.answer(&about))))
}

/// Holds the machine. A session's shares keep the device mounted, whatever the machine itself does.
fn freeze_all(server: &Server) -> Result<(), SessionError> {
    let sessions = server.sessions().map(Sessions::list).unwrap_or_default();
    if let Some(session) = sessions.iter().find(|session| !session.shares.is_empty()) {
        let message = format!("session `{}` has shared folders: hide them before", session.name);
        return Err(SessionError::refused(Cause::Denied, message));
    }
    freeze::freeze().map_err(|failed| SessionError::of_setup(&failed))
}

/// The session that a request names, if it names one.
fn place(server: &Server, name: Option<String>) -> Result<Option<Arc<Session>>, SessionError> {
    name.map(|name| server.session(&name)).transpose()
}

/// What a request is about, for people.
fn about(request: &Request) -> String {
    let of = |session: &Option<String>| {
        session.as_ref().map_or_else(String::new, |name| format!(" in session `{name}`"))
    };
    match request {
        Request::CreateSession(spec) => format!("making session `{}`", spec.name),
        Request::UpdateSession { name, .. } => format!("limiting session `{name}`"),
        Request::RemoveSession { name } => format!("removing session `{name}`"),
        Request::ListSessions => "listing sessions".into(),
        Request::ListProcesses => "listing background commands".into(),
        Request::AddShare { session, share } => {
            format!("showing share `{}` at {}{}", share.name, share.guest_path, of(session))
        }
        Request::RemoveShare { session, guest_path } => {
            format!("hiding the share at {guest_path}{}", of(session))
        }
        Request::Push { session, path } => {
            format!("writing {}{}", String::from_utf8_lossy(path), of(session))
        }
        Request::Pull { session, path } => {
            format!("reading {}{}", String::from_utf8_lossy(path), of(session))
        }
        Request::Connect { session, address, port } => {
            format!("connecting to {address} port {port}{}", of(session))
        }
        Request::Listen { session, address, port } => {
            format!("listening on {address} port {port}{}", of(session))
        }
        Request::Freeze => "holding the machine for a snapshot".into(),
        Request::Thaw => "letting the machine go on".into(),
        Request::FindOwner { session, address, .. } => {
            format!("finding whose {address} is{}", of(session))
        }
        Request::Accept { connection } => format!("taking connection {connection}"),
    }
}

/// Ends a connection with a failure.
fn refuse(link: &mut Link, failed: Failed) -> Result<(), ExecError> {
    link.finish(&Reply::Failed(failed))
}
