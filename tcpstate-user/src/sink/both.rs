//! Connections and transitions, each to a sink of its own.

use std::io;

use super::{Sink, Summary};
use crate::{
    analysis::{Connection, Report},
    lifecycle::Transition,
    loss::Loss,
};

/// Two sinks of one kind.
#[derive(Debug)]
pub struct Both<S> {
    /// Where connections go.
    pub connections: S,
    /// Where transitions go.
    pub transitions: S,
}

impl<S: Sink> Sink for Both<S> {
    fn transition(&mut self, transition: &Transition) -> io::Result<()> {
        self.transitions.transition(transition)
    }

    fn connection(&mut self, connection: &Connection) -> io::Result<()> {
        self.connections.connection(connection)
    }

    fn report(&mut self, _: &Report) -> io::Result<()> {
        Ok(())
    }

    fn loss(&mut self, loss: &Loss) -> io::Result<()> {
        self.connections.loss(loss)?;
        self.transitions.loss(loss)
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.connections.summary(summary)?;
        self.transitions.summary(summary)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.connections.flush()?;
        self.transitions.flush()
    }
}
