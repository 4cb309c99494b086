//! CSV: one row a transition, the columns those of JSON. Losses and the summary are no rows: they go to standard error.

use std::io::{self, Write};

use super::{Sink, Summary, escape, json::Row};
use crate::{clock::Clock, lifecycle::Transition, loss::Loss};

/// Writes CSV.
#[derive(Debug)]
pub struct Csv<W: Write> {
    out: csv::Writer<W>,
    clock: Clock,
}

const HEADER: [&str; 25] = [
    "time",
    "cookie",
    "netns",
    "netns_cookie",
    "family",
    "protocol",
    "laddr",
    "lport",
    "raddr",
    "rport",
    "old",
    "new",
    "seconds",
    "bound",
    "minisocket",
    "reason",
    "pid",
    "comm",
    "via",
    "uid",
    "cgroup",
    "error",
    "tid",
    "cgroup_id",
    "damaged",
];

impl<W: Write> Csv<W> {
    /// Writes to `out`, beginning with the header.
    ///
    /// # Errors
    /// If the header cannot be written.
    pub fn new(out: W, clock: Clock) -> io::Result<Self> {
        let mut out = csv::WriterBuilder::new()
            .has_headers(false)
            .from_writer(out);
        out.write_record(HEADER)?;
        Ok(Self { out, clock })
    }
}

impl<W: Write> Sink for Csv<W> {
    fn transition(&mut self, transition: &Transition) -> io::Result<()> {
        let mut row = Row::new(transition, &self.clock);
        // A reader that goes line by line must not be led astray by a quoted newline.
        row.comm = row.comm.map(|comm| escape::text(&comm).into_owned().into());
        let cgroup = row.cgroup.map(|cgroup| escape::text(cgroup).into_owned());
        row.cgroup = cgroup.as_deref();
        Ok(self.out.serialize(row)?)
    }

    fn loss(&mut self, _: &Loss) -> io::Result<()> {
        Ok(())
    }

    fn summary(&mut self, _: &Summary) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
