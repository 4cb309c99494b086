//! What connections are told apart by.
//!
//! While things happen a group is known by a [`Key`] of plain numbers: nothing is allocated or formatted for an event. What
//! people read is made when an interval ends ([`By::label`]).

use std::{
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use tcpstate_common::state::TcpState;

use super::{
    Opened,
    container::Container,
    table::{Cell, Column, Shown},
};
use crate::{
    event::{CallEvent, Comm, Endpoint, Process},
    lifecycle::{Found, Transition},
};

/// Something to tell connections apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// The name of the process.
    Process,
    /// The process.
    Pid,
    /// The cgroup the socket was made in.
    Cgroup,
    /// The container of that cgroup, or its systemd unit.
    Container,
    /// The user id of the socket.
    Uid,
    /// The network namespace.
    Netns,
    /// The local end of connections that the peer opened.
    Listener,
    /// The listening end: ours if the peer opened the connection, the peer's if we did.
    Service,
    /// The peer: its address; with its port if we opened the connection.
    Remote,
    /// The peer's network.
    Cidr,
    /// The TCP state.
    State,
    /// What local ports are picked for: source, destination and its port. No view is told apart by it.
    Ports,
    /// The local address and port that bind() was asked for. No view is told apart by it.
    Asked,
}

impl Dimension {
    /// All that views are told apart by.
    pub const ALL: [Self; 11] = [
        Self::Process,
        Self::Pid,
        Self::Cgroup,
        Self::Container,
        Self::Uid,
        Self::Netns,
        Self::Listener,
        Self::Service,
        Self::Remote,
        Self::Cidr,
        Self::State,
    ];

    /// The word for it on the command line.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::Container => "container",
            Self::Uid => "uid",
            Self::Netns => "netns",
            Self::Listener => "listener",
            Self::Service => "service",
            Self::Remote => "remote",
            Self::Cidr => "cidr",
            Self::State => "state",
            Self::Ports => "ports",
            Self::Asked => "asked",
        }
    }

    /// Its columns.
    const fn columns(self) -> &'static [Column] {
        const PROCESS: &[Column] = &[Column::key("comm", "COMM")];
        const PID: &[Column] = &[Column::key("pid", "PID"), Column::key("comm", "COMM")];
        const CGROUP: &[Column] = &[Column::key("cgroup", "CGROUP")];
        const CONTAINER: &[Column] = &[
            Column::key("runtime", "RUNTIME"),
            Column::key("container", "CONTAINER"),
        ];
        const UID: &[Column] = &[Column::key("uid", "UID")];
        const NETNS: &[Column] = &[
            Column::key("netns", "NETNS"),
            Column::key("netns_cookie", "NETNS COOKIE").shown(Shown::Machine),
        ];
        const LISTENER: &[Column] = &[Column::key("listener", "LISTENER")];
        const SERVICE: &[Column] = &[
            Column::key("opened", "OPENED").shown(Shown::Machine),
            Column::key("arrow", "").shown(Shown::Text),
            Column::key("service", "SERVICE"),
        ];
        const REMOTE: &[Column] = &[Column::key("remote", "REMOTE")];
        const CIDR: &[Column] = &[Column::key("cidr", "CIDR")];
        const PORTS: &[Column] = &[
            Column::key("netns", "NETNS"),
            Column::key("netns_cookie", "NETNS COOKIE").shown(Shown::Machine),
            Column::key("source", "FROM"),
            Column::key("destination", "TO"),
        ];
        const ASKED: &[Column] = &[
            Column::key("netns", "NETNS"),
            Column::key("netns_cookie", "NETNS COOKIE").shown(Shown::Machine),
            Column::key("address", "ADDRESS"),
            Column::key("port", "PORT").shown(Shown::Machine),
            Column::key("port_or_any", "PORT").shown(Shown::Text),
        ];
        const STATE: &[Column] = &[Column::key("state", "STATE")];
        match self {
            Self::Process => PROCESS,
            Self::Pid => PID,
            Self::Cgroup => CGROUP,
            Self::Container => CONTAINER,
            Self::Uid => UID,
            Self::Netns => NETNS,
            Self::Listener => LISTENER,
            Self::Service => SERVICE,
            Self::Remote => REMOTE,
            Self::Cidr => CIDR,
            Self::State => STATE,
            Self::Ports => PORTS,
            Self::Asked => ASKED,
        }
    }
}

