//! Which transitions are shown.
//!
//! What never changes in the life of a connection (namespace, protocol, IP version, addresses, ports) is decided in the
//! kernel as far as it can be ([`Filter::for_kernel`]). An active open has no local port at its first event, a passive
//! one no remote end: such a transition is held back until the next one of that connection tells ([`Gate`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use tcpstate_common::{
    config::{KernelFilter, MAX_FILTERS, PortRange, Prefix},
    state::TcpState,
};

use crate::{
    event::{
        CallEvent, Comm, Endpoint, Process, Protocol, SocketEvent, TimeWaitEvent, TransitionEvent,
    },
    lifecycle::Transition,
    register::Register,
};

/// A network namespace to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netns {
    /// Its inode number, which the kernel may give to another namespace later.
    pub inode: u32,
    /// Its cookie, which the kernel never gives to another; Linux 5.12 and later.
    pub cookie: Option<u64>,
}

/// The versions of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4, and IPv4-mapped IPv6.
    V4,
    /// IPv6.
    V6,
}

/// What to show. An empty list lets everything pass; lists of different kinds must all agree.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only this version of IP.
    pub ip_version: Option<IpVersion>,
    /// Only these protocols; empty means TCP alone.
    pub protocols: Vec<Protocol>,
    /// Every protocol, whatever `protocols` says.
    pub any_protocol: bool,
    /// Only this network namespace.
    pub netns: Option<Netns>,
    /// Only connections with a local port in one of these ranges.
    pub local_ports: Vec<PortRange>,
    /// Only connections with a remote port in one of these ranges.
    pub remote_ports: Vec<PortRange>,
    /// Only connections with an end in one of these networks.
    pub networks: Vec<IpNet>,
    /// Only transitions from or to one of these states, or connections that were in one of them.
    pub states: Vec<TcpState>,
    /// Only transitions of these processes.
    pub pids: Vec<u32>,
    /// Only transitions of processes with one of these names.
    pub comms: Vec<Comm>,
    /// Only sockets of these cgroups and those below them, by path.
    pub cgroups: Vec<String>,
    /// What a recording was made with, which must agree about connections and bind(). Whoever recorded could not see the first
    /// event of a connection without its port, so the recording has those of all.
    pub recorded: Option<Box<Self>>,
}

/// What is to be done with a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Show,
    Hide,
    /// A port or an address that decides is not known yet.
    Wait,
}

impl Decision {
    /// Both must say yes.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Hide, _) | (_, Self::Hide) => Self::Hide,
            (Self::Wait, _) | (_, Self::Wait) => Self::Wait,
            (Self::Show, Self::Show) => Self::Show,
        }
    }

    fn of(condition: bool) -> Self {
        if condition { Self::Show } else { Self::Hide }
    }
}

impl Filter {
    /// The part of this filter that the kernel side decides.
    #[must_use]
    pub fn for_kernel(&self) -> KernelFilter {
        let protocol = match self.protocols.as_slice() {
            [] if !self.any_protocol => u32::from(Protocol::Tcp.number()),
            [one] if !self.any_protocol => u32::from(one.number()),
            _ => KernelFilter::ANY_PROTOCOL,
        };
        let mut filter = KernelFilter::all(protocol);
        filter.ip_version = match self.ip_version {
            None => 0,
            Some(IpVersion::V4) => 4,
            Some(IpVersion::V6) => 6,
        };
        if let Some(netns) = self.netns {
            match netns.cookie {
                Some(cookie) => filter.netns_cookie = cookie,
                None => filter.netns = netns.inode,
            }
        }
        filter.local_port_count = fill(&mut filter.local_ports, &self.local_ports, |range| *range);
        filter.remote_port_count =
            fill(&mut filter.remote_ports, &self.remote_ports, |range| *range);
        filter.prefix_count = fill(&mut filter.prefixes, &self.networks, prefix);
        filter
    }

    /// Whether a transition is wanted, as far as its state, process and cgroup tell. What its connection tells is for
    /// [`Gate::admit`].
    ///
    /// # Errors
    /// If the process or cgroup to filter by is not known.
    pub fn wants(&self, transition: &Transition) -> Result<bool, Unattributed> {
        Ok(self.state(&transition.event)
            && self.cgroup(transition.cgroup.as_deref())?
            && self.process(transition.process)?)
    }

    /// Whether a connection is wanted that was in the states of which this says so, whatever else it was.
    pub fn wants_states(&self, was_in: impl FnMut(&TcpState) -> bool) -> bool {
        self.states.is_empty() || self.states.iter().any(was_in)
    }

    /// Whether something of this process and cgroup is wanted.
    ///
    /// # Errors
    /// If the process or cgroup to filter by is not known.
    pub fn wants_owner(
        &self,
        process: Option<Process>,
        cgroup: Option<&str>,
    ) -> Result<bool, Unattributed> {
        Ok(self.cgroup(cgroup)? && self.process(process)?)
    }

