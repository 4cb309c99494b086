//! The gate: what cannot be decided yet waits, and comes through complete or not at all.

use tcpstate_common::{
    config::PortRange,
    record::{Call, TransitionRecord},
    state::TcpState,
};
use tcpstate_user::{
    event::{Event, TransitionEvent},
    filter::{Admitted, Filter, Gate},
};

use zerocopy::IntoBytes as _;

use crate::{
    records::{MS, event, record},
    scene::call,
};

const NOWHERE: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];

fn local_port(port: u16) -> Filter {
    Filter {
        local_ports: vec![PortRange {
            first: port,
            last: port,
        }],
        ..Filter::default()
    }
}

fn syn_sent(cookie: u64) -> TransitionEvent {
    let record = record(cookie, MS, TcpState::Close, TcpState::SynSent);
    event(&TransitionRecord { lport: 0, ..record })
}

fn established(cookie: u64) -> TransitionEvent {
    event(&record(
        cookie,
        2 * MS,
        TcpState::SynSent,
        TcpState::Established,
    ))
}

/// How many events come through, and how many of them are wanted.
fn admitted(gate: &mut Gate, filter: &Filter, event: &TransitionEvent) -> (usize, usize) {
    let Admitted { held, wanted, .. } = gate.admit(filter, event);
    let held = usize::from(held.is_some());
    (
        held + usize::from(wanted.is_some()),
        held + usize::from(wanted == Some(true)),
    )
}

#[test]
fn a_port_that_is_not_chosen_yet_is_waited_for() {
    let mut gate = Gate::default();
    let filter = local_port(40_000);
    assert_eq!(admitted(&mut gate, &filter, &syn_sent(1)), (0, 0));
    assert_eq!(gate.undecided(), 1);
    let Admitted { held, wanted, .. } = gate.admit(&filter, &established(1));
    let held = held.expect("the first event comes after all");
    assert_eq!(
        held.local.port, 40_000,
        "with the port that is known by now"
    );
    assert_eq!(held.new, TcpState::SynSent);
    assert_eq!(wanted, Some(true));
    assert_eq!(gate.undecided(), 0);
}

#[test]
fn another_port_lets_nothing_through() {
    let mut gate = Gate::default();
    let filter = local_port(1);
    assert_eq!(admitted(&mut gate, &filter, &syn_sent(1)), (0, 0));
    assert_eq!(admitted(&mut gate, &filter, &established(1)), (0, 0));
    assert_eq!(gate.undecided(), 0);
}

#[test]
fn a_connect_that_never_got_a_port_is_decided_by_its_end() {
    let mut gate = Gate::default();
    let filter = local_port(40_000);
    assert_eq!(admitted(&mut gate, &filter, &syn_sent(1)), (0, 0));
    let failed = record(1, 2 * MS, TcpState::SynSent, TcpState::Close);
    let failed = event(&TransitionRecord { lport: 0, ..failed });
    assert_eq!(admitted(&mut gate, &filter, &failed), (0, 0));
    assert_eq!(gate.undecided(), 0);
}

#[test]
fn a_new_life_of_the_socket_is_not_joined_to_the_old() {
    let mut gate = Gate::default();
    let filter = local_port(40_000);
    assert_eq!(admitted(&mut gate, &filter, &syn_sent(1)), (0, 0));
    assert_eq!(admitted(&mut gate, &filter, &syn_sent(1)), (0, 0));
    assert_eq!(admitted(&mut gate, &filter, &established(1)), (2, 2));
    assert_eq!(gate.undecided(), 1, "the first was not heard of again");
}

#[test]
fn listeners_come_through_unwanted() {
    let mut gate = Gate::default();
    let filter = Filter {
        remote_ports: vec![PortRange {
            first: 443,
            last: 443,
        }],
        ..Filter::default()
    };
    let listen = record(1, MS, TcpState::Close, TcpState::Listen);
    let listen = event(&TransitionRecord {
        rport: 0,
        raddr: NOWHERE,
        ..listen
    });
    assert_eq!(admitted(&mut gate, &filter, &listen), (1, 0));
    let child = record(2, MS, TcpState::Listen, TcpState::SynRecv);
    let child = event(&TransitionRecord {
        rport: 0,
        raddr: NOWHERE,
        ..child
    });
    assert_eq!(
        admitted(&mut gate, &filter, &child),
        (0, 0),
        "its peer is not known yet"
    );
}

#[test]
fn a_child_waits_for_its_own_cookie() {
    let mut gate = Gate::default();
    let filter = Filter::default();
    let child = record(2, MS, TcpState::Listen, TcpState::SynRecv);
    let child = event(&TransitionRecord {
        cookie: 0,
        rport: 0,
        raddr: NOWHERE,
        ..child
    });
    assert_eq!(admitted(&mut gate, &filter, &child), (0, 0));
    let next = event(&record(2, MS, TcpState::SynRecv, TcpState::Established));
    let accepted = call(Call::Accept, 2, MS, 7, b"server", 0);
    let Ok(Event::Call(accepted)) = Event::decode(accepted.as_bytes()) else {
        unreachable!("a call was written");
    };
    gate.accepted(&accepted);
    let admitted = gate.admit(&filter, &next);
    assert_eq!(
        admitted.accepted,
        Some(accepted),
        "with TCP Fast Open it may be"
    );
    let Admitted { held, wanted, .. } = admitted;
    let held = held.expect("the first event comes with the next");
    assert_eq!(
        (held.cookie, held.remote.port, held.new),
        (Some(2), 80, TcpState::SynRecv)
    );
    assert_eq!(wanted, Some(true));
}

#[test]
fn the_waiting_room_is_bounded_and_counts_who_had_to_leave() {
    let mut gate = Gate::default();
    let filter = local_port(40_000);
    for cookie in 1..=70_000 {
        assert_eq!(admitted(&mut gate, &filter, &syn_sent(cookie)), (0, 0));
    }
    assert_eq!(gate.undecided(), 70_000);
    let through = (1..=70_000).map(|cookie| admitted(&mut gate, &filter, &established(cookie)).0);
    assert_eq!(
        through.sum::<usize>(),
        70_000 + 65_536,
        "those who had to leave lost their first event only"
    );
    assert_eq!(gate.undecided(), 70_000 - 65_536);
}

#[test]
fn the_kernel_gets_what_it_can_decide() {
    use tcpstate_common::config::KernelFilter;
    let nothing = Filter::default().for_kernel();
    assert_eq!(nothing, KernelFilter::all(6));
    let filter = Filter {
        networks: vec![
            "10.0.0.0/8".parse().expect("a network"),
            "::/0".parse().expect("a network"),
        ],
        local_ports: (1..=9)
            .map(|port| PortRange {
                first: port,
                last: port,
            })
            .collect(),
        any_protocol: true,
        ..Filter::default()
    };
    let kernel = filter.for_kernel();
    assert_eq!(kernel.protocol, KernelFilter::ANY_PROTOCOL);
    assert_eq!(
        kernel.local_port_count, 0,
        "more than it holds: decided in user space"
    );
    assert_eq!(kernel.prefix_count, 2);
    let bytes = |words: [u64; 2]| [words[0].to_ne_bytes(), words[1].to_ne_bytes()].concat();
    assert_eq!(
        bytes(kernel.prefixes[0].address),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 0]
    );
    let mask = [[255; 13].as_slice(), &[0; 3]].concat();
    assert_eq!(bytes(kernel.prefixes[0].mask), mask);
    assert_eq!(kernel.prefixes[1].mask, [0; 2]);
}
