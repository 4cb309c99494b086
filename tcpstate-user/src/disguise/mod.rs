//! Recordings and exports that may be given away: other addresses for the addresses, and other names for the names.
//!
//! What is left as it is, and what can be concluded from it, is in `docs/recordings.md`.

mod prefix;
mod pseudonym;

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use hashbrown::HashMap;
use ipnet::IpNet;
use tcpstate_common::record::{
    CallRecord, RecordKind, SocketRecord, TimeWaitRecord, TransitionRecord,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::{
    analysis::Connection,
    event::{Comm, Endpoint, Process},
    lifecycle::Transition,
    recording::{Header, Holder, Step},
};
use prefix::Prefix;
use pseudonym::Pseudonyms;

/// What is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Secret {
    /// IP addresses, by others with as many leading bits in common
    Addresses,
    /// Names of processes and of the host, paths of cgroups
    Names,
}

impl Secret {
    /// The word for it in every output.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Addresses => "addresses",
            Self::Names => "names",
        }
    }
}

/// A key for everything: whoever has it can undo what was done.
pub type Key = [u8; 80];

/// Replaces what is secret, always the same by the same.
pub struct Disguise {
    addresses: Option<Addresses>,
    names: Option<Pseudonyms>,
    record: Vec<u8>,
    path: String,
}

struct Addresses {
    v4: Prefix,
    v6: Prefix,
    /// Those of late, since each costs an encryption for each bit.
    known: HashMap<[u8; 16], [u8; 16]>,
}

/// Keys are for nobody's eyes.
impl fmt::Debug for Disguise {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Disguise")
            .field("addresses", &self.addresses.is_some())
            .field("names", &self.names.is_some())
            .finish_non_exhaustive()
    }
}

