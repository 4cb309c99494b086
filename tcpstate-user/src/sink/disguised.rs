//! What may be given away, to another sink.

use std::io;

use super::{Sink, Summary};
use crate::{
    analysis::{Connection, Report},
    disguise::Disguise,
    lifecycle::Transition,
    loss::Loss,
};

/// Replaces what is secret before it comes to a sink.
#[expect(missing_debug_implementations, reason = "neither of the two has one")]
pub struct Disguised {
    sink: Box<dyn Sink>,
    disguise: Disguise,
}

impl Disguised {
    /// Before this sink.
    #[must_use]
    pub fn new(sink: Box<dyn Sink>, disguise: Disguise) -> Self {
        Self { sink, disguise }
    }
}

impl Sink for Disguised {
    fn transition(&mut self, transition: &Transition) -> io::Result<()> {
        self.sink.transition(&self.disguise.transition(transition))
    }

    fn connection(&mut self, connection: &Connection) -> io::Result<()> {
        self.sink.connection(&self.disguise.connection(connection))
    }

    /// A report has names in its groups: none is passed on.
    fn report(&mut self, _: &Report) -> io::Result<()> {
        Ok(())
    }

    fn loss(&mut self, loss: &Loss) -> io::Result<()> {
        self.sink.loss(loss)
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.sink.summary(summary)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
