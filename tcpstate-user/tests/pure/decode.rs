//! Decoding: whatever bytes come, the answer is an event or an error.

use proptest::prelude::*;
use tcpstate_common::{
    record::{Call, CallRecord, RecordKind, TimeWaitRecord, TransitionRecord, flags},
    state::TcpState,
};
use tcpstate_user::event::{CallStep, DecodeError, Event, Protocol, Via};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::{
    records::{MS, event, owned, record, timer},
    scene::call,
};

#[test]
fn every_truncation_is_an_error() {
    let record = record(1, MS, TcpState::Close, TcpState::SynSent);
    let bytes = record.as_bytes();
    assert_eq!(Event::decode(&[]), Err(DecodeError::Empty));
    for length in 1..bytes.len() {
        let error = DecodeError::Truncated {
            expected: bytes.len(),
            actual: length,
        };
        assert_eq!(Event::decode(&bytes[..length]), Err(error));
    }
    assert!(Event::decode(bytes).is_ok());
}

#[test]
fn what_is_no_number_of_ours_is_refused() {
    let good = record(1, MS, TcpState::Close, TcpState::SynSent);
    let decode = |record: TransitionRecord| Event::decode(record.as_bytes());
    assert_eq!(
        decode(TransitionRecord { kind: 0, ..good }),
        Err(DecodeError::UnknownKind(0))
    );
    assert_eq!(
        decode(TransitionRecord { kind: 200, ..good }),
        Err(DecodeError::UnknownKind(200))
    );
    assert_eq!(
        decode(TransitionRecord { old: 0, ..good }),
        Err(DecodeError::UnknownState(0))
    );
    assert_eq!(
        decode(TransitionRecord { new: 14, ..good }),
        Err(DecodeError::UnknownState(14))
    );
    assert_eq!(
        decode(TransitionRecord { family: 1, ..good }),
        Err(DecodeError::UnknownFamily(1))
    );
}

#[test]
fn calls_that_we_do_not_know_are_refused() {
    let bind = call(Call::Bind, 7, MS, 500, b"server", 443);
    let decode = |record: CallRecord| Event::decode(record.as_bytes());
    let Ok(Event::Call(event)) = decode(bind) else {
        unreachable!("a call was written");
    };
    let CallStep::BindFailed(Some(asked)) = event.step else {
        unreachable!("with its address");
    };
    assert_eq!(
        (asked.addr.to_string(), asked.port),
        ("10.0.0.1".into(), 443)
    );
    let unread = CallRecord { family: 0, ..bind };
    assert!(
        matches!(decode(unread), Ok(Event::Call(event)) if event.step == CallStep::BindFailed(None))
    );
    assert_eq!(
        decode(CallRecord { family: 1, ..bind }),
        Err(DecodeError::UnknownFamily(1))
    );
    for unknown in [0, 3, 255] {
        let record = CallRecord {
            call: unknown,
            ..bind
        };
        assert_eq!(decode(record), Err(DecodeError::UnknownCall(unknown)));
    }
    let accept = call(Call::Accept, 7, MS, 500, b"server", 0);
    assert!(matches!(decode(accept), Ok(Event::Call(event)) if event.process.via == Via::Accept));
}

#[test]
fn zero_means_unknown() {
    let unknown = TransitionRecord {
        cookie: 0,
        netns: 0,
        netns_cookie: 0,
        cgroup: 0,
        uid: u32::MAX,
        protocol: 999,
        ..record(1, MS, TcpState::Close, TcpState::SynSent)
    };
    let event = event(&unknown);
    assert_eq!(
        (event.cookie, event.netns, event.netns_cookie),
        (None, None, None)
    );
    assert_eq!((event.cgroup, event.uid, event.error), (None, None, None));
    assert_eq!(event.context, None);
    assert_eq!(event.protocol, Protocol::Other(999));
}

