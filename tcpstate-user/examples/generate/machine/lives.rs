//! The lives of connections, all at the same time.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{self, Write},
    net::Ipv4Addr,
};

use tcpstate_common::{
    record::{RecordKind, SocketRecord, TimeWaitRecord, TransitionRecord, flags},
    state::TcpState,
};
use tcpstate_user::{
    event::{Comm, Process, Via},
    recording::{Holder, Step},
};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::{
    paper::{Paper, START},
    plots::{Act, Beat, By, End, PLOTS},
    random::Random,
    world::{CGROUPS, FIRST_CGROUP, Pair, SERVERS},
};

/// How much is generated.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Different connections.
    pub connections: u32,
    pub events: u64,
    pub seed: u64,
}

/// Between two connections: ten thousand a second.
const BETWEEN: u64 = 100_000;
const TICK: u64 = 4_000_000;

/// A connection that lives.
struct Life {
    number: u32,
    plot: &'static [Beat],
    /// The next beat.
    next: usize,
    /// Cookie of the client's socket; the server's is the next.
    cookie: u64,
}

struct Lives<W> {
    paper: Paper<W>,
    random: Random,
    seed: u64,
    /// By place; an address in memory belongs to each, as in the kernel's allocator.
    places: Vec<Option<Life>>,
    free: Vec<u32>,
    /// When and where something happens next.
    queue: BinaryHeap<Reverse<(u64, u32)>>,
    /// Which connections live.
    busy: Vec<bool>,
    /// The last cookie.
    cookie: u64,
    left: u64,
}

/// Writes a recording.
///
/// # Errors
/// If it cannot be written.
pub fn generate<W: Write>(scale: Scale, out: W) -> io::Result<W> {
    let mut lives = Lives {
        paper: Paper::new(out, scale.seed)?,
        random: Random::new(scale.seed),
        seed: scale.seed,
        places: Vec::new(),
        free: Vec::new(),
        queue: BinaryHeap::new(),
        busy: vec![false; scale.connections as usize],
        cookie: 100_000,
        left: scale.events,
    };
    lives.listeners()?;
    let mut start = START + BETWEEN;
    let mut numbers = (0..scale.connections).cycle();
    while lives.left > 0 {
        match lives.queue.peek() {
            Some(Reverse((time, _))) if *time <= start => lives.happens()?,
            _ => {
                let number = numbers.next().unwrap_or_default();
                lives.begin(number, start);
                start += lives.random.about(BETWEEN);
            }
        }
    }
    lives.paper.end()
}

impl<W: Write> Lives<W> {
    /// Those that were there before.
    fn listeners(&mut self) -> io::Result<()> {
        for (id, path) in (FIRST_CGROUP..).zip(CGROUPS) {
            self.paper.step(&Step::Cgroup(id, path))?;
        }
        let holders = SERVERS.map(|program| Holder {
            inode: u64::from(program.port),
            process: Process {
                pid: program.pid,
                comm: Comm::truncated(program.comm),
                via: Via::Scan,
            },
        });
        self.paper.step(&Step::Holders(holders.to_vec()))?;
        for program in SERVERS {
            let mut record = SocketRecord::new_zeroed();
            record.kind = RecordKind::Socket as u8;
            record.state = TcpState::Listen as u8;
            record.protocol = 6;
            record.family = 2;
            record.time = START + 1;
            record.cookie = u64::from(program.port);
            record.socket = listener(program.port);
            record.netns_cookie = u64::from(program.netns);
            record.cgroup = program.cgroup;
            record.inode = u64::from(program.port);
            record.laddr = mapped(Ipv4Addr::UNSPECIFIED);
            record.raddr = mapped(Ipv4Addr::UNSPECIFIED);
            record.lport = program.port;
            record.netns = program.netns;
            record.uid = program.uid;
            self.paper.record(START + 1, record.as_bytes())?;
        }
        self.paper.step(&Step::Listed)
    }

