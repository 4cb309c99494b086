//! What is measured: the tool in its ways, its peers, and the smallest programs there are.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::bpf::Floor;

/// Stands in arguments for a new file.
pub const FILE: &str = "{file}";

/// How to count in a tool's output what it has seen of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Lines about the load's addresses but for the end of TIME_WAIT: one for each transition.
    Transitions,
    /// Lines about the load's addresses: one for each end of a connection.
    Ends,
    /// `tcpstate closers -j`: the ends that closed.
    Closes,
    /// `tcpstate hist -j`: the ends that were ESTABLISHED.
    Established,
    /// `tcpstate timewait -j`: TIME_WAITs that began.
    Births,
    /// bpftrace's counts.
    Counts,
    /// A recording of ours, replayed as transitions.
    Recording,
    /// What perf has recorded.
    Perf,
    /// It does not tell.
    Nothing,
}

/// What ought to be reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Goals {
    /// Connection rate with it, of that without.
    pub ratio: Option<f64>,
    /// Seconds of user time for a million transitions.
    pub user_seconds: Option<f64>,
    /// Whether it must not lose anything.
    pub complete: bool,
}

/// Something that is measured.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What --only calls it.
    pub name: String,
    /// What is started; none with the reason why not.
    pub program: Result<PathBuf, String>,
    pub arguments: Vec<String>,
    /// Whether its output goes to a file instead of /dev/null.
    pub to_file: bool,
    pub seen: Seen,
    pub goals: Goals,
}

impl Subject {
    /// As it would be typed.
    pub fn shown(&self) -> String {
        let program = self.program.as_ref().ok();
        let name = program.and_then(|program| program.file_name()?.to_str());
        let mut shown = name.unwrap_or(&self.name).to_owned();
        for argument in &self.arguments {
            shown.push(' ');
            if argument == FILE {
                shown.push_str("FILE");
            } else if argument.contains(' ') {
                shown.extend(["'", argument, "'"]);
            } else {
                shown.push_str(argument);
            }
        }
        if self.to_file {
            shown.push_str(" > FILE");
        }
        shown
    }
}

/// A user's own ways.
const EVERY: Goals = Goals {
    ratio: Some(0.92),
    user_seconds: Some(0.5),
    complete: true,
};
const OBSERVED: Goals = Goals {
    ratio: Some(0.90),
    ..EVERY
};
const AGGREGATED: Goals = Goals {
    ratio: Some(0.94),
    user_seconds: Some(0.2),
    complete: true,
};
const LOSSLESS: Goals = Goals {
    ratio: None,
    user_seconds: None,
    complete: true,
};
const NONE: Goals = Goals {
    ratio: None,
    user_seconds: None,
    complete: false,
};

