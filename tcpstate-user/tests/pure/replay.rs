//! What recordings of real kernels say (`tests/fixtures/records`), from bytes to whole connections. The recordings are made
//! by the tests of the real kernel: see CONTRIBUTING.md.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tcpstate_user::{
    analysis::{Connection, Connections},
    event::{Endpoint, Event, Process},
    filter::{Filter, Gate},
    lifecycle::{Bound, Callers, Lifecycle, Phase, Transition},
};

/// A recording, apart.
struct Recording {
    tick: Duration,
    start: u64,
    end: u64,
    callers: Callers,
    records: Vec<Vec<u8>>,
}

impl Recording {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("a recording");
        let length = bytes
            .windows(2)
            .position(|pair| pair == b"\n\n")
            .expect("an empty line");
        let header = std::str::from_utf8(&bytes[..length]).expect("text");
        let mut lines = header.lines();
        assert_eq!(lines.next(), Some("tcpstate records 1"));
        let mut number = |name: &str| -> u64 {
            let line = lines.next().expect("a line");
            let value = line.strip_prefix(name).expect("the next number");
            value.trim().parse().expect("a number")
        };
        let (tick, start, end) = (number("tick"), number("start"), number("end"));
        let mut records = Vec::new();
        let mut rest = &bytes[length + 2..];
        while let Some((length, after)) = rest.split_first_chunk() {
            let length = usize::try_from(u32::from_le_bytes(*length)).expect("a small record");
            let (record, after) = after.split_at(length);
            records.push(record.to_vec());
            rest = after;
        }
        assert!(rest.is_empty(), "half a record at the end");
        Self {
            tick: Duration::from_nanos(tick),
            start,
            end,
            callers: Callers::parse(header),
            records,
        }
    }

    /// Everything that is right of the ring buffer, as in a live run.
    fn replay(&self) -> String {
        let mut gate = Gate::default();
        let mut lifecycle =
            Lifecycle::new(1000, self.start).with_minisockets(self.callers.clone(), self.tick);
        let mut connections = Connections::new(1000);
        let mut text = String::new();
        let mut ended = Vec::new();
        let mut show = |transition: Transition| {
            assert!(!transition.damaged, "{transition:?}");
            self.transition(&mut text, &transition);
            ended.extend(connections.take(&transition));
        };
        for record in &self.records {
            let event = Event::decode(record).expect("a record as the kernel side writes it now");
            lifecycle.settle(event.time(), &mut show);
            if let Event::Transition(event) = event {
                let admitted = gate.admit(&Filter::default(), &event);
                for (event, _) in admitted.events(&event) {
                    show(lifecycle.transition(event));
                }
            } else {
                lifecycle.event(event, &mut show);
            }
        }
        lifecycle.settle(u64::MAX, &mut show);
        assert_eq!(gate.undecided(), 0);
        let ended_count = ended.len();
        ended.extend(connections.finish(self.end));
        ended[ended_count..].sort_by_key(|connection| connection.connection);
        text.push('\n');
        for connection in &ended {
            self.connection(&mut text, connection);
        }
        text
    }

    /// Seconds since the hooks were in place.
    fn since_start(&self, time: u64) -> String {
        seconds(time - self.start)
    }

    fn transition(&self, text: &mut String, transition: &Transition) {
        let event = &transition.event;
        let mini = if transition.minisocket { " mini" } else { "" };
        write!(
            text,
            "{} #{} {} {} {}->{} {}{mini}",
            self.since_start(event.time),
            transition.connection,
            end(&event.local),
            end(&event.remote),
            event.old.label(),
            event.new.label(),
            phase(transition.phase),
        )
        .expect("a line");
        if let Some(reason) = transition.reason {
            write!(text, " {}", reason.label()).expect("a line");
        }
        if let Some(error) = event.error {
            write!(text, " errno {error}").expect("a line");
        }
        writeln!(text, "{}", process("by", transition.process)).expect("a line");
    }

    fn connection(&self, text: &mut String, connection: &Connection) {
        let time = |time: Option<u64>| time.map_or("-".into(), |time| self.since_start(time));
        writeln!(
            text,
            "#{} {} {} from {} to {}: opened {}, closed first {}, {}{}{}",
            connection.connection,
            end(&connection.local),
            end(&connection.remote),
            time(connection.start),
            time(connection.end),
            connection.opened.label(),
            connection.closed_first.label(),
            connection.how.label(),
            process("owner", connection.owner),
            process("closer", connection.closer),
        )
        .expect("a line");
        let states = tcpstate_common::state::TcpState::ALL
            .into_iter()
            .zip(connection.states);
        for (state, spent) in states.filter_map(|(state, spent)| Some((state, spent?))) {
            writeln!(text, "    {} {}", state.label(), phase(spent)).expect("a line");
        }
        if let Some(time_wait) = connection.time_wait {
            writeln!(
                text,
                "    TIME_WAIT began {} {} {} after {} restarts, known by {}",
                self.since_start(time_wait.began),
                phase(time_wait.phase),
                time_wait.end.label(),
                time_wait.restarts,
                time_wait.known_by.label(),
            )
            .expect("a line");
        }
        if let Some(totals) = connection.totals {
            writeln!(text, "    {totals:?}").expect("a line");
        }
    }
}

fn end(end: &Endpoint) -> String {
    format!("{}:{}", end.addr, end.port)
}

fn phase(phase: Phase) -> String {
    match (phase.nanoseconds(), phase.bound()) {
        (None, _) => "-".into(),
        (Some(nanoseconds), Bound::Exact) => seconds(nanoseconds),
        (Some(nanoseconds), bound) => format!("{} {}", bound.label(), seconds(nanoseconds)),
    }
}

fn seconds(nanoseconds: u64) -> String {
    format!(
        "{}.{:09}",
        nanoseconds / 1_000_000_000,
        nanoseconds % 1_000_000_000
    )
}

fn process(word: &str, process: Option<Process>) -> String {
    process.map_or_else(String::new, |process| {
        format!(
            " {word} {:?} {} ({})",
            process.comm,
            process.pid,
            process.via.label()
        )
    })
}

#[test]
fn recordings_say_what_they_said() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/records");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .expect("the folder of recordings")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 21, "{paths:?}");
    for path in paths {
        let name = path.file_stem().expect("a name").to_string_lossy();
        let text = Recording::read(&path).replay();
        insta::assert_snapshot!(format!("recording_{name}"), text);
    }
}