    /// This connection begins, unless it lives.
    fn begin(&mut self, number: u32, time: u64) {
        if std::mem::replace(&mut self.busy[number as usize], true) {
            return;
        }
        let mut chance = self.random.below(100);
        let plot = PLOTS.iter().find(|(share, _)| {
            let this = chance < *share;
            chance = chance.saturating_sub(*share);
            this
        });
        self.cookie += 2;
        let life = Life {
            number,
            plot: plot.map_or(PLOTS[0].1, |(_, plot)| plot),
            next: 0,
            cookie: self.cookie,
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        self.places[place as usize] = Some(life);
        self.queue.push(Reverse((time, place)));
    }

    /// What comes next happens.
    fn happens(&mut self) -> io::Result<()> {
        let Some(Reverse((time, place))) = self.queue.pop() else {
            return Ok(());
        };
        let Some(life) = &mut self.places[place as usize] else {
            return Ok(());
        };
        let (_, end, act) = life.plot[life.next];
        life.next += 1;
        let (plot, next, number, cookie) = (life.plot, life.next, life.number, life.cookie);
        if let Some((after, ..)) = plot.get(next) {
            // A minute is a minute, but for the timer wheel.
            let after = match after * 1000 {
                minute @ 60_000_000_000.. => minute + self.random.below(400_000_000),
                after => self.random.about(after),
            };
            self.queue.push(Reverse((time + after.max(1000), place)));
        } else {
            self.places[place as usize] = None;
            self.busy[number as usize] = false;
            self.free.push(place);
        }
        // connect() takes over with another socket.
        let again = plot[..next]
            .iter()
            .filter(|(.., act)| matches!(act, Act::Change(TcpState::Close | TcpState::Listen, ..)));
        let again = u64::from(again.count() > 2);
        let pair = Pair::new(number, self.seed);
        if !pair.has(end) {
            return Ok(());
        }
        let socket = Socket {
            pair,
            end,
            cookie: cookie + u64::from(end == End::Server) + (again << 40),
            address: 0xffff_8880_0000_0000
                + (u64::from(place) * 2 + u64::from(end == End::Server)) * 0x900,
        };
        self.left -= 1;
        match act {
            Act::Change(old, new, by) => {
                let record = socket.transition(time, (old, new), by, &mut self.random);
                self.paper.record(time, record.as_bytes())
            }
            _ => self
                .paper
                .record(time, socket.minisocket(time, act).as_bytes()),
        }
    }
}

/// One end of a life.
struct Socket {
    pair: Pair,
    end: End,
    cookie: u64,
    address: u64,
}

impl Socket {
    fn transition(
        &self,
        time: u64,
        (old, new): (TcpState, TcpState),
        by: By,
        random: &mut Random,
    ) -> TransitionRecord {
        let program = self.pair.program(self.end);
        let mut record = TransitionRecord::new_zeroed();
        record.kind = RecordKind::Transition as u8;
        record.old = old as u8;
        record.new = new as u8;
        record.protocol = 6;
        record.family = 2;
        record.time = time;
        record.socket = self.address;
        record.netns_cookie = u64::from(program.netns);
        record.netns = program.netns;
        record.cgroup = program.cgroup;
        record.uid = program.uid;
        (record.laddr, record.lport) = self.local();
        if old == TcpState::Listen {
            record.listener_cookie = u64::from(program.port);
            record.listener_socket = listener(program.port);
        } else {
            record.cookie = self.cookie;
            (record.raddr, record.rport) = self.remote();
        }
        if old == TcpState::Close {
            // Picked a moment later.
            record.lport = 0;
        }
        if let By::Error(error) = by {
            record.error = error;
        }
        if by == By::Process {
            record.flags = flags::OWNED | flags::FILE_KNOWN;
            if new != TcpState::SynSent {
                record.flags |= flags::FILE_RELEASED;
            }
            let process = u32::try_from(self.cookie / 2 % program.processes).unwrap_or_default();
            record.pid = program.pid + process;
            record.tid = record.pid;
            record.comm[..program.comm.len()].copy_from_slice(program.comm.as_bytes());
        }
        if matches!(new, TcpState::Established | TcpState::Close) {
            record.flags |= flags::TOTALS;
            record.srtt_us = u32::try_from(random.about(400)).unwrap_or_default();
            record.retransmits = u32::from(random.below(200) == 0);
            if new == TcpState::Close {
                record.bytes_acked = random.about(800);
                record.bytes_received = random.about(15_000);
            }
        }
        record
    }

    fn minisocket(&self, time: u64, act: Act) -> TimeWaitRecord {
        let program = self.pair.program(self.end);
        let mut record = TimeWaitRecord::new_zeroed();
        let ticks = 4_294_892_296 + time / TICK;
        let (kind, substate, due) = match act {
            Act::Born(state) => (RecordKind::TimeWaitBorn, state, ticks + 15_000),
            Act::Restarted => (
                RecordKind::TimeWaitRestarted,
                TcpState::TimeWait,
                ticks + 15_000,
            ),
            Act::Ended(_) => (
                RecordKind::TimeWaitEnded,
                TcpState::TimeWait,
                ticks + 10_000,
            ),
            Act::TimedOut | Act::Change(..) => {
                (RecordKind::TimeWaitTimedOut, TcpState::TimeWait, ticks)
            }
        };
        record.kind = kind as u8;
        record.substate = substate as u8;
        record.family = 2;
        record.cpu = u32::from(self.pair.client_port % 8);
        record.time = time;
        record.cookie = self.cookie;
        record.minisocket = self.address + 0x0001_0000_0000;
        record.netns_cookie = u64::from(program.netns);
        record.netns = program.netns;
        record.ticks = ticks;
        record.due = due;
        (record.laddr, record.lport) = self.local();
        (record.raddr, record.rport) = self.remote();
        if let Act::Ended(caller) = act {
            record.callers[1] = caller;
        }
        record
    }

    fn local(&self) -> ([u8; 16], u16) {
        self.of(self.end)
    }

    fn remote(&self) -> ([u8; 16], u16) {
        self.of(match self.end {
            End::Client => End::Server,
            End::Server => End::Client,
        })
    }

    fn of(&self, end: End) -> ([u8; 16], u16) {
        match end {
            End::Client => (mapped(self.pair.client_addr), self.pair.client_port),
            End::Server => (mapped(self.pair.server_addr), self.pair.server.port),
        }
    }
}

const fn listener(port: u16) -> u64 {
    0xffff_8880_ff00_0000 + port as u64 * 0x900
}

const fn mapped(address: Ipv4Addr) -> [u8; 16] {
    address.to_ipv6_mapped().octets()
}
