//! What a run writes its recording on: it never waits. Steps add up to blocks, and a thread of its own packs and writes those;
//! if it does not keep up, records are left out, and counted.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use indexmap::IndexMap;
use rustc_hash::FxBuildHasher;

use super::{Header, Mark, Rotation, Step, Writer, parts};
use crate::{disguise::Disguise, kernel::keep_files, message::say, sink::escape};

/// Bytes of a block before it is packed.
const FULL: usize = 1 << 20;
/// Bytes of a block that cannot be handed over, and in which at least what is not a record finds room.
const OVERFULL: usize = 3 << 20;
/// How many blocks may wait for the thread that writes.
const WAITING: usize = 32;
/// After this time a block is handed over although it is not full: what a crash may cost.
const SOON: Duration = Duration::from_secs(1);
/// The same if there is no record in it.
const LATE: Duration = Duration::from_secs(10);
/// How often the file is made safe against a power cut, at most.
const SYNC: Duration = Duration::from_secs(1);

/// A block on its way.
#[derive(Debug)]
struct Sheet {
    mark: Mark,
    bytes: Vec<u8>,
    /// The names in it.
    names: Vec<(u64, String)>,
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

/// Takes the steps of a run.
#[derive(Debug)]
pub struct Tape {
    bytes: Vec<u8>,
    names: Vec<(u64, String)>,
    /// What was known where the block begins.
    mark: Mark,
    /// What is known now.
    known: Mark,
    /// Records were left out, and nothing says so yet.
    gap: bool,
    /// The turn that it is, if not even that found room: what comes belongs to it.
    turn: Option<Step<'static>>,
    disguise: Option<Disguise>,
    begun: Instant,
    out: Option<SyncSender<Sheet>>,
    thread: Option<JoinHandle<io::Result<Recorded>>>,
    /// Why the thread has ended before us.
    failure: Option<io::Error>,
}

impl Tape {
    /// Begins a recording. A file that is there stays untouched. The thread that writes begins with the privileges of the calling
    /// one, and keeps those it needs.
    ///
    /// # Errors
    /// If the file is there already, or cannot be made.
    pub fn begin(path: &Path, rotation: Option<Rotation>, header: Header) -> io::Result<Self> {
        let mark = Mark {
            now: header.start,
            ..Mark::default()
        };
        let mut file = Output::new(path, rotation, header)?;
        let (out, sheets) = sync_channel(WAITING);
        let thread = thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || {
                keep_files(rotation.is_some());
                file.write(&sheets)
            })?;
        Ok(Self {
            bytes: Vec::new(),
            names: Vec::new(),
            mark,
            known: mark,
            gap: false,
            turn: None,
            disguise: None,
            begun: Instant::now(),
            out: Some(out),
            thread: Some(thread),
            failure: None,
        })
    }

    /// Replaces what is secret in all steps before anything is written of them.
    #[must_use]
    pub fn with_disguise(mut self, disguise: Option<Disguise>) -> Self {
        self.disguise = disguise;
        self
    }

    /// Takes a step.
    pub fn take(&mut self, step: &Step<'_>) {
        if self.failure.is_some() {
            return;
        }
        let Some(mut disguise) = self.disguise.take() else {
            return self.put(step);
        };
        self.put(&disguise.step(step));
        self.disguise = Some(disguise);
    }

    fn put(&mut self, step: &Step<'_>) {
        if self.bytes.len() >= FULL && !self.hand_over() {
            let room = match step {
                Step::Record(_) => false,
                Step::End(_) => true,
                _ => self.bytes.len() < OVERFULL,
            };
            if !room {
                match *step {
                    Step::Losses {
                        now,
                        counters,
                        unread,
                    } => {
                        self.turn = Some(Step::Losses {
                            now,
                            counters,
                            unread,
                        });
                    }
                    // The next one says it, too.
                    Step::Settled(_) => {}
                    _ => {
                        self.known.unrecorded += 1;
                        self.gap = true;
                    }
                }
                return;
            }
        }
        if let Some(turn) = self.turn.take()
            && !matches!(step, Step::Losses { .. })
        {
            self.write(&turn);
        }
        self.write(step);
    }

    fn write(&mut self, step: &Step<'_>) {
        // As soon as there is room, so that nothing is concluded from silence; but not before it is known how late it was.
        let turn = matches!(step, Step::Losses { .. });
        if !turn {
            self.tell_gap();
        }
        match step {
            Step::Record(_) => self.known.records += 1,
            Step::Losses { now, counters, .. } => {
                self.known.now = *now;
                self.known.lost = counters.lost;
                self.known.not_found = counters.not_found;
                self.known.missed = counters.missed(0);
            }
            Step::Cgroup(id, path) => self.names.push((*id, (*path).to_owned())),
            _ => {}
        }
        step.write(&mut self.bytes);
        if turn {
            self.tell_gap();
        }
    }

    /// Tells what was left out, if nothing says so yet.
    fn tell_gap(&mut self) {
        if std::mem::take(&mut self.gap) {
            Step::Unrecorded(self.known.unrecorded).write(&mut self.bytes);
        }
    }

    /// Some time has passed.
    pub fn tick(&mut self) {
        let empty = self.known.records == self.mark.records;
        if self.begun.elapsed() >= if empty { LATE } else { SOON } {
            self.hand_over();
        }
    }