    /// Whether the connection of a minisocket is wanted.
    #[must_use]
    pub fn wants_minisocket(&self, event: &TimeWaitEvent) -> bool {
        self.wants_ends(Protocol::Tcp, &event.local, &event.remote)
    }

    /// Whether a socket that was found is wanted.
    #[must_use]
    pub fn wants_socket(&self, event: &SocketEvent) -> bool {
        self.wants_ends(event.protocol, &event.local, &event.remote)
    }

    /// Whether bind() with this address is wanted; `None` if it is not known.
    #[must_use]
    pub fn wants_bind(&self, protocol: Protocol, asked: Option<Endpoint>) -> bool {
        let nobody = |local: Endpoint| Endpoint {
            addr: match local.addr {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            },
            port: 0,
        };
        match asked {
            Some(local) => self.wants_ends(protocol, &local, &nobody(local)),
            None => {
                self.protocol(protocol)
                    && self.ip_version.is_none()
                    && self.networks.is_empty()
                    && self.local_ports.is_empty()
                    && self.remote_ports.is_empty()
                    && self
                        .recorded
                        .as_ref()
                        .is_none_or(|recorded| recorded.wants_bind(protocol, None))
            }
        }
    }

    /// Whether a connection is wanted whose protocol and both ends are known.
    fn wants_ends(&self, protocol: Protocol, local: &Endpoint, remote: &Endpoint) -> bool {
        let within = |end: &Endpoint| self.networks.iter().any(|net| net.contains(&end.addr));
        self.protocol(protocol)
            && self
                .ip_version
                .is_none_or(|wanted| local.addr.is_ipv4() == (wanted == IpVersion::V4))
            && port(&self.local_ports, local.port, false) == Decision::Show
            && port(&self.remote_ports, remote.port, false) == Decision::Show
            && (self.networks.is_empty() || within(local) || within(remote))
            && self
                .recorded
                .as_ref()
                .is_none_or(|recorded| recorded.wants_ends(protocol, local, remote))
    }

    /// Whether a connection is wanted, as far as this event of it tells.
    fn connection(&self, event: &TransitionEvent) -> Decision {
        let protocol = Decision::of(self.protocol(event.protocol));
        // As it mostly is, and this is asked of each event.
        if !self.looks_at_ends() {
            return protocol;
        }
        protocol
            .and(self.version(event))
            .and(port(
                &self.local_ports,
                event.local.port,
                lacks_local_port(event),
            ))
            .and(port(
                &self.remote_ports,
                event.remote.port,
                event.is_child(),
            ))
            .and(self.network(event))
            .and(
                self.recorded
                    .as_ref()
                    .map_or(Decision::Show, |recorded| recorded.connection(event)),
            )
    }

    fn looks_at_ends(&self) -> bool {
        self.ip_version.is_some()
            || !self.local_ports.is_empty()
            || !self.remote_ports.is_empty()
            || !self.networks.is_empty()
            || self.recorded.is_some()
    }

    fn protocol(&self, protocol: Protocol) -> bool {
        self.any_protocol
            || if self.protocols.is_empty() {
                protocol == Protocol::Tcp
            } else {
                self.protocols.contains(&protocol)
            }
    }

    fn version(&self, event: &TransitionEvent) -> Decision {
        let Some(wanted) = self.ip_version else {
            return Decision::Show;
        };
        // A child of a dual-stack listener shows by its addresses only later what it talks.
        if event.is_child() && event.local.addr.is_unspecified() && event.local.addr.is_ipv6() {
            return Decision::Wait;
        }
        Decision::of(event.local.addr.is_ipv4() == (wanted == IpVersion::V4))
    }

    fn network(&self, event: &TransitionEvent) -> Decision {
        let within = |end: &Endpoint| self.networks.iter().any(|net| net.contains(&end.addr));
        if self.networks.is_empty() || within(&event.local) || within(&event.remote) {
            Decision::Show
        } else if event.is_child() {
            Decision::Wait
        } else {
            Decision::Hide
        }
    }

