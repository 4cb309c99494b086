//! Hooks in place, and the reading end of the ring buffers.

use std::{future::poll_fn, os::fd::OwnedFd, sync::PoisonError, task::Poll};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Map, MapData, PerCpuArray};
use aya_log::EbpfLogger;
use tcpstate_common::record::Counter;
use tokio::io::unix::AsyncFd;

use super::{
    misses::Misses,
    plan::{Attached, Plan},
};
use crate::{message::say, sink::OtherProtocols};

/// Hooks in place: dropping it removes them.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Tracer {
    filling: Vec<AsyncFd<OwnedFd>>,
    counters: PerCpuArray<MapData, u64>,
    /// Of the program for transitions first.
    misses: Vec<Misses>,
    logger: Option<EbpfLogger<Messages>>,
    start: u64,
    attached: Attached,
}

/// What the kernel side has counted, summed over the CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records that found the ring buffer full.
    pub lost: u64,
    /// Transitions that the kernel did not run our first program for.
    pub passed_over: u64,
    /// Transitions that our second program took instead.
    pub second_looks: u64,
    /// What the kernel did not run the observer of minisockets for.
    pub unobserved: u64,
    /// Sockets that were there before, and found the ring buffer full.
    pub not_found: u64,
    /// Transitions of protocols that were not asked for.
    pub other_protocols: OtherProtocols,
}

impl Counters {
    /// How many events nobody saw, at most: the kernel's counts are of all network namespaces, and of every timer. `repeated`
    /// is how often the second program took what the first had seen.
    #[must_use]
    pub const fn missed(&self, repeated: u64) -> u64 {
        let taken = self.second_looks.saturating_sub(repeated);
        let passed_over = self.passed_over.saturating_sub(taken);
        self.unobserved.saturating_add(passed_over)
    }
}

/// Messages of the kernel side, to standard error.
#[derive(Debug)]
struct Messages;

impl log::Log for Messages {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        say(format_args!("kernel side: {}", record.args()));
    }

    fn flush(&self) {}
}

impl Tracer {
    /// Reads from hooks that are in place. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the maps are not as they should be.
    pub fn new(attached: Attached) -> Result<Self> {
        let start = attached.start;
        let mut ebpf = attached.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let logger = EbpfLogger::init_with_logger(&mut ebpf, Messages).ok();
        let filling = attached.rings.watch();
        let filling = filling.context("cannot wait for the ring buffers")?;
        let counters = PerCpuArray::try_from(take_map(&mut ebpf, "COUNTERS")?)?;
        let misses = attached
            .plan
            .programs()
            .into_iter()
            .map(|program| Misses::of(&ebpf, program))
            .collect::<Result<_, _>>()
            .context("cannot see how often the kernel passes our programs over")?;
        drop(ebpf);
        Ok(Self {
            filling,
            counters,
            misses,
            logger,
            start,
            attached,
        })
    }

    /// How the hooks were chosen.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.attached.plan
    }

    /// When the hooks were in place (nanoseconds of `CLOCK_MONOTONIC`).
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Waits until the kernel side says that a ring buffer fills up. It says so only then: read them now and then as well.
    pub async fn filling(&self) {
        poll_fn(|context| {
            let mut filling = Poll::Pending;
            for ring in &self.filling {
                // An error would come from the event loop itself; then the interval of the reader is what is left.
                if let Poll::Ready(Ok(mut ready)) = ring.poll_read_ready(context) {
                    ready.clear_ready();
                    filling = Poll::Ready(());
                }
            }
            filling
        })
        .await;
    }

    /// Reads the records that were made until `now` (nanoseconds of `CLOCK_MONOTONIC`), in their order, until there are no more
    /// or `take` answers `false`. Says whether the rest has to wait for one that is being written, or is younger.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn read<E>(
        &mut self,
        now: u64,
        take: impl FnMut(&[u8]) -> Result<bool, E>,
    ) -> Result<bool, E> {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        self.attached.rings.read(now, take)
    }

    /// What the kernel side has counted.
    ///
    /// # Errors
    /// If a counter cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        let sum = |counter: Counter| -> Result<u64> {
            let values = self
                .counters
                .get(&(counter as u32), 0)
                .context("cannot read the counters")?;
            Ok(values.iter().sum())
        };
        // Before what the second program has counted: it does so later.
        let passed_over = self
            .misses
            .iter()
            .map(Misses::count)
            .collect::<Result<Vec<_>, _>>()
            .context("cannot read how often the kernel passes our programs over")?;
        let (first, others) = passed_over.split_first().unwrap_or((&0, &[]));
        Ok(Counters {
            passed_over: *first,
            second_looks: sum(Counter::SecondLook)?,
            unobserved: others.iter().sum(),
            lost: sum(Counter::LostTransition)?
                + sum(Counter::LostTimeWait)?
                + sum(Counter::LostCall)?,
            not_found: sum(Counter::LostSocket)?,
            other_protocols: OtherProtocols {
                mptcp: sum(Counter::OtherMptcp)?,
                sctp: sum(Counter::OtherSctp)?,
                other: sum(Counter::OtherProtocol)?,
            },
        })
    }
}

fn take_map(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .with_context(|| format!("the eBPF object has no map {name}"))
}
