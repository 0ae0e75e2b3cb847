//! Requests that are not commands: sessions, files, tunnels. Each has a connection to
//! [`EXEC_PORT`](crate::EXEC_PORT) of its own, whose first frame it is.
//!
//! | request | what follows |
//! |---|---|
//! | [`CreateSession`](Request::CreateSession), [`UpdateSession`](Request::UpdateSession) | [`Reply::Session`] |
//! | [`RemoveSession`](Request::RemoveSession), [`AddShare`](Request::AddShare), [`RemoveShare`](Request::RemoveShare) | [`Reply::Done`] |
//! | [`Freeze`](Request::Freeze), [`Thaw`](Request::Thaw) | [`Reply::Done`] |
//! | [`ListSessions`](Request::ListSessions) | [`Reply::Sessions`] |
//! | [`ListProcesses`](Request::ListProcesses) | [`Reply::Processes`] |
//! | [`FindOwner`](Request::FindOwner) | [`Reply::Owner`] |
//! | [`Push`](Request::Push) | the host's [`Entry`]s, each file with its bytes; after [`Entry::End`] the guest's [`Reply::Done`] |
//! | [`Pull`](Request::Pull) | the guest's [`Entry`]s, each file with its bytes; after [`Entry::End`] its [`Reply::Done`] |
//! | [`Connect`](Request::Connect), [`Accept`](Request::Accept) | [`Reply::Connected`], then bytes both ways |
//! | [`Listen`](Request::Listen) | [`Reply::Listening`], then a [`Reply::Incoming`] for each connection, until the host hangs up |
//!
//! Bytes are frames of [`Kind::Data`](crate::Kind::Data), an empty one their end. They are held back by
//! the stream alone. [`Reply::Failed`] can come at any point and is the last frame.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::frame::{Kind, Message};
use crate::session::{SessionInfo, SessionLimits, SessionSpec};
use crate::{ExitStatus, ShareMount};

/// What the host asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Make a session.
    CreateSession(SessionSpec),
    /// Give a session other limits.
    UpdateSession {
        /// Its name.
        name: String,
        /// All of its limits from now on.
        limits: SessionLimits,
    },
    /// End all processes of a session and delete what it has: answered when both can no longer be
    /// seen. Its space on the disk is free some time later.
    RemoveSession {
        /// Its name.
        name: String,
    },
    /// Tell of all sessions.
    ListSessions,
    /// Tell of all processes that can be attached to.
    ListProcesses,
    /// Show a connected folder.
    AddShare {
        /// To this session; absent: to the machine itself.
        session: Option<String>,
        /// The folder.
        share: ShareMount,
    },
    /// Show a connected folder no longer. Files that are open stay open.
    RemoveShare {
        /// To this session; absent: to the machine itself.
        session: Option<String>,
        /// Where it is shown.
        guest_path: String,
    },
    /// Write files, with the rights of the session or of the machine's root.
    Push {
        /// The session; absent: the machine itself.
        session: Option<String>,
        /// Where the entries' paths begin: an absolute path or, in a session, one from its home. Missing
        /// folders are made.
        path: Vec<u8>,
    },
    /// Read a file, or a folder with all that is in it.
    Pull {
        /// The session; absent: the machine itself.
        session: Option<String>,
        /// The file or folder: an absolute path or, in a session, one from its home.
        path: Vec<u8>,
    },
    /// Connect to a TCP port in the guest.
    Connect {
        /// Whose network; absent: the machine's.
        session: Option<String>,
        /// An IP address, for example `127.0.0.1` or `::1`.
        address: String,
        /// The port.
        port: u16,
    },
    /// Await connections on a TCP port in the guest.
    Listen {
        /// Whose network; absent: the machine's.
        session: Option<String>,
        /// An IP address, for example `127.0.0.1` or `::`.
        address: String,
        /// The port; 0 for any free one.
        port: u16,
    },
    /// Take a connection that a [`Reply::Incoming`] told of.
    Accept {
        /// Its number.
        connection: u64,
    },
    /// Hold every process but the agent and let go of all shares, so that a snapshot can be taken.
    Freeze,
    /// Let everything go on in a machine that was held.
    Thaw,
    /// Tell whose a socket is.
    FindOwner {
        /// Whose network it is in; absent: the machine's.
        session: Option<String>,
        /// A UDP socket; else one of TCP.
        udp: bool,
        /// Its own address.
        address: SocketAddr,
    },
}

/// What the guest answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// The session as it is now.
    Session(SessionInfo),
    /// All sessions, by name.
    Sessions(Vec<SessionInfo>),
    /// All processes that can be attached to, in the order of their start.
    Processes(Vec<ProcessInfo>),
    /// The tunnel stands.
    Connected,
    /// The guest listens.
    Listening {
        /// On this port.
        port: u16,
    },
    /// Somebody in the guest has connected.
    Incoming {
        /// The number for [`Request::Accept`], good as long as this connection stands.
        connection: u64,
    },
    /// It could not be done.
    Failed(Failed),
    /// A process that has the socket, if one is found.
    Owner(Option<OwnerInfo>),
}

/// A process, as the guest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerInfo {
    /// Its process identifier in the machine.
    pub pid: u32,
    /// Its name (`comm`), which it chooses itself, at most 15 characters.
    pub name: String,
}

/// A background process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// The number to attach by.
    pub process: u64,
    /// Its process identifier in the machine.
    pub pid: u32,
    /// The session that it runs in.
    pub session: Option<String>,
    /// The command, its arguments apart by spaces, at most 256 bytes of it.
    pub command: String,
    /// Whether a host is attached.
    pub attached: bool,
    /// How it ended, if it has.
    pub status: Option<ExitStatus>,
}

/// Why something could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The cause, for programs.
    pub cause: Cause,
    /// What failed, on what and why, for people: one sentence.
    pub message: String,
}

/// Causes of a [`Failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The request itself is wrong: a bad name, path, address or limit.
    Invalid,
    /// There is no such session, file, process or share.
    NotFound,
    /// There is one already.
    Exists,
    /// The session, or nobody, may do this.
    Denied,
    /// A limit of the machine, of the session or of the disk is reached.
    Exhausted,
    /// The guest's kernel, image or disk lacks what this takes.
    Unsupported,
    /// Anything else, for example a connection that is refused.
    Other,
}

/// One step of a transfer of files. Paths are relative, of names that are neither empty nor `.` nor
/// `..`; the empty path is what was asked for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A regular file; its bytes follow.
    File {
        /// Where.
        path: Vec<u8>,
        /// Its permissions, `0o7777` at most.
        mode: u32,
        /// When it was changed, in nanoseconds since 1970.
        modified_ns: i64,
    },
    /// A folder; one that exists is used.
    Folder {
        /// Where.
        path: Vec<u8>,
        /// Its permissions.
        mode: u32,
    },
    /// A symbolic link.
    Link {
        /// Where.
        path: Vec<u8>,
        /// What it says.
        target: Vec<u8>,
    },
    /// Nothing more comes.
    End,
}

impl Message for Request {
    const KIND: Kind = Kind::Request;
}

impl Message for Reply {
    const KIND: Kind = Kind::Reply;
}

impl Message for Entry {
    const KIND: Kind = Kind::Entry;
}
