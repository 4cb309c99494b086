//! Made-up lives as the kernel can produce them: the records that it would send, and what really happened.

use proptest::prelude::*;
use tcpstate_common::{
    record::{RecordKind, TimeWaitRecord, TransitionRecord},
    state::TcpState::{
        self, Close, CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv,
        SynSent, TimeWait,
    },
};
use zerocopy::IntoBytes as _;

use crate::records::{MS, TICK, record, timer};

/// When the run begins.
pub const START: u64 = 10_000 * MS;
/// `TCP_TIMEWAIT_LEN`.
const MINUTE: u64 = 60_000 * MS;

/// The symbols to which the return addresses below belong.
pub const SYMBOLS: &str = "\
    ffffffff82001000 t __inet_check_established\n\
    ffffffff82002000 T tcp_v4_rcv\n\
    ffffffff82003000 T tcp_timewait_state_process\n\
    ffffffff82004000 T tcp_abort\n\
    ffffffff82005000 t end\n";
const ENDINGS: [u64; 4] = [0x1010, 0x2010, 0x3010, 0x4010];
const RESTART: u64 = 0x3010;

/// How a connection can be opened; what begins in ESTABLISHED is older than the run.
const OPENS: [&[TcpState]; 4] = [
    &[Close, SynSent, Established],
    &[Listen, SynRecv, Established],
    &[Close, SynSent, SynRecv, Established],
    &[Established],
];
/// How it goes on, and whether a minisocket takes over then, and in which state.
const CLOSES: [(&[TcpState], Option<TcpState>); 10] = [
    (&[], None),
    (&[FinWait1, FinWait2], Some(TimeWait)),
    (&[FinWait1, FinWait2], Some(FinWait2)),
    (&[FinWait1, Closing], Some(TimeWait)),
    (&[FinWait1, FinWait2, FinWait2], Some(TimeWait)),
    (&[FinWait1, FinWait2, Close], None),
    (&[FinWait1, Close], None),
    (&[CloseWait, LastAck, Close], None),
    (&[CloseWait, Close], None),
    (&[Close], None),
];
/// From here on the application still has the socket, and can connect it again.
const HELD: usize = 4;
/// What never is a connection, or not for long.
const OTHERS: [&[TcpState]; 2] = [&[Close, SynSent, Close], &[Close, Listen, Close]];

/// What the minisocket does after its birth.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The FIN comes, or comes again; the timer may stay where it is.
    Fin { silent: bool },
    /// Its time is over.
    Expire,
    /// It is taken off, from here.
    Cut(u64),
}

/// The choices that make a life.
#[derive(Clone, Debug)]
pub struct Plot {
    open: usize,
    close: usize,
    steps: Vec<Step>,
    again: bool,
    begin: u64,
    gaps: Vec<u64>,
    cpu: u32,
}

pub fn plot() -> impl Strategy<Value = Plot> {
    let step = prop_oneof![
        3 => any::<bool>().prop_map(|silent| Step::Fin { silent }),
        2 => Just(Step::Expire),
        2 => (0..ENDINGS.len()).prop_map(|who| Step::Cut(ENDINGS[who])),
    ];
    (
        0..OPENS.len() + OTHERS.len(),
        0..CLOSES.len(),
        proptest::collection::vec(step, 0..4),
        any::<bool>(),
        0..200_u64,
        proptest::collection::vec(1..5000_u64, 16),
        0..3_u32,
    )
        .prop_map(|(open, close, steps, again, begin, gaps, cpu)| Plot {
            open,
            close,
            steps,
            again,
            begin: START + begin * MS,
            gaps,
            cpu,
        })
}

/// A record on its way.
#[derive(Clone, Debug)]
pub struct Sent {
    pub connection: u64,
    pub time: u64,
    pub cpu: u32,
    pub bytes: Vec<u8>,
}

/// What really happened in one life.
#[derive(Clone, Debug)]
pub struct Life {
    pub connection: u64,
    pub local_port: u16,
    /// `None` if it is older than the run.
    pub start: Option<u64>,
    pub end: Option<u64>,
    /// States, and from when to when; the last is open-ended if the life has no end.
    pub states: Vec<(TcpState, u64, u64)>,
}

/// All lives, and all records in the order of time.
#[derive(Clone, Debug, Default)]
pub struct Story {
    pub lives: Vec<Life>,
    pub sent: Vec<Sent>,
}

impl Story {
    pub fn of(plots: &[Plot]) -> Self {
        let mut story = Self::default();
        for (connection, plot) in (1..).zip(plots) {
            story.tell(connection, plot);
        }
        story.sent.sort_by_key(|sent| sent.time);
        story
    }

    fn tell(&mut self, connection: u64, plot: &Plot) {
        let (states, mini) = match OPENS.get(plot.open) {
            Some(open) => {
                let (rest, mini) = CLOSES[plot.close];
                ([open, rest].concat(), mini)
            }
            None => (OTHERS[plot.open - OPENS.len()].to_vec(), None),
        };
        let mut teller = Teller {
            story: self,
            connection,
            cpu: plot.cpu,
            // No two records have the same time.
            now: plot.begin + connection * 10,
            gaps: plot.gaps.iter().copied().cycle(),
            port: 40_000,
        };
        teller.live(&states);
        if let Some(born) = mini {
            teller.minisocket(*states.last().unwrap_or(&Close), born, &plot.steps);
        }
        let held = plot.open >= OPENS.len() || plot.close >= HELD;
        let closed = mini.is_some() || states.last() == Some(&Close);
        if plot.again && held && closed {
            teller.port += 1;
            teller.now = plot.begin + 100 * MS + connection * 10;
            teller.live(&[Close, SynSent, Established, CloseWait, LastAck, Close]);
        }
    }
}

