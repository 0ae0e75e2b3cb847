//! What is heard of folders that are watched, the same on every system.

/// What happened to an entry of a folder; several may be merged into one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryChange {
    /// The name has come: made, linked, or moved here.
    pub came: bool,
    /// The name has gone: removed, or moved away.
    pub went: bool,
    /// Content or length.
    pub content: bool,
    /// A file that was open for writing was closed.
    pub closed: bool,
    /// Permissions, times, links.
    pub attributes: bool,
    /// It is a folder itself.
    pub folder: bool,
}