/// All of them, the smallest programs first. `observers` are the ways of observing TIME_WAIT that this kernel allows, best first.
pub fn all(tcpstate: &Path, observers: &[String]) -> Result<Vec<Subject>> {
    let ours = |name: &str, arguments: &str, seen, goals| Subject {
        name: name.to_owned(),
        program: Ok(tcpstate.to_owned()),
        arguments: arguments.split(' ').map(str::to_owned).collect(),
        to_file: false,
        seen,
        goals,
    };
    let to_file = |subject: Subject| Subject {
        to_file: true,
        ..subject
    };
    let bench = env::current_exe().context("this program is not to be found")?;
    let off = "--timewait off";
    let floors = Floor::ALL.map(|(_, name, _)| Subject {
        name: name.to_owned(),
        program: Ok(bench.clone()),
        arguments: vec![format!("--attach={name}")],
        to_file: false,
        seen: Seen::Nothing,
        goals: NONE,
    });
    let mut subjects = Vec::from(floors);
    subjects.extend([
        ours("trace", &format!("trace {off}"), Seen::Transitions, EVERY),
        ours(
            "trace-json",
            &format!("trace -j {off}"),
            Seen::Transitions,
            EVERY,
        ),
        to_file(ours(
            "trace-file",
            &format!("trace {off}"),
            Seen::Transitions,
            LOSSLESS,
        )),
        to_file(ours(
            "trace-json-file",
            &format!("trace -j {off}"),
            Seen::Transitions,
            LOSSLESS,
        )),
    ]);
    for (rank, observer) in observers.iter().enumerate() {
        subjects.push(ours(
            &format!("trace-json-{observer}"),
            &format!("trace -j --timewait {observer}"),
            Seen::Transitions,
            if rank == 0 { OBSERVED } else { NONE },
        ));
    }
    subjects.extend([
        ours("conns", "conns", Seen::Ends, LOSSLESS),
        ours("conns-off", &format!("conns {off}"), Seen::Ends, LOSSLESS),
        ours("closers", "closers -j", Seen::Closes, AGGREGATED),
        ours(
            "closers-off",
            &format!("closers -j {off}"),
            Seen::Closes,
            AGGREGATED,
        ),
        ours("hist", "hist -j", Seen::Established, AGGREGATED),
        ours(
            "hist-off",
            &format!("hist -j {off}"),
            Seen::Established,
            AGGREGATED,
        ),
        ours("states", "states -j 1", Seen::Nothing, AGGREGATED),
        ours(
            "states-off",
            &format!("states -j {off} 1"),
            Seen::Nothing,
            AGGREGATED,
        ),
        ours("timewait", "timewait -j", Seen::Births, LOSSLESS),
        ours(
            "record",
            &format!("record {FILE}"),
            Seen::Recording,
            AGGREGATED,
        ),
        ours(
            "record-off",
            &format!("record {off} {FILE}"),
            Seen::Recording,
            AGGREGATED,
        ),
    ]);
    subjects.extend(peers());
    Ok(subjects)
}

fn peers() -> Vec<Subject> {
    let peer = |name: &str, program: &str, package: &str, arguments: &[&str], seen| Subject {
        name: name.to_owned(),
        program: find(program)
            .ok_or_else(|| format!("{program} is not installed (package {package})")),
        arguments: arguments
            .iter()
            .map(|&argument| argument.to_owned())
            .collect(),
        to_file: false,
        seen,
        goals: NONE,
    };
    let print = "tracepoint:sock:inet_sock_set_state { printf(\"%s %d %s:%d %s:%d %d %d\\n\", comm, pid, \
                 ntop(args->saddr), args->sport, ntop(args->daddr), args->dport, args->oldstate, args->newstate); }";
    let count =
        "tracepoint:sock:inet_sock_set_state { @[args->oldstate, args->newstate] = count(); }";
    vec![
        peer(
            "tcpstates",
            "tcpstates",
            "libbpf-tools",
            &[],
            Seen::Transitions,
        ),
        peer("tcplife", "tcplife", "libbpf-tools", &[], Seen::Ends),
        peer(
            "bpftrace-print",
            "bpftrace",
            "bpftrace",
            &["-e", print],
            Seen::Transitions,
        ),
        peer(
            "bpftrace-count",
            "bpftrace",
            "bpftrace",
            &["-e", count],
            Seen::Counts,
        ),
        peer(
            "perf-record",
            "perf",
            "linux-perf",
            &["record", "-a", "-e", "sock:inet_sock_set_state", "-o", FILE],
            Seen::Perf,
        ),
    ]
}

/// Debian puts some of them where only root looks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The ways of observing TIME_WAIT that work here, best first, and why others do not.
pub fn observers(tcpstate: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let output = Command::new(tcpstate)
        .args(["probe", "-j"])
        .output()
        .with_context(|| format!("{} cannot be started", tcpstate.display()))?;
    let probe: Value =
        serde_json::from_slice(&output.stdout).context("`tcpstate probe -j` gives no answer")?;
    let (mut works, mut refused) = (Vec::new(), Vec::new());
    for observer in probe["timewait_observers"].as_array().into_iter().flatten() {
        let name = observer["observer"].as_str().unwrap_or_default().to_owned();
        if observer["works"].as_bool() == Some(true) {
            works.push(name);
        } else {
            let reason = observer["reason"].as_str().unwrap_or("?");
            refused.push(format!("trace --timewait {name}: {reason}"));
        }
    }
    Ok((works, refused))
}
