//! What a recorder never writes, although it is well-formed. A view and `info` ask here, so that both say the same of a file.

use super::{NoStep, Step};

/// The times of a run, step by step.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    begins: u64,
    now: u64,
    /// When the run ended, if it has.
    end: Option<u64>,
}

impl Course {
    /// What is wrong with a record whose event is younger than [`Course::now`].
    pub const YOUNGER: &'static str = "an event is younger than the turn it is in";

    /// Of what begins then.
    #[must_use]
    pub const fn new(begins: u64) -> Self {
        Self {
            begins,
            now: begins,
            end: None,
        }
    }

    /// The time of the turn (nanoseconds of `CLOCK_MONOTONIC`).
    #[must_use]
    pub const fn now(&self) -> u64 {
        self.now
    }

    /// The first block goes on with the turn of this time.
    ///
    /// # Errors
    /// What is wrong with that.
    pub const fn begin(&mut self, now: u64) -> Result<(), &'static str> {
        if now < self.begins {
            return Err("it is of a time before the recording begins");
        }
        self.now = now;
        Ok(())
    }

    /// The next step is a record.
    ///
    /// # Errors
    /// If a recorder cannot have written one.
    pub const fn record(&self) -> Result<(), &'static str> {
        // Of what is left, only how it ended is told.
        match self.end {
            Some(_) => Err("something happens after the end"),
            None => Ok(()),
        }
    }

    /// Takes the next step, and gives it back if a recorder may have written it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take<'a>(&mut self, step: Result<Step<'a>, NoStep>) -> Result<Step<'a>, &'static str> {
        let Ok(step) = step else {
            return Err("there is something in a block that is no step");
        };
        match step {
            Step::Record(_) => self.record().map(|()| step),
            Step::Losses { now, .. } if now < self.now => {
                Err("a turn is earlier than the one before it")
            }
            Step::Losses { now, .. } => {
                self.now = now;
                Ok(step)
            }
            Step::End(_) if self.end.is_some() => Err("the run ends twice"),
            Step::End(at) if at < self.begins || at > self.now => {
                Err("the run ends at another time than its last turn")
            }
            Step::End(at) => {
                self.end = Some(at);
                Ok(step)
            }
            step => Ok(step),
        }
    }
}