#[test]
fn the_call_is_told_from_the_socket() {
    use TcpState::{Close, CloseWait, Established, FinWait1, FinWait2, LastAck, Listen, SynSent};
    const ALIVE: u8 = flags::FILE_KNOWN;
    const RELEASED: u8 = flags::FILE_KNOWN | flags::FILE_RELEASED;
    const ORPHAN: u8 = flags::FILE_KNOWN | flags::NO_FILE;
    let via = |old, new, file| {
        let record = owned(record(1, MS, old, new), 7, b"x");
        let record = TransitionRecord {
            flags: flags::OWNED | file,
            ..record
        };
        event(&record).context.map(|context| context.via)
    };
    let destroyed = TransitionRecord {
        flags: flags::OWNED | ORPHAN,
        error: libc::ECONNABORTED,
        ..owned(record(1, MS, Established, Close), 7, b"ss")
    };
    assert_eq!(
        event(&destroyed).context,
        None,
        "`ss -K`, before it is accepted"
    );
    assert_eq!(via(Close, SynSent, ALIVE), Some(Via::Connect));
    assert_eq!(
        via(Close, SynSent, ORPHAN),
        Some(Via::Connect),
        "a socket of the kernel's own"
    );
    assert_eq!(via(Close, Listen, ALIVE), Some(Via::Listen));
    assert_eq!(via(Established, FinWait1, RELEASED), Some(Via::Close));
    assert_eq!(via(Established, FinWait1, ALIVE), Some(Via::Shutdown));
    assert_eq!(
        via(Established, FinWait1, 0),
        Some(Via::Syscall),
        "cannot be told"
    );
    assert_eq!(via(CloseWait, LastAck, ALIVE), Some(Via::Shutdown));
    assert_eq!(via(FinWait2, Close, RELEASED), Some(Via::Close));
    assert_eq!(
        via(FinWait2, Close, ORPHAN),
        None,
        "a packet, while somebody looks at the socket"
    );
    assert_eq!(
        via(Established, CloseWait, ALIVE),
        Some(Via::Syscall),
        "a FIN from the backlog"
    );
    assert_eq!(
        via(Listen, Close, ALIVE),
        Some(Via::Syscall),
        "shutdown(), or `ss -K`"
    );
}

#[test]
fn what_is_left_of_an_older_name_is_no_part_of_it() {
    let context = |comm: &[u8]| {
        event(&owned(
            record(1, MS, TcpState::Close, TcpState::SynSent),
            7,
            comm,
        ))
        .context
    };
    assert_eq!(context(b"bash\0onfig"), context(b"bash"));
}

#[test]
fn a_listener_has_no_peer_whatever_it_was_before() {
    let listen = event(&record(1, MS, TcpState::Close, TcpState::Listen));
    assert!(listen.remote.addr.is_unspecified() && listen.remote.port == 0);
}

#[test]
fn a_name_ends_at_the_first_zero() {
    let event = event(&owned(
        record(1, MS, TcpState::Close, TcpState::SynSent),
        7,
        b"ab\0cd",
    ));
    assert_eq!(
        event
            .context
            .map(|context| context.comm.to_str().into_owned()),
        Some("ab".into())
    );
}

#[test]
fn minisockets_are_in_fin_wait2_or_time_wait() {
    let good = timer(
        RecordKind::TimeWaitArmed,
        1,
        MS,
        TcpState::TimeWait,
        60_000 * MS,
    );
    let decode = |record: TimeWaitRecord| Event::decode(record.as_bytes());
    assert!(matches!(decode(good), Ok(Event::TimeWait(event)) if event.cookie == Some(1)));
    assert_eq!(
        decode(TimeWaitRecord {
            substate: 1,
            ..good
        }),
        Err(DecodeError::UnknownState(1))
    );
    assert_eq!(
        decode(TimeWaitRecord { family: 0, ..good }),
        Err(DecodeError::UnknownFamily(0))
    );
    let error = DecodeError::Truncated {
        expected: 168,
        actual: 167,
    };
    assert_eq!(Event::decode(&good.as_bytes()[..167]), Err(error));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Event::decode(&bytes);
    }

    #[test]
    fn random_records_never_panic(mut bytes in proptest::array::uniform32(any::<u8>()), tail in proptest::collection::vec(any::<u8>(), 104..140)) {
        bytes[0] = 1;
        let mut record = bytes.to_vec();
        record.extend(tail);
        if let Ok(Event::Transition(event)) = Event::decode(&record) {
            let raw = TransitionRecord::read_from_prefix(&record).expect("long enough").0;
            prop_assert_eq!(event.old as u8, raw.old);
            prop_assert_eq!(event.local.port, raw.lport);
        }
    }
}
