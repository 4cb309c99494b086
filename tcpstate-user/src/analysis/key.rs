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

use super::{
    Opened,
    container::Container,
    table::{Cell, Column, Shown},
};
use crate::{
    event::{Comm, Endpoint, Process},
    lifecycle::Transition,
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
}

impl Dimension {
    /// All of them.
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
        }
    }

    /// Its columns. A view with states in its rows has a column of its own for them.
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
            Self::State => &[],
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
        let event = &transition.event;
        let mut key = Key::default();
        for dimension in &self.dimensions {
            match dimension {
                Dimension::Process => key.comm = process.map(|process| process.comm),
                Dimension::Pid => {
                    key.comm = process.map(|process| process.comm);
                    key.pid = process.map(|process| process.pid);
                }
                Dimension::Cgroup | Dimension::Container => key.cgroup = event.cgroup,
                Dimension::Uid => key.uid = event.uid,
                Dimension::Netns => {
                    (key.netns, key.netns_cookie) = (event.netns, event.netns_cookie);
                }
                Dimension::Listener => {
                    key.opened = Some(opened);
                    if opened == Opened::Passive {
                        key.local = Some(event.local);
                    }
                }
                Dimension::Service => {
                    key.opened = Some(opened);
                    match opened {
                        Opened::Passive => key.local = Some(event.local),
                        Opened::Active | Opened::Simultaneous => key.remote = Some(event.remote),
                        Opened::Unknown => {}
                    }
                }
                Dimension::Remote => {
                    // A port that the peer's kernel picked tells nothing, and every connection has another.
                    let picked = !matches!(opened, Opened::Active | Opened::Simultaneous);
                    let port = if picked { 0 } else { event.remote.port };
                    key.remote = Some(Endpoint {
                        port,
                        ..event.remote
                    });
                }
                Dimension::Cidr => key.network = self.network(event.remote.addr),
                Dimension::State => {}
            }
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
        Dimension::State => {}
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
