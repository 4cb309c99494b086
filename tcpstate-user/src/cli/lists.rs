//! When the kernel's list of sockets is read: at the start, at the end, and again and again if nothing else tells of
//! minisockets.

use std::{future::pending, io, time::Duration};

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{live::warn, view::View};
use crate::{
    clock,
    kernel::{List, Progress, Reader},
    lifecycle::Round,
    message::say,
};

/// How often minisockets are looked for if nothing else tells of them.
const POLL: Duration = Duration::from_secs(1);

/// The reader of lists, and what it is at.
pub struct Lists {
    reader: Option<Reader>,
    reading: Option<Reading>,
    poll: Option<Interval>,
    /// Whether it is of use after the start.
    keep: bool,
}

/// A list that is being read, or waits to be understood.
struct Reading {
    list: List,
    began: u64,
    ended: Option<u64>,
    complete: bool,
    /// Sockets not found before it began.
    not_found: u64,
}

impl Lists {
    /// Reads with this reader, if there is one. `existing`: begin with the sockets that are there; `polls`: look for
    /// minisockets again and again; `keep`: look for them at the end.
    pub fn new(reader: Option<Reader>, existing: bool, polls: bool, keep: bool) -> Self {
        let poll = (polls && reader.is_some()).then(|| {
            let mut interval = interval(POLL);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        let mut lists = Self {
            reader,
            reading: None,
            keep: keep || poll.is_some(),
            poll,
        };
        if existing {
            lists.begin(List::All, 0);
        } else if !lists.keep {
            lists.reader = None;
        }
        lists
    }

    fn begin(&mut self, list: List, not_found: u64) {
        if let Some(reader) = &self.reader {
            let began = clock::monotonic_now();
            reader.read(list);
            self.reading = Some(Reading {
                list,
                began,
                ended: None,
                complete: true,
                not_found,
            });
        }
    }

    /// Waits for what comes next, if anything does. Nothing is lost if it is not waited for to the end.
    pub async fn step(&mut self, view: &mut View, not_found: u64) {
        match (&mut self.reading, &mut self.reader, &mut self.poll) {
            (Some(reading), Some(reader), _) if reading.ended.is_none() => {
                match reader.next().await {
                    Progress::Owners(owners) => view.begin_finding(owners),
                    Progress::Part => {}
                    Progress::End(missing) => {
                        reading.ended = Some(clock::monotonic_now());
                        reading.complete = missing.is_empty();
                        if reading.list == List::All {
                            missing.iter().for_each(warn);
                        }
                    }
                }
            }
            (None, Some(_), Some(poll)) => {
                poll.tick().await;
                self.begin(List::MiniSockets, not_found);
            }
            _ => pending().await,
        }
    }

    /// What came so far has been understood; `busy` if more waits. The list stands in order with the events: it ends where
    /// younger ones begin.
    pub fn settle(&mut self, view: &mut View, busy: bool, not_found: u64) -> io::Result<()> {
        let understood = |reading: &mut Reading| {
            let ended = reading.ended?;
            (!busy || view.time() > ended).then_some(ended)
        };
        let Some(ended) = self.reading.as_mut().and_then(understood) else {
            return Ok(());
        };
        let Some(reading) = self.reading.take() else {
            return Ok(());
        };
        if reading.list == List::All {
            let found = view.end_finding();
            say(format_args!(
                "{} there already",
                match found {
                    1 => "1 socket was".to_owned(),
                    many => format!("{many} sockets were"),
                }
            ));
        }
        if !self.keep {
            // Its privileges are given up with it.
            self.reader = None;
        }
        view.end_round(Round {
            began: reading.began,
            ended,
            complete: reading.complete && not_found == reading.not_found,
        })
    }

    /// Whether a list is to be read once more at the end: minisockets may have gone from FIN_WAIT2 to TIME_WAIT without an
    /// event. One that is still being read will do.
    pub fn begin_last(&mut self, not_found: u64) -> bool {
        if self.keep && self.reading.is_none() {
            self.begin(List::MiniSockets, not_found);
        }
        self.keep && self.is_reading()
    }

    /// Whether a list is being read, or waits to be understood.
    pub const fn is_reading(&self) -> bool {
        self.reading.is_some()
    }
}
