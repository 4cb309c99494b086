//! What is kept of each connection, and what an event costs with few and with many: the part right of the ring buffer, on its own.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tcpstate_common::{
    record::{CALLERS, RecordKind, TimeWaitRecord, TransitionRecord, flags},
    state::TcpState::{self, Close, Established, FinWait1, FinWait2, SynSent, TimeWait},
};
use tcpstate_user::{
    event::Event,
    lifecycle::{Callers, Lifecycle},
};
use zerocopy::IntoBytes as _;

use crate::{bench::Bench, figures::number, interrupt};

/// The system's allocator, counting.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
const MS: u64 = 1_000_000;
/// A jiffy of the made-up machine.
const TICK: u64 = 4 * MS;

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
        open(&mut lifecycle, cookie)?;
    }
    let bytes = number((BYTES.load(Ordering::Relaxed) - before) as u64);
    let began = Instant::now();
    for cookie in 1..=rounds {
        // In no order that a cache could follow; each is there, for it came `connections` before.
        let oldest = cookie;
        let time = (connections + cookie) * MS;
        send(&mut lifecycle, &record(oldest, time, Established, Close))?;
        open(&mut lifecycle, connections + cookie)?;
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
        open(&mut lifecycle, cookie)?;
        send(
            &mut lifecycle,
            &owned(record(cookie, time, Established, FinWait1)),
        )?;
        send(&mut lifecycle, &record(cookie, time, FinWait1, FinWait2))?;
        let armed = armed(cookie, time);
        let event = Event::decode(armed.as_bytes())
            .ok()
            .context("a record is refused")?;
        lifecycle.event(event, |_| ());
        send(&mut lifecycle, &record(cookie, time, FinWait2, Close))?;
    }
    let bytes = number((BYTES.load(Ordering::Relaxed) - before) as u64);
    Ok(bytes / number(connections))
}

fn open(lifecycle: &mut Lifecycle, cookie: u64) -> Result<()> {
    let time = cookie * MS;
    send(lifecycle, &owned(record(cookie, time, Close, SynSent)))?;
    send(lifecycle, &record(cookie, time + 1, SynSent, Established))
}

fn send(lifecycle: &mut Lifecycle, record: &TransitionRecord) -> Result<()> {
    let event = Event::decode(record.as_bytes())
        .ok()
        .context("a record is refused")?;
    lifecycle.event(event, |transition| {
        std::hint::black_box(transition);
    });
    Ok(())
}

fn record(cookie: u64, time: u64, old: TcpState, new: TcpState) -> TransitionRecord {
    TransitionRecord {
        kind: RecordKind::Transition as u8,
        old: old as u8,
        new: new as u8,
        flags: 0,
        protocol: 6,
        family: 2,
        time,
        cookie,
        socket: 0xffff_8880_0000_0000 + cookie * 0x800,
        listener_cookie: 0,
        listener_socket: 0,
        netns_cookie: 1,
        cgroup: 42,
        laddr: Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets(),
        raddr: Ipv4Addr::new(10, 0, 0, 2).to_ipv6_mapped().octets(),
        lport: 40_000,
        rport: 80,
        netns: 4_026_531_840,
        error: 0,
        uid: 1000,
        pid: 0,
        tid: 0,
        comm: [0; 16],
        bytes_acked: 0,
        bytes_received: 0,
        retransmits: 0,
        srtt_us: 0,
    }
}

/// The same, in connect() or close() of a process.
fn owned(record: TransitionRecord) -> TransitionRecord {
    let released = record.new != SynSent as u8;
    let file = if released { flags::FILE_RELEASED } else { 0 };
    TransitionRecord {
        flags: flags::OWNED | flags::FILE_KNOWN | file,
        pid: 7,
        tid: 8,
        comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
        ..record
    }
}

/// A minisocket's birth in TIME_WAIT.
fn armed(cookie: u64, time: u64) -> TimeWaitRecord {
    let full = record(cookie, time, FinWait2, Close);
    TimeWaitRecord {
        kind: RecordKind::TimeWaitArmed as u8,
        substate: TimeWait as u8,
        family: 2,
        cpu: 0,
        time,
        cookie,
        minisocket: 0xffff_8881_0000_0000 + cookie * 0x100,
        socket: 0,
        netns_cookie: 1,
        ticks: 4_294_892_296 + time / TICK,
        due: 4_294_892_296 + (time + 60_000 * MS) / TICK,
        laddr: full.laddr,
        raddr: full.raddr,
        lport: full.lport,
        rport: full.rport,
        netns: full.netns,
        callers: [0; CALLERS],
    }
}
