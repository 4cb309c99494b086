//! Recordings of what the kernel side sends while a test runs, for tests that need no root (`tests/pure/replay.rs`). They
//! are made anew only with `TCPSTATE_RECORD_FIXTURES=1`. Nothing of this machine stays in them: times begin at one second,
//! and addresses, numbers and names are replaced by harmless ones.
//!
//! A file is a header of text lines, an empty line, and the records: each four bytes of length (little endian) and its bytes.
//! The header says the length of a tick, when the hooks were in place and when it ended (all nanoseconds), and has the lines
//! of `/proc/kallsyms` that the call chains in the records need.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use tcpstate_common::record::{TimeWaitRecord, TransitionRecord, flags};
use tcpstate_user::{
    clock,
    event::Event,
    filter::Filter,
    kernel::{Attached, CallRequest, Request, TimeWaitHook, TimeWaitRequest, Tracer, find_netns},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// Where times begin.
const START: u64 = 1_000_000_000;
/// Where functions are, this far from one another.
const TEXT: u64 = 0xffff_ffff_8100_0000;
const DISTANCE: u64 = 0x1_0000;

/// A recording of the namespace of the test's thread. It is kept when the test is over and has not failed.
pub struct Recording {
    name: &'static str,
    over: Arc<AtomicBool>,
    reader: Option<JoinHandle<Recorded>>,
}

struct Recorded {
    start: u64,
    end: u64,
    records: Vec<Vec<u8>>,
}

/// Records this test under this name, if that was asked for; only once, by the timer tracepoints, whose records ask most of who
/// reads them.
pub fn record(observer: &str, name: &'static str) -> Option<Recording> {
    std::env::var_os("TCPSTATE_RECORD_FIXTURES")
        .filter(|value| value == "1" && observer == "timer")?;
    let filter = Filter {
        netns: Some(find_netns("self").expect("our namespace")),
        ..Filter::default()
    };
    let request = Request {
        calls: CallRequest::Off,
        hook: None,
        timewait: TimeWaitRequest::Only(TimeWaitHook::Timer),
        filter: filter.for_kernel(),
        buffer: 1 << 20,
        existing: false,
    };
    let attached = Attached::new(&request).unwrap_or_else(|refused| panic!("{refused}"));
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    Some(Recording {
        name,
        over,
        reader: Some(thread::spawn(move || read(attached, &stop))),
    })
}

fn read(attached: Attached, over: &AtomicBool) -> Recorded {
    // A thread in the test's namespace would keep it alive.
    unshare(CloneFlags::CLONE_NEWNET).expect("another network namespace");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("an event loop");
    runtime.block_on(async {
        let mut tracer = Tracer::new(attached).expect("the ring buffer");
        let mut records = Vec::new();
        loop {
            let last = over.load(Ordering::Relaxed);
            tracer
                .read(clock::monotonic_now(), |bytes| {
                    records.push(bytes.to_vec());
                    Ok::<_, std::convert::Infallible>(true)
                })
                .expect("it cannot fail");
            if last {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let counters = tracer.counters().expect("the counters");
        assert_eq!(counters.lost, 0, "the recording has a hole");
        Recorded {
            start: tracer.start(),
            end: clock::monotonic_now(),
            records,
        }
    })
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let recorded = self.reader.take().map(JoinHandle::join);
        if thread::panicking() {
            return;
        }
        let recorded = recorded.expect("taken once").expect("the reader is well");
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/records");
        fs::create_dir_all(&folder).expect("the folder of recordings");
        let path = folder.join(self.name).with_extension("bin");
        fs::write(path, file(&recorded)).expect("the recording can be kept");
    }
}

fn file(recorded: &Recorded) -> Vec<u8> {
    let mut disguise = Disguise::new(recorded.start);
    let mut body = Vec::new();
    for record in &recorded.records {
        let record = disguise.record(record);
        let length = u32::try_from(record.len()).expect("a small record");
        body.extend(length.to_le_bytes());
        body.extend(record);
    }
    let mut header = format!(
        "tcpstate records 1\ntick {}\nstart {START}\nend {}\n",
        clock::tick().as_nanos(),
        disguise.time(recorded.end),
    );
    let marks = ["_end".to_owned()];
    for (name, place) in disguise.functions.iter().chain(&marks).zip(0..) {
        writeln!(header, "{:016x} t {name}", TEXT + place * DISTANCE).expect("a line");
    }
    header.push('\n');
    [header.into_bytes(), body].concat()
}

/// Gives everything that belongs to this machine a harmless number.
struct Disguise {
    start: u64,
    ticks: Option<u64>,
    cookies: HashMap<u64, u64>,
    sockets: HashMap<u64, u64>,
    tasks: HashMap<u32, u32>,
    /// All functions of this kernel, by address.
    symbols: Vec<(u64, String)>,
    /// Those in the recording.
    functions: Vec<String>,
}

impl Disguise {
    fn new(start: u64) -> Self {
        let list = fs::read_to_string("/proc/kallsyms").expect("the kernel's symbols");
        let mut symbols: Vec<_> = list
            .lines()
            .filter_map(|line| {
                let mut words = line.split_ascii_whitespace();
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                words.next().filter(|kind| matches!(*kind, "t" | "T"))?;
                Some((address, words.next()?.to_owned()))
            })
            .collect();
        // Of several names for a place the first stays first.
        symbols.sort_by_key(|(address, _)| *address);
        Self {
            start,
            ticks: None,
            cookies: HashMap::new(),
            sockets: HashMap::new(),
            tasks: HashMap::new(),
            symbols,
            functions: vec!["tw_timer_handler".to_owned()],
        }
    }

    fn time(&self, time: u64) -> u64 {
        START + time.saturating_sub(self.start)
    }

    fn record(&mut self, bytes: &[u8]) -> Vec<u8> {
        if let Event::Transition(_) = Event::decode(bytes).expect("a record") {
            let record = TransitionRecord::read_from_bytes(bytes).expect("its size");
            self.transition(record).as_bytes().to_vec()
        } else {
            let record = TimeWaitRecord::read_from_bytes(bytes).expect("its size");
            self.timewait(record).as_bytes().to_vec()
        }
    }

    fn transition(&mut self, mut record: TransitionRecord) -> TransitionRecord {
        record.time = self.time(record.time);
        for cookie in [&mut record.cookie, &mut record.listener_cookie] {
            *cookie = number(&mut self.cookies, *cookie);
        }
        for socket in [&mut record.socket, &mut record.listener_socket] {
            *socket = address(&mut self.sockets, *socket);
        }
        record.netns_cookie = record.netns_cookie.min(1);
        record.netns = record.netns.min(1);
        record.cgroup = record.cgroup.min(1);
        if record.flags & flags::OWNED != 0 {
            for task in [&mut record.pid, &mut record.tid] {
                let next = 1000 + u32::try_from(self.tasks.len()).expect("a few tasks");
                *task = *self.tasks.entry(*task).or_insert(next);
            }
            record.comm = *b"test\0\0\0\0\0\0\0\0\0\0\0\0";
        }
        record
    }

    fn timewait(&mut self, mut record: TimeWaitRecord) -> TimeWaitRecord {
        record.time = self.time(record.time);
        record.cookie = number(&mut self.cookies, record.cookie);
        for socket in [&mut record.minisocket, &mut record.socket] {
            *socket = address(&mut self.sockets, *socket);
        }
        record.netns_cookie = record.netns_cookie.min(1);
        record.netns = record.netns.min(1);
        // Far enough from zero for what was due before.
        let ticks = *self.ticks.get_or_insert(record.ticks);
        for clock in [&mut record.ticks, &mut record.due] {
            *clock = clock.wrapping_sub(ticks).wrapping_add(1 << 32);
        }
        for caller in record.callers.iter_mut().filter(|caller| **caller != 0) {
            *caller = self.caller(*caller);
        }
        record
    }

    /// The same place in the same function, where that is now.
    fn caller(&mut self, address: u64) -> u64 {
        let after = self.symbols.partition_point(|(start, _)| *start <= address);
        let (start, _) = self.symbols[after.checked_sub(1).expect("a function")];
        let first = self.symbols.partition_point(|(other, _)| *other < start);
        let name = &self.symbols[first].1;
        let known = self.functions.iter().position(|known| known == name);
        let place = known.unwrap_or_else(|| {
            self.functions.push(name.clone());
            self.functions.len() - 1
        });
        TEXT + place as u64 * DISTANCE + (address - start).min(DISTANCE - 1)
    }
}

/// The next small number for everything new; zero means that there is none.
fn number(known: &mut HashMap<u64, u64>, what: u64) -> u64 {
    let next = known.len() as u64 + 1;
    if what == 0 {
        return 0;
    }
    *known.entry(what).or_insert(next)
}

fn address(known: &mut HashMap<u64, u64>, what: u64) -> u64 {
    match number(known, what) {
        0 => 0,
        number => 0xffff_8880_0000_0000 + number * 0x1000,
    }
}
