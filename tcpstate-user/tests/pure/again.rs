//! A socket that is used again (connect() with `AF_UNSPEC` and another connect()) while its minisocket lives: one cookie has
//! two lives then. Every view says what it says of two sockets.

use tcpstate_common::{
    record::{RecordKind, TransitionRecord},
    state::TcpState::{
        Close, CloseWait, Established, FinWait1, FinWait2, LastAck, SynSent, TimeWait,
    },
};
use tcpstate_user::analysis::{Dimension, Scale, Table, Tally, Waits};

use crate::{
    doctor,
    records::{MS, owned, record, timer},
    reports::{Run, by, closers, hist},
    scene::{START, Sent, life},
    states::{leaks, states},
    waits,
};

/// A connection that ends in TIME_WAIT, and one of the same socket, or of another, that goes on when that is over.
fn used_again(again: u64, ends: bool) -> Vec<Sent> {
    let app = |record: TransitionRecord| match record.new {
        new if new == SynSent as u8 || new == FinWait1 as u8 => owned(record, 7, b"app"),
        _ => record,
    };
    let first = [
        (Close, 0),
        (SynSent, 0),
        (Established, 100),
        (FinWait1, 100),
        (FinWait2, 100),
    ];
    let mut all = life(5, 10, &first, app);
    let closed = START + 12 * MS;
    let left = 60_000 * MS;
    all.push(Sent::Timer(timer(
        RecordKind::TimeWaitArmed,
        5,
        closed,
        TimeWait,
        left,
    )));
    all.push(Sent::Transition(record(5, closed + 1_000, FinWait2, Close)));
    // The minisocket keeps the ends of the first.
    let other = |record: TransitionRecord| TransitionRecord {
        lport: 40_001,
        rport: 81,
        ..record
    };
    let second = [
        (Close, 0),
        (SynSent, 0),
        (Established, 100),
        (CloseWait, 100),
    ];
    all.extend(life(again, 20, &second, |record| other(app(record))));
    let expires = timer(RecordKind::TimeWaitExpired, 5, closed + left, TimeWait, 0);
    all.push(Sent::Timer(expires));
    if ends {
        let rest = [(CloseWait, 0), (LastAck, 250), (Close, 50)];
        all.extend(life(again, 70_000, &rest, |record| other(app(record))));
    }
    all
}

fn same<T: Tally + 'static>(view: impl Fn() -> T) -> Table {
    let report = |cookie, ends| {
        Run::new(view(), None)
            .report(&used_again(cookie, ends))
            .table
    };
    assert_eq!(report(5, true), report(6, true));
    let open = report(5, false);
    assert_eq!(open, report(6, false));
    open
}

#[test]
fn a_socket_used_again_counts_as_two() {
    let by = || by(&[Dimension::Process, Dimension::Service]);
    same(|| closers(by()));
    same(|| hist(by(), Scale::Logarithmic));
    same(|| Waits::new(waits::options(by(), "40000 40019", "0")));
    same(|| states(by()));
    let open = same(|| leaks(Some(by()), 0));
    assert_eq!(open.rows.len(), 2, "the one that is open, and the total");
}

#[test]
fn the_doctor_counts_two_as_well() {
    let seen = |cookie, ends| doctor::said(&used_again(cookie, ends));
    assert_eq!(seen(5, true), seen(6, true));
    assert_eq!(seen(5, false), seen(6, false));
}
