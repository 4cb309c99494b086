//! What the doctor has to say.

use std::{borrow::Cow, fmt};

use serde::{Serialize, Serializer};

use crate::{
    analysis::Opened,
    event::{Comm, Endpoint},
    sink::escape,
};

/// How bad it is. Earned by evidence: something failed, or will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something fails, or will soon: somebody should be woken up.
    High,
    /// Worth a look during the day.
    Notice,
    /// It looks alarming elsewhere, and is not.
    Fine,
}

impl Severity {
    /// The word for it for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::High => "HIGH",
            Self::Notice => "NOTICE",
            Self::Fine => "fine",
        }
    }
}

/// A number in evidence.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Number {
    /// So many.
    Count(u64),
    /// Seconds, or a share from 0 to 1.
    Real(f64),
    /// A setting as the kernel writes it.
    Setting(String),
}

/// Something that was seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evidence {
    /// Its name in machine formats.
    pub name: &'static str,
    /// The number.
    pub value: Number,
    /// For people, the number included.
    pub text: String,
}

/// A process, as far as the kernel told, and where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its id.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: Option<Comm>,
}

/// Who is the cause, and towards whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Who {
    /// The process.
    pub process: Process,
    /// Its container, or the unit of systemd: `docker 0123456789ab`.
    pub container: Option<String>,
    /// The network namespace: inode number.
    pub netns: Option<u32>,
    /// Who opened the connections.
    pub opened: Opened,
    /// The listening end: ours if the peer opened them, the peer's if we did.
    pub service: Option<Endpoint>,
    /// The peer's address, where that is told apart.
    pub peer: Option<Endpoint>,
}

/// One who is the cause, and of how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Who.
    pub who: Who,
    /// Of so many.
    pub count: u64,
}

/// What a rule has found.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The rule.
    pub rule: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, or that it is fine, in one sentence.
    pub sentence: String,
    /// The network namespace it is in, if it is in one.
    pub netns: Option<u32>,
    /// In numbers.
    pub evidence: Vec<Evidence>,
    /// Commands that show more.
    pub see: Vec<String>,
    /// What is counted of those who cause it: one of it, many of it.
    pub unit: [&'static str; 2],
    /// Who causes it, most first.
    pub causes: Vec<Cause>,
    /// Those who are not among them.
    pub more_causes: usize,
    /// Why it matters, or does not.
    pub matters: Cow<'static, str>,
    /// What to change in the application.
    pub application: Cow<'static, str>,
    /// What to change in the kernel then.
    pub kernel: Cow<'static, str>,
    /// What that would do with today's numbers.
    pub effect: Cow<'static, str>,
    /// What not to do, and why.
    pub avoid: Cow<'static, str>,
}

impl Finding {
    /// A finding of which nothing but this is known yet.
    #[must_use]
    pub fn new(severity: Severity, sentence: String) -> Self {
        Self {
            rule: "",
            severity,
            sentence,
            netns: None,
            evidence: Vec::new(),
            see: Vec::new(),
            unit: [""; 2],
            causes: Vec::new(),
            more_causes: 0,
            matters: Cow::Borrowed(""),
            application: Cow::Borrowed(""),
            kernel: Cow::Borrowed(""),
            effect: Cow::Borrowed(""),
            avoid: Cow::Borrowed(""),
        }
    }

    /// With a count.
    pub fn count(&mut self, name: &'static str, value: u64, text: String) {
        self.evidence.push(Evidence {
            name,
            value: Number::Count(value),
            text,
        });
    }

    /// With seconds, or a share.
    pub fn real(&mut self, name: &'static str, value: f64, text: String) {
        self.evidence.push(Evidence {
            name,
            value: Number::Real(value),
            text,
        });
    }

    /// With a setting.
    pub fn setting(&mut self, name: &'static str, value: &str, text: String) {
        self.evidence.push(Evidence {
            name,
            value: Number::Setting(value.to_owned()),
            text,
        });
    }

    /// With these causes, of whom this is counted, most first, of whom only the first few are kept.
    pub fn caused_by(&mut self, unit: [&'static str; 2], mut causes: Vec<Cause>) {
        /// As many as fit on a screen beside the rest.
        const CAUSES: usize = 5;
        causes.retain(|cause| cause.count > 0);
        causes.sort_by_key(|cause| std::cmp::Reverse(cause.count));
        self.more_causes = causes.len().saturating_sub(CAUSES);
        causes.truncate(CAUSES);
        self.unit = unit;
        self.causes = causes;
    }
}

/// A container as people know it: `docker ps` shows twelve digits.
pub(super) fn container(runtime: &str, id: &str) -> String {
    const DIGITS: usize = 12;
    let long = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let shown = if long { id.get(..DIGITS) } else { None };
    format!("{runtime} {}", shown.unwrap_or(id))
}

/// So many: `1 connection`, `2 connections`.
#[must_use]
pub fn plural(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

impl fmt::Display for Process {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(comm) = self.comm else {
            return out.write_str("unknown process");
        };
        let comm = comm.to_str();
        out.write_str(&escape::word(&comm))?;
        match self.pid {
            Some(pid) => write!(out, "[{pid}]"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.process)?;
        if let Some(service) = self.service {
            let arrow = match self.opened {
                Opened::Passive => "<-",
                Opened::Active => "->",
                Opened::Simultaneous => "<>",
                Opened::Unknown => "?",
            };
            write!(out, " {arrow} {}", Shown(service))?;
        }
        if let Some(peer) = self.peer.filter(|peer| Some(*peer) != self.service) {
            write!(out, " from {}", peer.addr)?;
        }
        match &self.container {
            Some(container) => write!(out, ", {}", escape::text(container)),
            None => Ok(()),
        }
    }
}

/// An address and a port for people and machines.
#[derive(Clone, Copy, Debug)]
pub struct Shown(pub Endpoint);

impl fmt::Display for Shown {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint { addr, port } = self.0;
        match (addr.is_ipv6(), port) {
            (_, 0) => write!(out, "{addr}"),
            (false, port) => write!(out, "{addr}:{port}"),
            (true, port) => write!(out, "[{addr}]:{port}"),
        }
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Line<'a> {
            pid: Option<u32>,
            comm: Option<String>,
            container: Option<&'a str>,
            netns: Option<u32>,
            opened: &'static str,
            service: Option<String>,
            peer: Option<String>,
            count: u64,
        }
        let who = &self.who;
        Line {
            pid: who.process.pid,
            comm: who.process.comm.map(|comm| comm.to_str().into_owned()),
            container: who.container.as_deref(),
            netns: who.netns,
            opened: who.opened.label(),
            service: who.service.map(|service| Shown(service).to_string()),
            peer: who.peer.map(|peer| Shown(peer).to_string()),
            count: self.count,
        }
        .serialize(serializer)
    }
}