/// A list of dimensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    dimensions: Vec<Dimension>,
    prefixes: (u8, u8),
}

/// What a group has in common; only what is asked for is filled in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key {
    comm: Option<Comm>,
    pid: Option<u32>,
    cgroup: Option<u64>,
    uid: Option<u32>,
    netns: Option<u32>,
    netns_cookie: Option<u64>,
    opened: Option<Opened>,
    local: Option<Endpoint>,
    remote: Option<Endpoint>,
    network: Option<IpNet>,
    state: Option<TcpState>,
}

/// What is not filled in is not hashed: that is most of it, and this is done for every event.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        fn some<T: Hash>(value: Option<&T>, state: &mut impl Hasher) {
            if let Some(value) = value {
                value.hash(state);
            }
        }
        some(self.comm.as_ref(), state);
        some(self.pid.as_ref(), state);
        some(self.cgroup.as_ref(), state);
        some(self.uid.as_ref(), state);
        some(self.netns.as_ref(), state);
        some(self.netns_cookie.as_ref(), state);
        some(self.opened.as_ref(), state);
        some(self.local.as_ref(), state);
        some(self.remote.as_ref(), state);
        some(self.network.as_ref(), state);
        some(self.state.as_ref(), state);
    }
}

/// What is known of a connection at some time, as far as groups are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Network namespace: inode number.
    pub netns: Option<u32>,
    /// Network namespace: cookie.
    pub netns_cookie: Option<u64>,
    /// Id of its cgroup.
    pub cgroup: Option<u64>,
    /// User id of the socket.
    pub uid: Option<u32>,
    /// This host's end.
    pub local: Endpoint,
    /// The peer's end.
    pub remote: Endpoint,
    /// The state it is in.
    pub state: TcpState,
}

impl Key {
    /// The address is not known.
    pub(super) const fn without_local(mut self) -> Self {
        self.local = None;
        self
    }
}

impl Subject {
    /// What is known of a call of bind() on a socket.
    pub(super) const fn of_bind(event: &CallEvent, asked: Endpoint) -> Self {
        Self {
            netns: event.netns,
            netns_cookie: event.netns_cookie,
            cgroup: event.cgroup,
            uid: None,
            local: asked,
            remote: asked,
            state: TcpState::Close,
        }
    }

    /// What is known after a transition.
    #[must_use]
    pub const fn of(transition: &Transition) -> Self {
        let event = &transition.event;
        Self {
            netns: event.netns,
            netns_cookie: event.netns_cookie,
            cgroup: event.cgroup,
            uid: event.uid,
            local: event.local,
            remote: event.remote,
            state: event.new,
        }
    }

    /// What is known of one that was found.
    #[must_use]
    pub const fn of_found(found: &Found) -> Self {
        Self {
            netns: found.netns,
            netns_cookie: found.netns_cookie,
            cgroup: found.cgroup_id,
            uid: found.uid,
            local: found.local,
            remote: found.remote,
            state: found.state,
        }
    }

    /// The network namespace, as far as it can be told from others.
    #[must_use]
    pub fn namespace(&self) -> u64 {
        self.netns_cookie
            .or(self.netns.map(u64::from))
            .unwrap_or_default()
    }
}

