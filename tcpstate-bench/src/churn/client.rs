//! The side that connects.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicU8, Ordering},
    time::Instant,
};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt::Linger,
};

use tcpstate_bench::Mode;

use crate::{Errors, MEASURED, OVER, count, link::Targets};

/// What took longer counts as this, in nanoseconds: ten minutes, as long as a run.
const LONGEST: u64 = 600_000_000_000;

/// What a client has done.
pub struct Done {
    /// Every connection, warm-up included.
    pub connections_all: u64,
    /// How long those took that were measured, in nanoseconds.
    pub latency: Histogram<u64>,
    /// What went wrong, warm-up included.
    pub errors: Errors,
}

impl Done {
    pub fn new() -> Result<Self> {
        Ok(Self {
            connections_all: 0,
            latency: Histogram::new_with_bounds(1, LONGEST, 2)
                .context("a histogram cannot be made")?,
            errors: Errors::new(),
        })
    }

    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.connections_all += other.connections_all;
        self.latency
            .add(&other.latency)
            .context("histograms do not add up")?;
        self.add_errors(&other.errors);
        Ok(())
    }

    pub fn add_errors(&mut self, errors: &Errors) {
        for (what, count) in errors {
            *self.errors.entry(what.clone()).or_default() += count;
        }
    }
}

/// One connection after the other, until it is over.
pub fn run(mut targets: Targets, mode: Mode, phase: &AtomicU8) -> Result<Done> {
    let mut done = Done::new()?;
    loop {
        let before = phase.load(Ordering::Relaxed);
        if before == OVER {
            return Ok(done);
        }
        let began = Instant::now();
        match once(targets.next(), mode) {
            Ok(()) => {
                done.connections_all += 1;
                if before == MEASURED && phase.load(Ordering::Relaxed) == MEASURED {
                    let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    done.latency.saturating_record(took);
                }
            }
            Err((call, error)) => count(&mut done.errors, call, error),
        }
    }
}

fn once(target: SockaddrIn, mode: Mode) -> Result<(), (&'static str, nix::Error)> {
    let socket: OwnedFd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|error| ("socket", error))?;
    if mode == Mode::Rst {
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&socket, Linger, &at_once).map_err(|error| ("setsockopt", error))?;
    }
    connect(socket.as_raw_fd(), &target).map_err(|error| ("connect", error))?;
    let mut byte = [0];
    // The byte: the server has accepted. Clients cannot run away from their servers so.
    nix::unistd::read(&socket, &mut byte).map_err(|error| ("read", error))?;
    if mode == Mode::ServerClose {
        // The end: the server has closed before we do.
        nix::unistd::read(&socket, &mut byte).map_err(|error| ("read of the end", error))?;
    }
    Ok(())
}
