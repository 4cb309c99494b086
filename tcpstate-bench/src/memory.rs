//! What is kept of each connection, and what an event costs with few and with many: the part right of the ring buffer, on its own.

#[path = "../../tcpstate-user/tests/pure/allocator.rs"]
mod allocator;
/// Records as the tests write them.
#[path = "../../tcpstate-user/tests/pure/records.rs"]
mod records;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tcpstate_common::{
    record::{RecordKind, TransitionRecord},
    state::TcpState::{Close, Established, FinWait1, FinWait2, SynSent, TimeWait},
};
use tcpstate_user::{
    event::Event,
    lifecycle::{Callers, Lifecycle},
};
use zerocopy::IntoBytes as _;

use crate::{bench::Bench, figures::number, interrupt};
use allocator::BYTES;
use records::{MS, TICK, event, owned, record, timer};

/// What came out for one number of connections.
#[derive(Clone, Debug)]
pub struct Kept {
    pub connections: u64,
    /// Bytes for each open connection.
    pub open: f64,
    /// Bytes for each TIME_WAIT.
    pub time_wait: f64,
    /// Nanoseconds for an event when so many are open, and one ends for each that begins.
    pub event: f64,
}

const LIMIT: usize = 1_000_000;

pub fn measure(bench: &Bench) -> Result<Vec<Kept>> {
    let mut rows = Vec::new();
    for connections in [1_000, 10_000, 100_000, 1_000_000] {
        interrupt::check()?;
        let rounds = if bench.quick { 20_000 } else { 500_000 };
        let (open, event) = opened(connections, rounds)?;
        let time_wait = closed(connections)?;
        bench.say(&format!(
            "memory: {connections} connections: {open:.0} bytes each, {time_wait:.0} for a TIME_WAIT, {event:.0} ns an event"
        ));
        rows.push(Kept {
            connections,
            open,
            time_wait,
            event,
        });
    }
    Ok(rows)
}

fn lifecycle() -> Lifecycle {
    Lifecycle::new(LIMIT, MS).with_minisockets(Callers::default(), Duration::from_nanos(TICK))
}

/// Bytes each, and nanoseconds for each event of the connections that then come and go.
fn opened(connections: u64, rounds: u64) -> Result<(f64, f64)> {
    let before = BYTES.load(Ordering::Relaxed);
    let mut lifecycle = lifecycle();
    for cookie in 1..=connections {
        open(&mut lifecycle, cookie);
    }
    let bytes = number((BYTES.load(Ordering::Relaxed) - before) as u64);
    let began = Instant::now();
    for cookie in 1..=rounds {
        // In no order that a cache could follow; each is there, for it came `connections` before.
        let oldest = cookie;
        let time = (connections + cookie) * MS;
        send(&mut lifecycle, &record(oldest, time, Established, Close));
        open(&mut lifecycle, connections + cookie);
    }
    let nanoseconds = u64::try_from(began.elapsed().as_nanos())?;
    Ok((
        bytes / number(connections),
        number(nanoseconds) / number(3 * rounds),
    ))
}

/// Bytes for each that has come to TIME_WAIT.
fn closed(connections: u64) -> Result<f64> {
    let before = BYTES.load(Ordering::Relaxed);
    let mut lifecycle = lifecycle();
    for cookie in 1..=connections {
        let time = cookie * MS;
        open(&mut lifecycle, cookie);
        send(
            &mut lifecycle,
            &owned(record(cookie, time, Established, FinWait1), 7, b"curl"),
        );
        send(&mut lifecycle, &record(cookie, time, FinWait1, FinWait2));
        let armed = timer(
            RecordKind::TimeWaitArmed,
            cookie,
            time,
            TimeWait,
            60_000 * MS,
        );
        let event = Event::decode(armed.as_bytes())
            .ok()
            .context("a record is refused")?;
        lifecycle.event(event, |_| ());
        send(&mut lifecycle, &record(cookie, time, FinWait2, Close));
    }
    let bytes = number((BYTES.load(Ordering::Relaxed) - before) as u64);
    Ok(bytes / number(connections))
}

fn open(lifecycle: &mut Lifecycle, cookie: u64) {
    let time = cookie * MS;
    send(
        lifecycle,
        &owned(record(cookie, time, Close, SynSent), 7, b"curl"),
    );
    send(lifecycle, &record(cookie, time + 1, SynSent, Established));
}

fn send(lifecycle: &mut Lifecycle, record: &TransitionRecord) {
    lifecycle.event(Event::Transition(event(record)), |transition| {
        std::hint::black_box(transition);
    });
}