impl By {
    /// By these dimensions, each once; peers' networks have this many bits in IPv4 and in IPv6.
    #[must_use]
    pub fn new(dimensions: &[Dimension], prefixes: (u8, u8)) -> Self {
        let mut once = Vec::new();
        for dimension in dimensions {
            // A process id comes with its name.
            let has_name = *dimension == Dimension::Process && dimensions.contains(&Dimension::Pid);
            if !once.contains(dimension) && !has_name {
                once.push(*dimension);
            }
        }
        Self {
            dimensions: once,
            prefixes,
        }
    }

    /// Not told apart.
    #[must_use]
    pub fn nothing() -> Self {
        Self::new(&[], (24, 64))
    }

    /// The columns of a key.
    #[must_use]
    pub fn columns(&self) -> Vec<Column> {
        self.dimensions
            .iter()
            .flat_map(|dimension| dimension.columns())
            .copied()
            .collect()
    }

    /// Whether this is among what is told apart.
    #[must_use]
    pub fn has(&self, dimension: Dimension) -> bool {
        self.dimensions.contains(&dimension)
    }

    /// Whether it has to be known who opened a connection.
    #[must_use]
    pub fn needs_opened(&self) -> bool {
        self.dimensions.iter().any(|dimension| {
            matches!(
                dimension,
                Dimension::Listener | Dimension::Service | Dimension::Remote
            )
        })
    }

    /// The group of a transition's connection; the process is the one that the view decides on.
    #[must_use]
    pub fn key(&self, transition: &Transition, opened: Opened, process: Option<&Process>) -> Key {
        self.key_of(&Subject::of(transition), opened, process)
    }

    /// The group of a connection; the process is the one that the view decides on.
    #[must_use]
    pub fn key_of(&self, subject: &Subject, opened: Opened, process: Option<&Process>) -> Key {
        let mut key = Key::default();
        for dimension in &self.dimensions {
            match dimension {
                Dimension::Process => key.comm = process.map(|process| process.comm),
                Dimension::Pid => {
                    key.comm = process.map(|process| process.comm);
                    key.pid = process.map(|process| process.pid);
                }
                Dimension::Cgroup | Dimension::Container => key.cgroup = subject.cgroup,
                Dimension::Uid => key.uid = subject.uid,
                Dimension::Netns => {
                    (key.netns, key.netns_cookie) = (subject.netns, subject.netns_cookie);
                }
                Dimension::Listener => {
                    key.opened = Some(opened);
                    if opened == Opened::Passive {
                        key.local = Some(subject.local);
                    }
                }
                Dimension::Service => {
                    key.opened = Some(opened);
                    match opened {
                        Opened::Passive => key.local = Some(subject.local),
                        Opened::Active | Opened::Simultaneous => key.remote = Some(subject.remote),
                        Opened::Unknown => {}
                    }
                }
                Dimension::Remote => {
                    // A port that the peer's kernel picked tells nothing, and every connection has another.
                    let picked = !matches!(opened, Opened::Active | Opened::Simultaneous);
                    let port = if picked { 0 } else { subject.remote.port };
                    key.remote = Some(Endpoint {
                        port,
                        ..subject.remote
                    });
                }
                Dimension::Asked => {
                    (key.netns, key.netns_cookie) = (subject.netns, subject.netns_cookie);
                    key.local = Some(subject.local);
                }
                Dimension::Cidr => key.network = self.network(subject.remote.addr),
                Dimension::State => key.state = Some(subject.state),
                Dimension::Ports => {
                    (key.netns, key.netns_cookie) = (subject.netns, subject.netns_cookie);
                    key.local = Some(Endpoint {
                        port: 0,
                        ..subject.local
                    });
                    key.remote = Some(subject.remote);
                }
            }
        }
        key
    }

    /// The group of a connection that this process holds now; it was in this one.
    pub(super) fn held_by(&self, mut key: Key, process: &Process) -> Key {
        if self.has(Dimension::Pid) || self.has(Dimension::Process) {
            key.comm = Some(process.comm);
        }
        if self.has(Dimension::Pid) {
            key.pid = Some(process.pid);
        }
        key
    }

