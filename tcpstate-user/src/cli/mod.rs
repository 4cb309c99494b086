//! The command line: parsed low (`args.rs`), resolved and checked before anything is attached, then run.

mod ahead;
mod args;
mod countdown;
mod doctor;
mod export;
mod info;
mod interrupt;
mod lists;
mod live;
mod names;
mod output;
mod periodic;
mod probe;
mod progress;
mod record;
mod replay;
mod shape;
mod states;
mod terminal;
mod timewait;
mod values;
mod view;
mod window;
mod zone;

use std::{env, ffi::OsString, io, process::ExitCode};

use clap::Parser;

use crate::message::say;
use args::{Args, Command};
use shape::Shape;

/// Nothing matched, as grep has it.
const NOTHING: u8 = 1;
/// Something bad was found.
const FOUND: u8 = 1;
/// It could not be done.
const FAILED: u8 = 2;
/// A signal came first, as shells have it for SIGINT.
const INTERRUPTED: u8 = 130;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It did its work.
    Done,
    /// It did its work and found nothing to show.
    Nothing,
    /// It did its work and found something bad.
    Found,
    /// A signal came before its work was done.
    Interrupted,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    // A file that may not grow (`ulimit -f`) is an error of the write, which says which file it is.
    // SAFETY: nothing of ours runs in a handler: the signal is ignored.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    match CommandLine::parse(env::args_os()) {
        Ok(command) => command.run(),
        Err(code) => code,
    }
}

/// A command line that is understood.
#[derive(Debug)]
pub struct CommandLine(Args);

impl CommandLine {
    /// Understands these words, of which the first is the name of the program.
    ///
    /// # Errors
    /// What the process should end with, if they are none, or ask for help; that has been said then.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, ExitCode> {
        Args::try_parse_from(words).map(Self).map_err(|error| {
            // Help asked for is no failure; a closed pipe is none either.
            let _ = error.print();
            if error.use_stderr() {
                ExitCode::from(FAILED)
            } else {
                ExitCode::SUCCESS
            }
        })
    }

    /// Does what it says. The calling thread has fewer privileges afterwards.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        let result = match &self.0.command {
            Command::Trace(trace) => live::run(&trace.live, Shape::Transitions),
            Command::Conns(conns) => {
                let running = conns.running;
                live::run(&conns.live, Shape::Connections { running })
            }
            Command::States(states) => states::states(states),
            Command::Timewait(waits) => timewait::timewait(waits),
            Command::Closers(closers) => periodic::closers(closers),
            Command::Hist(hist) => periodic::hist(hist),
            Command::Doctor(doctor) => doctor::run(doctor),
            Command::Record(record) => record::run(record),
            Command::Export(export) => export::run(export),
            Command::Info(info) => info::run(info),
            Command::Probe(probe) => probe::run(probe),
        };
        match result {
            Ok(Outcome::Done) => ExitCode::SUCCESS,
            Ok(Outcome::Nothing) => ExitCode::from(NOTHING),
            Ok(Outcome::Found) => ExitCode::from(FOUND),
            Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
            Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
            Err(error) => {
                say(format_args!("{error:#}"));
                ExitCode::from(FAILED)
            }
        }
    }
}

/// The reader of our output went away: `tcpstate trace | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
