//! Events per second of what is right of the ring buffer: `cargo bench -p tcpstate-user`.

#![expect(
    clippy::expect_used,
    reason = "a benchmark stops where its set-up fails"
)]

use std::{fs::File, io::BufWriter, net::Ipv4Addr};

use divan::{Bencher, counter::ItemsCount};
use jiff::tz::TimeZone;
use tcpstate_common::{
    record::{RecordKind, TransitionRecord, flags},
    state::TcpState::{
        self, Close, CloseWait, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv, SynSent,
    },
};
use tcpstate_user::{
    analysis::{By, Closers, Dimension, Hist, HistOptions, Order, Scale, Tally},
    clock::Clock,
    event::Event,
    lifecycle::{Lifecycle, Transition},
    sink::{Csv, Json, Layout, Rows, Sink, Text},
};
use zerocopy::IntoBytes as _;

const CONNECTIONS: u64 = 10_000;
const EVENTS: u64 = CONNECTIONS * 10;

fn main() {
    divan::main();
}

fn record(cookie: u64, time: u64, old: TcpState, new: TcpState) -> TransitionRecord {
    let active = matches!(
        (old, new),
        (Close, SynSent) | (Established, FinWait1) | (CloseWait, LastAck)
    );
    TransitionRecord {
        kind: RecordKind::Transition as u8,
        old: old as u8,
        new: new as u8,
        flags: if active {
            flags::OWNED | flags::FILE_KNOWN | flags::FILE_RELEASED
        } else {
            0
        },
        protocol: 6,
        family: 2,
        time,
        cookie,
        socket: cookie * 0x900,
        listener_cookie: 0,
        listener_socket: 0,
        netns_cookie: 1,
        cgroup: 1,
        laddr: Ipv4Addr::new(192, 168, 100, 17).to_ipv6_mapped().octets(),
        raddr: Ipv4Addr::new(10, 20, 30, 40).to_ipv6_mapped().octets(),
        lport: 40_000,
        rport: 8080,
        netns: 4_026_531_840,
        error: 0,
        uid: 1000,
        pid: if active { 12_345 } else { 0 },
        tid: if active { 12_345 } else { 0 },
        comm: if active {
            *b"nginx\0\0\0\0\0\0\0\0\0\0\0"
        } else {
            [0; 16]
        },
        bytes_acked: 0,
        bytes_received: 0,
        retransmits: 0,
        srtt_us: 0,
    }
}

/// Both ends of many connections, a hundred of them open at any time.
fn records() -> Vec<TransitionRecord> {
    const CLIENT: [TcpState; 6] = [Close, SynSent, Established, FinWait1, FinWait2, Close];
    const SERVER: [TcpState; 6] = [Listen, SynRecv, Established, CloseWait, LastAck, Close];
    let mut records = Vec::new();
    for batch in 0..CONNECTIONS / 100 {
        for step in 0..5 {
            for connection in 0..100 {
                let number = batch * 100 + connection;
                let time = 1_000_000_000 + number * 30_000 + step as u64 * 1_000_000;
                for (states, cookie) in [(CLIENT, number * 2 + 1), (SERVER, number * 2 + 2)] {
                    records.push(record(cookie, time, states[step], states[step + 1]));
                }
            }
        }
    }
    records
}

fn transitions() -> Vec<Transition> {
    let mut lifecycle = Lifecycle::new(1_000_000, 0);
    lifecycle.name_cgroup(1, "/system.slice/nginx.service");
    let mut transitions = Vec::new();
    records()
        .iter()
        .filter_map(|record| Event::decode(record.as_bytes()).ok())
        .for_each(|event| lifecycle.event(event, |transition| transitions.push(transition)));
    transitions
}

#[divan::bench]
fn decode_and_lifecycle(bencher: Bencher<'_, '_>) {
    let records = records();
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        let mut lifecycle = Lifecycle::new(1_000_000, 0);
        for record in &records {
            if let Ok(event) = Event::decode(record.as_bytes()) {
                lifecycle.event(event, |transition| {
                    divan::black_box(transition);
                });
            }
        }
    });
}

fn sink<S: Sink>(bencher: Bencher<'_, '_>, make: impl Fn(BufWriter<File>, Clock) -> S) {
    let transitions = transitions();
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        let null = File::options()
            .write(true)
            .open("/dev/null")
            .expect("/dev/null");
        let clock = Clock::new(0, 1_795_305_600_000_000_000, TimeZone::UTC);
        let mut sink = make(BufWriter::with_capacity(64 << 10, null), clock);
        for transition in &transitions {
            sink.transition(transition)
                .expect("/dev/null takes everything");
        }
        sink.flush().expect("/dev/null takes everything");
    });
}

#[divan::bench]
fn text(bencher: Bencher<'_, '_>) {
    sink(bencher, |out, clock| {
        Text::new(out, clock, Layout::default()).expect("the header")
    });
}

#[divan::bench]
fn text_wide(bencher: Bencher<'_, '_>) {
    let layout = Layout {
        wide: true,
        ..Layout::default()
    };
    sink(bencher, |out, clock| {
        Text::new(out, clock, layout).expect("the header")
    });
}

#[divan::bench]
fn json(bencher: Bencher<'_, '_>) {
    sink(bencher, Json::new);
}

#[divan::bench]
fn csv(bencher: Bencher<'_, '_>) {
    sink(bencher, |out, clock| {
        Csv::new(out, clock, Rows::Transitions).expect("the header")
    });
}

fn tally<T: Tally>(bencher: Bencher<'_, '_>, make: impl Fn() -> T) {
    let transitions = transitions();
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        let mut tally = make();
        for transition in &transitions {
            tally.take(transition, true);
        }
        divan::black_box(tally.table(0, 1_000_000_000));
    });
}

#[divan::bench]
fn closers(bencher: Bencher<'_, '_>) {
    tally(bencher, || {
        let order = Order {
            column: Closers::SORT,
            top: 10,
        };
        let by = By::new(&[Dimension::Process, Dimension::Service], (24, 64));
        Closers::new(by, order, true, 1_000_000)
    });
}

#[divan::bench]
fn hist(bencher: Bencher<'_, '_>) {
    tally(bencher, || {
        Hist::new(HistOptions {
            by: By::nothing(),
            order: Order {
                column: Hist::SORT,
                top: 10,
            },
            states: Vec::new(),
            scale: Scale::Logarithmic,
            buckets: true,
            timewait: true,
            limit: 1_000_000,
        })
    });
}