    fn network(&self, addr: IpAddr) -> Option<IpNet> {
        let (v4, v6) = self.prefixes;
        let prefix = if addr.is_ipv4() { v4 } else { v6 };
        IpNet::new(addr, prefix).ok().map(|net| net.trunc())
    }

    /// The cells of a key.
    pub(super) fn label(&self, key: &Key, cgroup: Option<&Arc<str>>) -> Vec<Cell> {
        let mut cells = Vec::new();
        for dimension in &self.dimensions {
            cells_of(*dimension, key, cgroup, &mut cells);
        }
        cells
    }
}

/// The cells of one dimension.
fn cells_of(dimension: Dimension, key: &Key, cgroup: Option<&Arc<str>>, cells: &mut Vec<Cell>) {
    let opened = key.opened.unwrap_or(Opened::Unknown);
    let id = |number: Option<u32>| Cell::known(number, |number| Cell::Id(number.into()));
    match dimension {
        Dimension::Process => cells.push(Cell::known(key.comm, Cell::Comm)),
        Dimension::Pid => cells.extend([id(key.pid), Cell::known(key.comm, Cell::Comm)]),
        Dimension::Cgroup => cells.push(match (cgroup, key.cgroup) {
            (Some(path), _) => Cell::Name(Arc::clone(path)),
            (None, Some(id)) => Cell::Id(id),
            (None, None) => Cell::Unknown,
        }),
        Dimension::Container => cells.extend(container(cgroup)),
        Dimension::Uid => cells.push(id(key.uid)),
        Dimension::Netns => {
            cells.extend([id(key.netns), Cell::known(key.netns_cookie, Cell::Id)]);
        }
        Dimension::Listener => cells.push(match opened {
            Opened::Passive => Cell::known(key.local, Cell::Endpoint),
            Opened::Active | Opened::Simultaneous => Cell::Word("none"),
            Opened::Unknown => Cell::Unknown,
        }),
        Dimension::Service => cells.extend([
            Cell::Word(opened.label()),
            Cell::Word(match opened {
                Opened::Passive => "<-",
                Opened::Active => "->",
                Opened::Simultaneous => "<>",
                Opened::Unknown => "?",
            }),
            match opened {
                Opened::Passive => Cell::known(key.local, Cell::Endpoint),
                Opened::Active | Opened::Simultaneous => Cell::known(key.remote, Cell::Endpoint),
                Opened::Unknown => Cell::Unknown,
            },
        ]),
        Dimension::Remote => cells.push(Cell::known(key.remote, Cell::Endpoint)),
        Dimension::Cidr => cells.push(Cell::known(key.network, Cell::Network)),
        Dimension::Ports => cells.extend([
            id(key.netns),
            Cell::known(key.netns_cookie, Cell::Id),
            Cell::known(key.local, Cell::Endpoint),
            Cell::known(key.remote, Cell::Endpoint),
        ]),
        Dimension::Asked => cells.extend([
            id(key.netns),
            Cell::known(key.netns_cookie, Cell::Id),
            Cell::known(key.local, |local| Cell::Name(local.addr.to_string().into())),
            Cell::known(key.local, |local| Cell::Id(local.port.into())),
            Cell::known(key.local, |local| match local.port {
                0 => Cell::Word("any"),
                port => Cell::Id(port.into()),
            }),
        ]),
        Dimension::State => cells.push(Cell::known(key.state, |state| Cell::Term {
            label: state.label(),
            name: state.name(),
        })),
    }
}

fn container(cgroup: Option<&Arc<str>>) -> [Cell; 2] {
    let Some(path) = cgroup else {
        return [Cell::Unknown, Cell::Unknown];
    };
    match Container::of(path) {
        Some(container) => [
            Cell::Word(container.runtime),
            Cell::Name(container.id.into()),
        ],
        None => [Cell::Word("none"), Cell::Blank],
    }
}
