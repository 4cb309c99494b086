//! What is kept of each connection, in bytes. A program of its own, because it counts every allocation.

#![expect(clippy::expect_used, reason = "a test stops where its set-up fails")]

#[path = "pure/allocator.rs"]
mod allocator;
#[path = "pure/records.rs"]
mod records;

use std::{sync::atomic::Ordering, time::Duration};

use tcpstate_common::{
    record::RecordKind,
    state::TcpState::{Close, Established, FinWait1, FinWait2, SynSent, TimeWait},
};
use tcpstate_user::{
    event::Event,
    lifecycle::{Callers, Lifecycle},
};
use zerocopy::IntoBytes as _;

use allocator::BYTES;
use records::{MS, TICK, event, owned, record, timer};

const LIMIT: usize = 1_000_000;
/// From few to many: the average is over all of these.
const STEPS: [u64; 10] = [
    1_000, 2_000, 5_000, 10_000, 20_000, 40_000, 70_000, 100_000, 150_000, 200_000,
];

/// Average over the steps of bytes for each connection, when `add` has added as many.
fn average(mut add: impl FnMut(&mut Lifecycle, u64)) -> usize {
    let before = BYTES.load(Ordering::Relaxed);
    let mut lifecycle =
        Lifecycle::new(LIMIT, MS).with_minisockets(Callers::default(), Duration::from_nanos(TICK));
    let mut sum = 0;
    let mut added = 0;
    for step in STEPS {
        for cookie in added + 1..=step {
            add(&mut lifecycle, cookie);
        }
        added = step;
        let kept = lifecycle.open() + lifecycle.minisockets();
        assert_eq!(kept as u64, step);
        sum += (BYTES.load(Ordering::Relaxed) - before) / kept;
    }
    sum / STEPS.len()
}

fn open(lifecycle: &mut Lifecycle, cookie: u64) {
    let time = cookie * MS;
    lifecycle.transition(&event(&owned(
        record(cookie, time, Close, SynSent),
        7,
        b"curl",
    )));
    lifecycle.transition(&event(&record(cookie, time + 1, SynSent, Established)));
}

fn close(lifecycle: &mut Lifecycle, cookie: u64) {
    let time = cookie * MS;
    open(lifecycle, cookie);
    lifecycle.transition(&event(&owned(
        record(cookie, time, Established, FinWait1),
        7,
        b"curl",
    )));
    lifecycle.transition(&event(&record(cookie, time, FinWait1, FinWait2)));
    let armed = timer(
        RecordKind::TimeWaitArmed,
        cookie,
        time,
        TimeWait,
        60_000 * MS,
    );
    let armed = Event::decode(armed.as_bytes()).expect("a good record");
    lifecycle.event(armed, |_| ());
    lifecycle.transition(&event(&record(cookie, time, FinWait2, Close)));
}

#[test]
fn a_million_connections_fit_into_what_was_promised() {
    let (connection, minisocket) = (average(open), average(close));
    println!("{connection} bytes for an open connection, {minisocket} for a TIME_WAIT");
    assert!(connection <= 256, "{connection}");
    assert!(minisocket <= 128, "{minisocket}");
}