impl Disguise {
    /// With a key that nobody knows, and that is gone with it.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new(secrets: &[Secret]) -> io::Result<Self> {
        let mut key = [0; 80];
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        Ok(Self::with_key(secrets, &key))
    }

    /// With a given key.
    #[must_use]
    pub fn with_key(secrets: &[Secret], key: &Key) -> Self {
        let (v4, rest) = key.split_at(32);
        let (v6, names) = rest.split_at(32);
        let prefix = |key: &[u8]| Prefix::new(&key.try_into().unwrap_or_default());
        let addresses = || Addresses {
            v4: prefix(v4),
            v6: prefix(v6),
            known: HashMap::default(),
        };
        let names = || Pseudonyms::new(&names.try_into().unwrap_or_default());
        Self {
            addresses: secrets.contains(&Secret::Addresses).then(addresses),
            names: secrets.contains(&Secret::Names).then(names),
            record: Vec::new(),
            path: String::new(),
        }
    }

    /// The address for an address. IPv4-mapped stays so.
    pub fn addr(&mut self, addr: IpAddr) -> IpAddr {
        let bytes = match addr {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let other = Ipv6Addr::from(self.octets(bytes.octets()));
        match (addr, other.to_ipv4_mapped()) {
            (IpAddr::V4(_), Some(v4)) => v4.into(),
            _ => other.into(),
        }
    }

    /// The same as it stands in records.
    fn octets(&mut self, octets: [u8; 16]) -> [u8; 16] {
        const KNOWN: usize = 65_536;
        let Some(Addresses { v4, v6, known }) = &mut self.addresses else {
            return octets;
        };
        if let Some(other) = known.get(&octets) {
            return *other;
        }
        let addr = Ipv6Addr::from(octets);
        let other = match addr.to_ipv4_mapped() {
            Some(addr) => {
                let other = v4.turn(u128::from(addr.to_bits()) << 96, 32) >> 96;
                // It was 32 bits, and still is.
                let other = u32::try_from(other).unwrap_or_default();
                Ipv4Addr::from_bits(other).to_ipv6_mapped()
            }
            None => Ipv6Addr::from_bits(v6.turn(addr.to_bits(), 128)),
        };
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(octets, other.octets());
        other.octets()
    }

    /// The name for the name of a process.
    #[must_use]
    pub fn comm(&self, comm: Comm) -> Comm {
        self.names.as_ref().map_or(comm, |names| names.comm(comm))
    }

    fn comm_bytes(&self, bytes: [u8; 16]) -> [u8; 16] {
        if self.names.is_none() {
            return bytes;
        }
        // What is behind its end goes, too.
        let mut other = [0; 16];
        let comm = self.comm(Comm::new(bytes));
        let name = comm.as_bytes();
        other[..name.len()].copy_from_slice(name);
        other
    }

    /// The path for the path of a cgroup.
    #[must_use]
    pub fn path(&self, path: &str) -> String {
        self.names
            .as_ref()
            .map_or_else(|| path.to_owned(), |names| names.path(path))
    }

    /// A header without secrets.
    #[must_use]
    pub fn header(&mut self, header: &Header) -> Header {
        // Whoever adds something has to say here whether it is secret.
        let Header {
            tcpstate,
            layout,
            kernel,
            host,
            hook,
            timewait,
            calls,
            missing,
            filter,
            settings,
            start,
            zero,
            boot,
            tick,
            callers,
            id,
            part,
            begins,
            anonymized,
        } = header;
        let mut anonymized = anonymized.clone();
        let secrets = [
            (Secret::Addresses, self.addresses.is_some()),
            (Secret::Names, self.names.is_some()),
        ];
        for (secret, _) in secrets.into_iter().filter(|(_, replaced)| *replaced) {
            if !anonymized.iter().any(|label| label == secret.label()) {
                anonymized.push(secret.label().to_owned());
            }
        }
        Header {
            tcpstate: tcpstate.clone(),
            layout: *layout,
            kernel: kernel.clone(),
            host: match self.names {
                Some(_) => "anonymized".to_owned(),
                None => host.clone(),
            },
            hook: *hook,
            timewait: *timewait,
            calls: *calls,
            missing: missing.clone(),
            filter: self.filter(filter),
            // Numbers, and names of algorithms.
            settings: settings.clone(),
            start: *start,
            zero: *zero,
            boot: *boot,
            tick: *tick,
            callers: callers.clone(),
            id: *id,
            part: *part,
            begins: *begins,
            anonymized,
        }
    }

    /// Filters as they were given: flags, and what has no letters of its own, are no secret; networks are.
    fn filter(&mut self, filter: &str) -> String {
        let mut value = |value: &str| match value.parse::<IpNet>() {
            Ok(net) => IpNet::new(self.addr(net.addr()), net.prefix_len())
                .map_or_else(|_| "?".to_owned(), |net| net.trunc().to_string()),
            Err(_) if matches!(value, "tcp" | "mptcp" | "sctp" | "all") => value.to_owned(),
            Err(_)
                if value
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || byte == b'-') =>
            {
                value.to_owned()
            }
            Err(_) => "?".to_owned(),
        };
        let mut word = |word: &str| {
            if word.starts_with("--") {
                return word.to_owned();
            }
            let values: Vec<_> = word.split(',').map(&mut value).collect();
            values.join(",")
        };
        let words: Vec<_> = filter.split_whitespace().map(&mut word).collect();
        words.join(" ")
    }

    /// A step without secrets. A record that we do not understand may have any: nothing is left of it.
    pub fn step<'a>(&'a mut self, step: &Step<'a>) -> Step<'a> {
        match step {
            Step::Record(bytes) => {
                self.record(bytes);
                Step::Record(&self.record)
            }
            Step::Holders(holders) => {
                let holders = holders.iter().map(|Holder { inode, process }| Holder {
                    inode: *inode,
                    process: self.process(*process),
                });
                Step::Holders(holders.collect())
            }
            Step::Cgroup(id, path) => {
                self.path = self.path(path);
                Step::Cgroup(*id, &self.path)
            }
            // Times and numbers.
            Step::Losses { .. }
            | Step::Settled(_)
            | Step::Listed
            | Step::Round(_)
            | Step::Refresh
            | Step::Unrecorded(_)
            | Step::End(_) => step.clone(),
        }
    }

    fn record(&mut self, bytes: &[u8]) {
        self.record.clear();
        let kind = bytes.first().copied().and_then(RecordKind::from_number);
        match kind {
            None => {}
            Some(RecordKind::Transition) => {
                if let Ok((mut record, _)) = TransitionRecord::read_from_prefix(bytes) {
                    record.laddr = self.octets(record.laddr);
                    record.raddr = self.octets(record.raddr);
                    record.comm = self.comm_bytes(record.comm);
                    self.record.extend_from_slice(record.as_bytes());
                }
            }
            Some(RecordKind::Socket) => {
                if let Ok((mut record, _)) = SocketRecord::read_from_prefix(bytes) {
                    record.laddr = self.octets(record.laddr);
                    record.raddr = self.octets(record.raddr);
                    self.record.extend_from_slice(record.as_bytes());
                }
            }
            Some(RecordKind::Call) => {
                if let Ok((mut record, _)) = CallRecord::read_from_prefix(bytes) {
                    record.addr = self.octets(record.addr);
                    record.comm = self.comm_bytes(record.comm);
                    self.record.extend_from_slice(record.as_bytes());
                }
            }
            Some(
                RecordKind::TimeWaitArmed
                | RecordKind::TimeWaitCancelled
                | RecordKind::TimeWaitExpired
                | RecordKind::TimeWaitBorn
                | RecordKind::TimeWaitRestarted
                | RecordKind::TimeWaitEnded
                | RecordKind::TimeWaitTimedOut
                | RecordKind::TimeWaitFreed
                | RecordKind::TimeWaitPaired
                | RecordKind::TimeWaitRefused
                | RecordKind::TimeWaitFound,
            ) => {
                if let Ok((mut record, _)) = TimeWaitRecord::read_from_prefix(bytes) {
                    record.laddr = self.octets(record.laddr);
                    record.raddr = self.octets(record.raddr);
                    self.record.extend_from_slice(record.as_bytes());
                }
            }
        }
    }

    fn process(&self, process: Process) -> Process {
        Process {
            comm: self.comm(process.comm),
            ..process
        }
    }

    fn endpoint(&mut self, end: &mut Endpoint) {
        end.addr = self.addr(end.addr);
    }

    /// A transition without secrets.
    #[must_use]
    pub fn transition(&mut self, transition: &Transition) -> Transition {
        let mut other = transition.clone();
        self.endpoint(&mut other.event.local);
        self.endpoint(&mut other.event.remote);
        if let Some(context) = &mut other.event.context {
            context.comm = self.comm(context.comm);
        }
        other.process = other.process.map(|process| self.process(process));
        other.cgroup = other.cgroup.map(|path| Arc::from(self.path(&path)));
        other
    }

    /// A connection without secrets.
    #[must_use]
    pub fn connection(&mut self, connection: &Connection) -> Connection {
        let mut other = connection.clone();
        self.endpoint(&mut other.local);
        self.endpoint(&mut other.remote);
        other.owner = other.owner.map(|process| self.process(process));
        other.closer = other.closer.map(|process| self.process(process));
        other.cgroup = other.cgroup.map(|path| Arc::from(self.path(&path)));
        for stay in other.stays.list_mut() {
            stay.process = stay.process.map(|process| self.process(process));
        }
        other
    }
}
