//! The files of a recording: one, or with rotation several parts.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::{Block, BlockSteps, Header, ReadError, Reader, header};

/// When to begin another file, and how many to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes after which a new part begins, at the end of a block.
    pub bytes: u64,
    /// How many parts are kept; the oldest are removed.
    pub keep: u32,
}

/// The name of a part: `incident.000001.tcps` of `incident.tcps`.
#[must_use]
pub fn part_name(path: &Path, part: u32) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".{part:06}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// The parts that there are of a recording with this name, oldest first.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn all(path: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let names: Vec<OsString> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    let stem = path.file_stem().unwrap_or_default();
    let number = |name: &OsString| -> Option<u32> {
        let rest = name.as_bytes().strip_prefix(stem.as_bytes())?;
        let rest = rest.strip_prefix(b".")?;
        let end = rest.iter().position(|byte| !byte.is_ascii_digit());
        let digits = rest.get(..end.unwrap_or(rest.len()))?;
        let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
        (part_name(path, number).file_name() == Some(name)).then_some(number)
    };
    let mut parts: Vec<_> = names.iter().filter_map(number).collect();
    parts.sort_unstable();
    Ok(parts
        .into_iter()
        .map(|part| (part, part_name(path, part)))
        .collect())
}

/// Whether there is a recording of this name, whole or in parts, as far as we may read it. Everything else may be written over.
#[must_use]
pub fn is_there(path: &Path) -> bool {
    match fs::metadata(path) {
        // A pipe would be waited for.
        Ok(there) if there.is_file() => {
            File::open(path).is_ok_and(|mut file| header::begins(&mut file))
        }
        Ok(_) => false,
        Err(_) => all(path).is_ok_and(|parts| !parts.is_empty()),
    }
}

/// Reads the parts of a recording one after the other.
#[expect(missing_debug_implementations, reason = "a reader has none")]
pub struct Parts {
    header: Header,
    path: PathBuf,
    reader: Reader<File>,
    /// Those that follow, the next one last.
    rest: Vec<PathBuf>,
    /// Bytes of the parts before this one.
    before: u64,
    /// How many parts there are.
    count: usize,
    /// Bytes of all parts.
    total: u64,
}

impl Parts {
    /// Opens a recording: the file with this name, or else all parts that there are of it.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, (PathBuf, ReadError)> {
        let mut rest = Vec::new();
        let mut first = path.to_owned();
        if !path.exists()
            && let Ok(parts) = all(path)
            && !parts.is_empty()
        {
            rest = parts.into_iter().map(|(_, path)| path).rev().collect();
            first = rest.pop().unwrap_or(first);
        }
        let reader = open(&first).map_err(|error| (first.clone(), error))?;
        let total = rest.iter().chain([&first]).map(|path| length(path)).sum();
        Ok(Self {
            header: reader.header().clone(),
            path: first,
            reader,
            count: rest.len() + 1,
            rest,
            before: 0,
            total,
        })
    }

    /// How many parts there were when they were opened.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Bytes of all parts, as they were when they were opened.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// How many of them have been read, or passed over.
    #[must_use]
    pub const fn done(&self) -> u64 {
        self.before + self.reader.offset()
    }

    /// The version of the format of the part that is being read.
    #[must_use]
    pub const fn format(&self) -> u32 {
        self.reader.format()
    }

    /// What is known of the run, from the first part.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The file that is being read.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Passes over what is before this time, as far as the index tells and in the first part; says whether there was any.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn skip_to(&mut self, time: u64) -> Result<bool, ReadError> {
        let mut skipped = false;
        while let Some(next) = self.open_next()? {
            if next.header().begins >= time {
                break;
            }
            self.before += length(&self.path);
            self.path = self.rest.pop().unwrap_or_default();
            self.reader = next;
            skipped = true;
        }
        Ok(self.reader.skip_to(time)? || skipped)
    }

    /// Opens the part that follows, which becomes the file that is being read if that cannot be done.
    fn open_next(&mut self) -> Result<Option<Reader<File>>, ReadError> {
        let Some(next) = self.rest.last() else {
            return Ok(None);
        };
        let reader = open(next).and_then(|reader| {
            if reader.header().id == self.header.id {
                return Ok(reader);
            }
            Err(ReadError::NoRecording(
                "it belongs to another recording than the part before it",
            ))
        });
        if reader.is_err() {
            self.path.clone_from(next);
        }
        reader.map(Some)
    }

    /// The next block of steps; `None` at the end of the last part.
    ///
    /// # Errors
    /// If no more can be read.
    pub fn next_block(&mut self) -> Result<Option<Block>, ReadError> {
        loop {
            if let Some(block) = self.reader.next_block()? {
                return Ok(Some(block));
            }
            let Some(mut next) = self.open_next()? else {
                return Ok(None);
            };
            self.before += self.reader.offset();
            self.path = self.rest.pop().unwrap_or_default();
            let missing = self.reader.header().part.saturating_add(1);
            let part = next.header().part;
            if missing < part {
                return Err(ReadError::PartsMissing {
                    first: missing,
                    last: part - 1,
                    next: self.path.clone(),
                });
            }
            if let Some(number) = self.reader.expected() {
                next.expect(number);
            }
            self.reader = next;
        }
    }

    /// The steps of the block that was read last.
    #[must_use]
    pub fn steps(&mut self) -> BlockSteps<'_> {
        self.reader.steps()
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn open(path: &Path) -> Result<Reader<File>, ReadError> {
    // A pipe would be waited for, and a directory can be opened.
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(ReadError::NoRecording("it is a directory"));
    }
    if !metadata.is_file() {
        return Err(ReadError::NoRecording(
            "it is no regular file; a recording is read from a file only",
        ));
    }
    Reader::new(File::open(path)?)
}
