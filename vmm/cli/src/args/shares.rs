//! Shared folders: of machines that are up, and their journals.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::units::{self, Moment, ShareArg};

#[derive(Debug, Args)]
#[command(
    after_help = "FOLDER is the shared folder or its journal's id. A MOMENT is the number of a record, a time
ago (10m, 2h) or @SECONDS since 1970.

Examples:
  cabana up work --share-root ~/src
  cabana share add work ~/src/project:/project
  cabana share add work --session chat-1 ~/src/docs:/mnt/docs:ro
  cabana share rm work /project

  cabana run --share ~/project:/src:journal -w /src -- ./agent
  cabana share diff ~/project
  cabana share rollback ~/project notes.txt src
  cabana share rollback ~/project --to 10m
  cabana share accept ~/project"
)]
pub(crate) struct ShareArgs {
    #[command(subcommand)]
    pub(crate) verb: ShareVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ShareVerb {
    /// Show folders of this host in a machine that is up.
    Add(ShareAddArgs),
    /// List what a machine that is up shows of this host, or without one the folders that have a journal.
    Ls(ShareLsArgs),
    /// Take folders away that were added. Programs that have files of them open get errors.
    Rm(ShareRmArgs),
    /// Say what happened, record by record.
    Log {
        /// The folder.
        folder: PathBuf,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Say how the folder differs from what it was.
    Diff(DiffArgs),
    /// Bring the folder back to what it was. What is there now is kept, and comes back by rolling back
    /// to the record that this prints.
    Rollback {
        #[command(flatten)]
        what: DiffArgs,
        /// Bring also back what the host has changed since; what it made of it is kept.
        #[arg(long)]
        force: bool,
    },
    /// Take the changes for good: what was kept for them goes.
    Accept {
        /// The folder.
        folder: PathBuf,
        /// Only those up to this moment.
        #[arg(long, value_name = "MOMENT", value_parser = units::moment)]
        to: Option<Moment>,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "A folder has to lie below one that the machine shares or one of its --share-root."
)]
pub(crate) struct ShareAddArgs {
    /// The machine.
    pub(crate) machine: String,

    /// Folders of this host, and where they appear.
    #[arg(value_name = "HOST[:GUEST][:ro|:journal[=SIZE]]", value_parser = units::share, required = true)]
    pub(crate) shares: Vec<ShareArg>,

    /// In this session, in place of the machine.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) session: Option<String>,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShareLsArgs {
    /// The machine.
    pub(crate) machine: Option<String>,

    /// Of this session, in place of the machine.
    #[arg(short, long, value_name = "NAME", requires = "machine")]
    pub(crate) session: Option<String>,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShareRmArgs {
    /// The machine.
    pub(crate) machine: String,

    /// Where in the guest.
    #[arg(value_name = "GUEST", required = true)]
    pub(crate) guests: Vec<String>,

    /// Of this session, in place of the machine.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) session: Option<String>,

    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The folder.
    pub(crate) folder: PathBuf,
    /// Only these paths in it, and what is below them.
    pub(crate) paths: Vec<PathBuf>,
    /// What it was at this moment; before the journal's first record if left out.
    #[arg(long, value_name = "MOMENT", value_parser = units::moment)]
    pub(crate) to: Option<Moment>,
    /// Only what this session did.
    #[arg(long, value_name = "N")]
    pub(crate) session: Option<u32>,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}
