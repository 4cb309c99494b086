//! Recordings: a run kept in a file, to be looked at later and elsewhere.
//!
//! A run is a [`Header`] (what was known before it began) and the [`Step`]s of everything that a view is told: the raw records of
//! the kernel side, and between them what time it was, what had been lost by then, which lists were read, and the names that were
//! looked up. A view that is told the same steps shows the same, live or not. The format is described in `docs/recordings.md`.

mod block;
mod course;
mod files;
mod fold;
mod header;
mod index;
mod parts;
mod reader;
mod step;
mod tape;
mod writer;

use std::{io, path::PathBuf};

pub use self::{
    block::{Block, Mark},
    course::Course,
    files::{Astray, Recorded},
    fold::BlockSteps,
    header::Header,
    parts::{Parts, Rotation, is_there, part_name},
    reader::Reader,
    step::{Holder, NoStep, Step, Steps},
    tape::Tape,
    writer::Writer,
};

use crate::sink::escape;

/// The version of the format: raised when what an older reader would misunderstand is added.
pub const FORMAT: u32 = 3;

/// The version of the records in `tcpstate-common/src/record.rs`: raised when their layout changes.
pub const LAYOUT: u32 = 1;

/// Why a recording cannot be read, or no further.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not what we read.
    #[error("{0}")]
    NoRecording(&'static str),
    /// It was made by a newer version.
    #[error(
        "it has {what} {version}, and this tcpstate reads up to {ours}: use tcpstate {needs} or later"
    )]
    Newer {
        /// What is newer.
        what: &'static str,
        /// The version it has.
        version: u32,
        /// The version we know.
        ours: u32,
        /// The version of tcpstate that reads it.
        needs: String,
    },
    /// What is in it cannot be right.
    #[error("damaged at byte {offset}: {what}")]
    Damaged {
        /// Where in the file what cannot be read begins.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Parts of a rotated recording are not there.
    #[error(
        "{} missing; `--from {}` shows what comes after",
        if first == last { format!("part {first} is") } else { format!("parts {first} to {last} are") },
        escape::path(next),
    )]
    PartsMissing {
        /// The first of them.
        first: u32,
        /// The last of them.
        last: u32,
        /// The part that comes after.
        next: PathBuf,
    },
    /// It ends where more should come.
    #[error("cut off at byte {offset}: {what}")]
    CutOff {
        /// Where the file ends.
        offset: u64,
        /// What is missing.
        what: &'static str,
    },
}