struct Teller<'story, I> {
    story: &'story mut Story,
    connection: u64,
    cpu: u32,
    now: u64,
    gaps: I,
    port: u16,
}

impl<I: Iterator<Item = u64>> Teller<'_, I> {
    fn pass(&mut self, unit: u64) {
        self.now += self.gaps.next().unwrap_or(1) * unit;
    }

    fn send(&mut self, bytes: &[u8]) {
        self.story.sent.push(Sent {
            connection: self.connection,
            time: self.now,
            cpu: self.cpu,
            bytes: bytes.to_vec(),
        });
    }

    fn full(&mut self, old: TcpState, new: TcpState) {
        let mut record = TransitionRecord {
            lport: self.port,
            ..record(self.connection, self.now, old, new)
        };
        if old == Listen && new == SynRecv {
            (record.cookie, record.rport) = (0, 0);
        }
        self.send(record.as_bytes());
    }

    /// A full socket goes through these states.
    fn live(&mut self, states: &[TcpState]) {
        let older = states[0] == Established;
        let mut life = Life {
            connection: self.connection,
            local_port: self.port,
            start: (!older).then_some(self.now),
            end: None,
            states: Vec::new(),
        };
        if older {
            life.states.push((Established, START - 1000 * MS, u64::MAX));
            self.pass(1000);
        }
        for pair in states.windows(2) {
            self.full(pair[0], pair[1]);
            if pair[0] != pair[1] {
                life.enter(pair[1], self.now);
            }
            self.pass(1000);
        }
        self.story.lives.push(life);
    }

    fn timer(&mut self, kind: RecordKind, substate: TcpState, due: u64, caller: u64) {
        let due = timer(kind, self.connection, due, substate, 0).due;
        let mut record = TimeWaitRecord {
            cpu: self.cpu,
            lport: self.port,
            due,
            ..timer(kind, self.connection, self.now, substate, 0)
        };
        if caller != 0 {
            record.callers[1] = 0xffff_ffff_8200_0000 + caller;
        }
        self.send(record.as_bytes());
        // What belongs together happens at once.
        self.now += 1;
    }

    fn minisocket(&mut self, last: TcpState, born: TcpState, steps: &[Step]) {
        use RecordKind::{TimeWaitArmed, TimeWaitCancelled, TimeWaitExpired};
        let mut state = born;
        let length = |state| if state == TimeWait { MINUTE } else { 2000 * MS };
        let mut due = self.now + length(state);
        self.enter(state, self.now);
        self.timer(TimeWaitArmed, state, due, 0);
        self.now += 9;
        self.full(last, Close);
        for step in steps {
            // Up to a second and a quarter: what waits for a FIN is still there.
            self.pass(250_000);
            match *step {
                Step::Fin { silent } => {
                    let before = due;
                    due = self.now + MINUTE;
                    if state != TimeWait {
                        state = TimeWait;
                        self.enter(TimeWait, self.now);
                    }
                    if !silent {
                        self.timer(TimeWaitCancelled, state, before, RESTART);
                        self.timer(TimeWaitArmed, state, due, 0);
                    }
                }
                Step::Expire => {
                    self.now = due.max(self.now) + self.gaps.next().unwrap_or(1) * 100_000;
                    self.timer(TimeWaitCancelled, state, due, 0);
                    self.end();
                    self.timer(TimeWaitExpired, state, due, 0);
                    return;
                }
                Step::Cut(caller) => {
                    self.end();
                    self.timer(TimeWaitCancelled, state, due, caller);
                    return;
                }
            }
        }
    }

    fn life(&mut self) -> &mut Life {
        let last = self.story.lives.len() - 1;
        &mut self.story.lives[last]
    }

    fn enter(&mut self, state: TcpState, at: u64) {
        self.life().enter(state, at);
    }

    fn end(&mut self) {
        let now = self.now;
        self.enter(Close, now);
    }
}

impl Life {
    fn enter(&mut self, state: TcpState, at: u64) {
        if let Some((before, _, to)) = self.states.last_mut() {
            if *before == state {
                return;
            }
            *to = at;
        }
        if state == Close {
            self.end = Some(at);
        } else {
            self.states.push((state, at, u64::MAX));
        }
    }

    /// How long it was in this state until then, for each time that it was.
    pub fn in_state(&self, state: TcpState, until: u64) -> impl Iterator<Item = u64> {
        let begun = move |(other, from, _): &&(TcpState, u64, u64)| {
            *other == state && *from <= until + TOLERANCE
        };
        let spent =
            move |(_, from, to): &(TcpState, u64, u64)| until.min(*to).saturating_sub(*from);
        self.states.iter().filter(begun).map(spent)
    }
}

/// What times told by a timer alone may be off.
pub const TOLERANCE: u64 = TICK;
