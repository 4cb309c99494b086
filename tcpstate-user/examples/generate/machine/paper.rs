//! Writes records as a run does: in turns, in blocks.

use std::io::{self, Write};

use tcpstate_user::{
    kernel::{Counters, Hook, TimeWaitHook},
    lifecycle::Callers,
    recording::{Header, LAYOUT, Mark, Step, Writer},
    sink::OtherProtocols,
};

use super::plots::SYMBOLS;

/// When the run begins.
pub const START: u64 = 1_000_000_000_000;
/// How long a turn is.
const TURN: u64 = 50_000_000;
/// Bytes of a block.
const FULL: usize = 1 << 20;

pub struct Paper<W> {
    writer: Writer<W>,
    block: Vec<u8>,
    /// What was known where the block begins, and what is now.
    begun: Mark,
    known: Mark,
    /// When the turn ends.
    turn: u64,
}

impl<W: Write> Paper<W> {
    pub fn new(out: W, seed: u64) -> io::Result<Self> {
        let header = Header {
            tcpstate: env!("CARGO_PKG_VERSION").to_owned(),
            layout: LAYOUT,
            kernel: "6.18.0".to_owned(),
            host: "generated".to_owned(),
            hook: Hook::BtfTracepoint,
            timewait: Some(TimeWaitHook::Fentry),
            calls: false,
            missing: Vec::new(),
            filter: String::new(),
            settings: Vec::new(),
            start: START,
            zero: 1_795_305_600_000_000_000,
            boot: 1_795_305_600_000_000_000,
            tick: 4_000_000,
            callers: Callers::parse(SYMBOLS),
            id: seed,
            part: 1,
            begins: START,
            anonymized: Vec::new(),
        };
        let mark = Mark {
            now: START,
            ..Mark::default()
        };
        Ok(Self {
            writer: Writer::new(out, &header)?,
            block: Vec::with_capacity(FULL + FULL / 8),
            begun: mark,
            known: mark,
            turn: START,
        })
    }

    pub fn record(&mut self, time: u64, bytes: &[u8]) -> io::Result<()> {
        if time > self.turn {
            if self.turn > START {
                self.step(&Step::Settled(self.turn))?;
            }
            self.turn += (time - self.turn).next_multiple_of(TURN);
            self.losses(self.turn)?;
        }
        self.known.records += 1;
        self.step(&Step::Record(bytes))
    }

    pub fn step(&mut self, step: &Step<'_>) -> io::Result<()> {
        if self.block.len() >= FULL {
            self.end_block()?;
        }
        step.write(&mut self.block);
        Ok(())
    }

    fn losses(&mut self, now: u64) -> io::Result<()> {
        self.known.now = now;
        let counters = Counters {
            lost: 0,
            not_found: 0,
            passed_over: 0,
            second_looks: 0,
            unobserved: 0,
            other_protocols: OtherProtocols::default(),
        };
        self.step(&Step::Losses {
            now,
            counters,
            unread: 0,
        })
    }

    fn end_block(&mut self) -> io::Result<()> {
        self.writer.steps(&self.begun, &self.block)?;
        self.block.clear();
        self.known.number += 1;
        self.begun = self.known;
        Ok(())
    }

    /// The run ends.
    pub fn end(mut self) -> io::Result<W> {
        let end = self.turn;
        self.losses(end)?;
        self.step(&Step::End(end))?;
        self.losses(end)?;
        self.end_block()?;
        Ok(self.writer.finish(&self.known)?.0)
    }
}