    fn cgroup(&self, path: Option<&str>) -> Result<bool, Unattributed> {
        if self.cgroups.is_empty() {
            return Ok(true);
        }
        let path = path.ok_or(Unattributed)?;
        Ok(self.cgroups.iter().any(|wanted| {
            path.strip_prefix(wanted.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }))
    }

    fn process(&self, process: Option<Process>) -> Result<bool, Unattributed> {
        if self.pids.is_empty() && self.comms.is_empty() {
            return Ok(true);
        }
        let process = process.ok_or(Unattributed)?;
        Ok((self.pids.is_empty() || self.pids.contains(&process.pid))
            && (self.comms.is_empty() || self.comms.contains(&process.comm)))
    }

    fn state(&self, event: &TransitionEvent) -> bool {
        self.states.is_empty()
            || self.states.contains(&event.old)
            || self.states.contains(&event.new)
    }
}

/// No process (or cgroup) is known for a transition, so a filter on it cannot say yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unattributed;

/// Fills the kernel's table; more entries than it holds leave the decision to user space (count 0).
fn fill<T, F>(table: &mut [T; MAX_FILTERS], from: &[F], make: impl Fn(&F) -> T) -> u32 {
    if from.len() > MAX_FILTERS {
        return 0;
    }
    for (slot, entry) in table.iter_mut().zip(from) {
        *slot = make(entry);
    }
    u32::try_from(from.len()).unwrap_or(0)
}

fn prefix(net: &IpNet) -> Prefix {
    let (address, length) = match net.network() {
        IpAddr::V4(address) => (address.to_ipv6_mapped(), u32::from(net.prefix_len()) + 96),
        IpAddr::V6(address) => (address, u32::from(net.prefix_len())),
    };
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    Prefix {
        address: words(u128::from(address) & mask),
        mask: words(mask),
    }
}

/// The two words of an address as the kernel side loads them from memory.
fn words(address: u128) -> [u64; 2] {
    zerocopy::transmute!(address.to_be_bytes())
}

fn lacks_local_port(event: &TransitionEvent) -> bool {
    event.local.port == 0 && event.new == TcpState::SynSent
}

fn port(ranges: &[PortRange], port: u16, not_yet: bool) -> Decision {
    if ranges.is_empty() {
        Decision::Show
    } else if not_yet && port == 0 {
        Decision::Wait
    } else {
        Decision::of(
            ranges
                .iter()
                .any(|range| (range.first..=range.last).contains(&port)),
        )
    }
}

/// Lets the events of wanted connections through, and holds back those that cannot be decided yet, and the first event of
/// passive connections, which does not tell yet which one it is.
#[derive(Debug, Default)]
pub struct Gate {
    /// By address of the socket, which is its identity while it lives.
    waiting: Register<Waiting>,
    /// Those that had to leave, and those that were not heard of again.
    lost: u64,
}

#[derive(Debug)]
struct Waiting {
    event: TransitionEvent,
    accepted: Option<CallEvent>,
}

/// What a [`Gate`] lets through with an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// What was held back before, with the cookie, ports and addresses of the event that decided. It is wanted.
    pub held: Option<TransitionEvent>,
    /// That it was accepted meanwhile: with TCP Fast Open before it is established.
    pub accepted: Option<CallEvent>,
    /// Whether the event itself is wanted; `None` if it does not come through, now or at all. Listeners that are not wanted come
    /// through all the same: they own connections that are.
    pub wanted: Option<bool>,
}

impl Admitted {
    /// What comes through, in order, with whether it is wanted; `event` is the one that was asked for.
    pub fn events<'a>(
        &'a self,
        event: &'a TransitionEvent,
    ) -> impl Iterator<Item = (&'a TransitionEvent, bool)> {
        let held = self.held.iter().map(|held| (held, true));
        held.chain(self.wanted.map(|wanted| (event, wanted)))
    }
}

impl Gate {
    /// How many connections may wait for a decision.
    const LIMIT: usize = 65_536;

    /// Connections whose deciding port or address was not known: those that wait now, those that had to leave because too
    /// many waited, and those whose next event was lost.
    #[must_use]
    pub fn undecided(&self) -> u64 {
        self.lost + self.waiting.len() as u64
    }

    /// Whether the first event of the socket at this address is held back.
    #[must_use]
    pub fn holds(&self, socket: u64) -> bool {
        self.waiting.contains(socket)
    }

    /// What comes through with this event: nothing, itself, or what was held back before it and itself.
    pub fn admit(&mut self, filter: &Filter, event: &TransitionEvent) -> Admitted {
        let mut decision = filter.connection(event);
        if event.is_child() {
            // It has neither a cookie nor, on most kernels, a peer yet; its next event comes at once.
            decision = decision.and(Decision::Wait);
        }
        let mut admitted = Admitted {
            held: None,
            accepted: None,
            wanted: match decision {
                Decision::Wait => None,
                Decision::Hide => event.is_listener().then_some(false),
                Decision::Show => Some(true),
            },
        };
        if !self.waiting.is_empty()
            && let Some(before) = self.waiting.remove(event.socket)
        {
            if event.is_birth() {
                // The life before it at this address was not heard of again.
                self.lost += 1;
            } else if decision == Decision::Show {
                admitted.held = Some(TransitionEvent {
                    cookie: event.cookie,
                    local: event.local,
                    remote: event.remote,
                    ..before.event
                });
                admitted.accepted = before.accepted;
            }
        }
        if decision == Decision::Wait {
            if self.waiting.len() >= Self::LIMIT && self.waiting.remove_any().is_some() {
                self.lost += 1;
            }
            let waiting = Waiting {
                event: *event,
                accepted: None,
            };
            self.waiting.insert(event.socket, waiting);
        }
        admitted
    }

    /// A connection was accepted. If its first event is held back, that comes through with it.
    pub fn accepted(&mut self, event: &CallEvent) {
        if let Some(waiting) = self.waiting.get_mut(event.socket) {
            waiting.accepted = Some(event.clone());
        }
    }
}
