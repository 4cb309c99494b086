//! The files that a recording is written to: one, or parts in rotation.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use hashbrown::DefaultHashBuilder;
use indexmap::IndexMap;

use super::{Header, Mark, Rotation, Step, Writer, parts};
use crate::{message::say, sink::escape};

/// Bytes of a block before it is packed.
pub(super) const FULL: usize = 1 << 20;
/// How often the file is made safe against a power cut, at most.
const SYNC: Duration = Duration::from_secs(1);

/// A block on its way.
#[derive(Debug)]
pub(super) struct Sheet {
    pub(super) mark: Mark,
    pub(super) bytes: Vec<u8>,
    /// The names in it.
    pub(super) names: Vec<(u64, String)>,
}

/// What became of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Bytes written, in all parts.
    pub bytes: u64,
    /// Files written, those that were removed included.
    pub parts: u32,
    /// Those that are left.
    pub left: u32,
    /// Records written.
    pub records: u64,
    /// Records left out because the writing did not keep up.
    pub unrecorded: u64,
    /// The first file that had lost its name when it was ended.
    pub astray: Option<(PathBuf, Astray)>,
}

/// A file that somebody else has taken its name from while it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Astray {
    /// It has another name.
    Moved,
    /// It has none, and is gone with its end.
    Removed,
}

impl Astray {
    /// Whether the file that is open is still the one with this name. What may not be looked at, may be there.
    fn of(file: &File, path: &Path) -> Option<Self> {
        let open = file.metadata().ok()?;
        let same = match fs::symlink_metadata(path) {
            Ok(there) => (there.dev(), there.ino()) == (open.dev(), open.ino()),
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ),
        };
        (!same).then_some(match open.nlink() {
            0 => Self::Removed,
            _ => Self::Moved,
        })
    }

    /// What happened, for people.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::Moved => "the file was moved away while it was written",
            Self::Removed => "the file was removed while it was written",
        }
    }
}

/// The files of a recording.
pub(super) struct Files {
    path: PathBuf,
    rotation: Option<Rotation>,
    header: Header,
    writer: Option<Writer<File>>,
    /// Bytes of the parts before this one.
    bytes: u64,
    /// The parts that there are, oldest first.
    parts: VecDeque<PathBuf>,
    /// Number of the next block.
    number: u64,
    synced: Instant,
    /// That a file has lost its name was said.
    warned: bool,
    /// See [`Recorded::astray`].
    astray: Option<(PathBuf, Astray)>,
    names: IndexMap<u64, String, DefaultHashBuilder>,
}

impl Files {
    pub(super) fn new(path: &Path, rotation: Option<Rotation>, header: Header) -> io::Result<Self> {
        if rotation.is_some() && (path.exists() || !parts::all(path)?.is_empty()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut files = Self {
            path: path.to_owned(),
            rotation,
            header,
            writer: None,
            bytes: 0,
            parts: VecDeque::new(),
            number: 0,
            synced: Instant::now(),
            warned: false,
            astray: None,
            names: IndexMap::default(),
        };
        files.begin_part()?;
        Ok(files)
    }

    /// Takes blocks until there are no more.
    pub(super) fn write(&mut self, sheets: &Receiver<Sheet>) -> io::Result<Recorded> {
        let mut last = Mark::default();
        for sheet in sheets {
            if self.is_full() {
                self.end_part(&sheet.mark)?;
                self.header.part += 1;
                self.header.begins = sheet.mark.now;
                self.begin_part()?;
                self.repeat_names(&sheet.mark)?;
            }
            self.block(&sheet.mark, &sheet.bytes)?;
            last = sheet.mark;
            for (id, path) in sheet.names {
                self.remember(id, path);
            }
            if self.synced.elapsed() >= SYNC {
                self.sync()?;
            }
        }
        self.end_part(&last)?;
        let left = self.parts.iter();
        let left = left.filter(|path| path.try_exists().unwrap_or(true));
        Ok(Recorded {
            bytes: self.bytes,
            parts: self.header.part,
            left: u32::try_from(left.count()).unwrap_or(u32::MAX),
            records: 0,
            unrecorded: 0,
            astray: self.astray.take(),
        })
    }

    fn is_full(&self) -> bool {
        let written = self.writer.as_ref().map_or(0, Writer::written);
        self.rotation
            .is_some_and(|rotation| written >= rotation.bytes)
    }

    fn begin_part(&mut self) -> io::Result<()> {
        let path = match self.rotation {
            Some(_) => parts::part_name(&self.path, self.header.part),
            None => self.path.clone(),
        };
        // Who talked to whom is nobody else's business.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        self.writer = Some(Writer::new(file, &self.header)?);
        self.parts.push_back(path);
        while let Some(rotation) = self.rotation
            && self.parts.len() > rotation.keep.max(1) as usize
            && let Some(oldest) = self.parts.pop_front()
        {
            match fs::remove_file(oldest) {
                // Somebody else was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    fn end_part(&mut self, mark: &Mark) -> io::Result<()> {
        if let Some(writer) = self.writer.take() {
            let mark = Mark {
                number: self.number,
                ..*mark
            };
            let (file, bytes) = writer.finish(&mark)?;
            file.sync_all()?;
            self.bytes += bytes;
            if self.astray.is_none()
                && let Some(path) = self.parts.back()
            {
                self.astray = Astray::of(&file, path).map(|astray| (path.clone(), astray));
            }
        }
        Ok(())
    }

    fn block(&mut self, mark: &Mark, bytes: &[u8]) -> io::Result<()> {
        let mark = Mark {
            number: self.number,
            ..*mark
        };
        self.number += 1;
        match &mut self.writer {
            Some(writer) => writer.steps(&mark, bytes),
            None => Ok(()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(writer) = &self.writer {
            writer.get_ref().sync_data()?;
            if !self.warned
                && let Some(path) = self.parts.back()
                && let Some(astray) = Astray::of(writer.get_ref(), path)
            {
                self.warned = true;
                say(format_args!(
                    "warning: {}: {}; the recording goes on in it",
                    escape::path(path),
                    astray.what()
                ));
            }
        }
        self.synced = Instant::now();
        Ok(())
    }

    /// The names of many cgroups that came and went are forgotten at once, as in the lifecycle.
    fn remember(&mut self, id: u64, path: String) {
        const LIMIT: usize = 65_536;
        if self.names.len() >= LIMIT {
            self.names.clear();
        }
        self.names.insert(id, path);
    }

    /// A part can be read without those before it.
    fn repeat_names(&mut self, mark: &Mark) -> io::Result<()> {
        let names = std::mem::take(&mut self.names);
        let mut bytes = Vec::new();
        for (id, path) in &names {
            Step::Cgroup(*id, path).write(&mut bytes);
            if bytes.len() >= FULL {
                self.block(mark, &bytes)?;
                bytes.clear();
            }
        }
        if !bytes.is_empty() {
            self.block(mark, &bytes)?;
        }
        self.names = names;
        Ok(())
    }
}
