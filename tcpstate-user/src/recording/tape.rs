//! What a run writes its recording on: it never waits. Steps add up to blocks, and a thread of its own packs and writes those;
//! if it does not keep up, records are left out, and counted.

use std::{
    io,
    path::Path,
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Header, Mark, Rotation, Step,
    files::{FULL, Files, Recorded, Sheet},
};
use crate::{disguise::Disguise, kernel::keep_files};

/// Bytes of a block that cannot be handed over, and in which at least what is not a record finds room.
const OVERFULL: usize = 3 << 20;
/// How many blocks may wait for the thread that writes.
const WAITING: usize = 32;
/// After this time a block is handed over although it is not full: what a crash may cost.
const SOON: Duration = Duration::from_secs(1);
/// The same if there is no record in it.
const LATE: Duration = Duration::from_secs(10);

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
        let mut files = Files::new(path, rotation, header)?;
        let (out, sheets) = sync_channel(WAITING);
        let thread = thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || {
                keep_files(rotation.is_some());
                files.write(&sheets)
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