    /// Hands the block over, if that can be done at once.
    fn hand_over(&mut self) -> bool {
        let Some(out) = &self.out else {
            return false;
        };
        if self.bytes.is_empty() {
            return true;
        }
        let sheet = Sheet {
            mark: self.mark,
            bytes: std::mem::take(&mut self.bytes),
            names: std::mem::take(&mut self.names),
        };
        match out.try_send(sheet) {
            Ok(()) => {
                self.bytes.reserve(FULL + FULL / 8);
                self.mark = self.known;
                self.begun = Instant::now();
                true
            }
            Err(TrySendError::Full(sheet) | TrySendError::Disconnected(sheet)) => {
                self.bytes = sheet.bytes;
                self.names = sheet.names;
                false
            }
        }
    }

    /// Records that were left out so far.
    #[must_use]
    pub const fn unrecorded(&self) -> u64 {
        self.known.unrecorded
    }

    /// Whether nothing more can be written: [`Tape::failure`] says why.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.failure.is_some() || self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Why nothing more can be written, if that is so.
    pub fn failure(&mut self) -> Option<&io::Error> {
        if self.is_broken() && self.failure.is_none() {
            self.failure = self.join().err();
        }
        self.failure.as_ref()
    }

    /// Waits for the thread that writes.
    fn join(&mut self) -> io::Result<Recorded> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(written)) => written,
            Some(Err(_)) | None => Err(io::Error::other("the thread that writes is gone")),
        }
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn close(&mut self) -> io::Result<Recorded> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        self.tell_gap();
        let out = self.out.take();
        let sheet = Sheet {
            mark: self.mark,
            bytes: std::mem::take(&mut self.bytes),
            names: Vec::new(),
        };
        // If nobody takes it, the thread says why.
        let _ = out.map(|out| out.send(sheet));
        Ok(Recorded {
            records: self.known.records,
            unrecorded: self.known.unrecorded,
            ..self.join()?
        })
    }
}

/// The files of a recording.
struct Output {
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
    names: IndexMap<u64, String, FxBuildHasher>,
}

impl Output {
    fn new(path: &Path, rotation: Option<Rotation>, header: Header) -> io::Result<Self> {
        if rotation.is_some() && (path.exists() || !parts::all(path)?.is_empty()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut output = Self {
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
        output.begin_part()?;
        Ok(output)
    }

    /// Takes blocks until there are no more.
    fn write(&mut self, sheets: &Receiver<Sheet>) -> io::Result<Recorded> {
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

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{Receiver, sync_channel},
        time::Instant,
    };

    use super::{FULL, Mark, OVERFULL, Sheet, Step, Tape};
    use crate::{kernel::Counters, recording::Steps};

    /// Nobody takes its blocks.
    fn stuck() -> (Tape, Receiver<Sheet>) {
        let (out, sheets) = sync_channel(0);
        let tape = Tape {
            bytes: Vec::new(),
            names: Vec::new(),
            mark: Mark::default(),
            known: Mark::default(),
            gap: false,
            turn: None,
            disguise: None,
            begun: Instant::now(),
            out: Some(out),
            thread: None,
            failure: None,
        };
        (tape, sheets)
    }

    fn turn(now: u64) -> Step<'static> {
        Step::Losses {
            now,
            counters: Counters::default(),
            unread: 0,
        }
    }

    #[test]
    fn what_is_left_out_is_told_in_the_turn_in_which_it_is_known() {
        let (mut tape, _sheets) = stuck();
        let record = vec![1; 60_000];
        tape.take(&turn(1));
        while tape.unrecorded() == 0 {
            tape.take(&Step::Record(&record));
        }
        let full = tape.bytes.len();
        tape.take(&turn(2));
        tape.take(&Step::Record(&record));
        tape.take(&Step::Record(&record));
        tape.take(&Step::Settled(2));
        tape.take(&turn(3));
        tape.take(&Step::Settled(3));
        tape.take(&turn(4));
        tape.take(&Step::Record(&record));
        tape.take(&Step::End(4));
        let told: Result<Vec<_>, _> = Steps::new(&tape.bytes[full..]).collect();
        let expected = [
            turn(2),
            Step::Unrecorded(1),
            Step::Unrecorded(3),
            Step::Settled(2),
            turn(3),
            Step::Settled(3),
            turn(4),
            Step::Unrecorded(4),
            Step::End(4),
        ];
        assert_eq!(told, Ok(expected.to_vec()));
    }

    #[test]
    fn a_gap_takes_no_more_memory_than_there_is() {
        let (mut tape, _sheets) = stuck();
        for now in 0..200_000 {
            tape.take(&turn(now));
            tape.take(&Step::Record(&[1; 1000]));
            tape.take(&Step::Settled(now));
        }
        assert!((FULL..OVERFULL + 100).contains(&tape.bytes.len()));
        let told = Steps::new(&tape.bytes).filter_map(|step| match step {
            Ok(Step::Unrecorded(total)) => Some(total),
            _ => None,
        });
        assert!(told.count() > 1000);
        // What comes when there is room again belongs to the last turn, not to the last that is recorded.
        let left_out = tape.unrecorded();
        tape.bytes.clear();
        tape.take(&Step::Record(&[2]));
        let told: Result<Vec<_>, _> = Steps::new(&tape.bytes).collect();
        let expected = [
            turn(199_999),
            Step::Unrecorded(left_out),
            Step::Record(&[2]),
        ];
        assert_eq!(told, Ok(expected.to_vec()));
        assert!(left_out <= 200_000, "{left_out}");
    }
}
