//! What is read of a TIME_WAIT minisocket.

use tcpstate_common::fields::ABSENT;

use super::{AF_INET6, Address, Ends, cookie_at, ipv4_mapped, netns_at, probe};
use crate::constants::constant;

/// The address of a `struct inet_timewait_sock`, which begins like a `struct sock`. It may have been found by
/// stepping back from a member, or in a register, so the verifier does not know its type.
#[derive(Clone, Copy)]
pub(crate) struct Minisocket(u64);

impl Minisocket {
    /// The minisocket at this address.
    pub(crate) const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The one whose timer is at this address.
    #[inline(always)]
    pub(crate) fn with_timer(timer: u64) -> Self {
        let function = timer + u64::from(constant!(OFFSETS.timer_function));
        Self(function - u64::from(constant!(OFFSETS.tw_timer)))
    }

    pub(crate) fn pointer(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn timer(self) -> u64 {
        let function = self.0 + u64::from(constant!(OFFSETS.tw_timer));
        function - u64::from(constant!(OFFSETS.timer_function))
    }

    /// When its timer is due, in ticks.
    #[inline(always)]
    pub(crate) fn due(self) -> u64 {
        read!(self.timer(), timer_expires as u64)
    }

    /// Whether its timer is running (`timer_pending`).
    #[inline(always)]
    pub(crate) fn pending(self) -> bool {
        read!(self.timer(), timer_node as u64) != 0
    }

    #[inline(always)]
    pub(crate) fn substate(self) -> u8 {
        read!(self.0, tw_substate as u8)
    }

    #[inline(always)]
    pub(crate) fn cookie(self) -> u64 {
        cookie_at(self.0)
    }

    #[inline(always)]
    pub(crate) fn netns(self) -> (u64, u32) {
        netns_at(self.0)
    }

    /// Whether its network namespace has no process, socket or name any more (`check_net`).
    #[inline(always)]
    pub(crate) fn is_netns_gone(self) -> bool {
        let net = read!(self.0, netns as u64);
        let known = constant!(OFFSETS.netns_count) != ABSENT
            || constant!(OFFSETS.netns_ns_count) != ABSENT
            || constant!(OFFSETS.netns_ns_ref) != ABSENT;
        let count = read!(net, netns_count as u32)
            | read!(net, netns_ns_count as u32)
            | read!(net, netns_ns_ref as u32);
        known && net != 0 && count == 0
    }

    #[inline(always)]
    pub(crate) fn ends(self) -> Ends {
        const IPPROTO_TCP: u16 = 6;
        let family = read!(self.0, family as u16);
        let (laddr, raddr) = if family == AF_INET6 {
            (
                read!(self.0, laddr6 as Address),
                read!(self.0, raddr6 as Address),
            )
        } else {
            (
                ipv4_mapped(read!(self.0, laddr4 as u32)),
                ipv4_mapped(read!(self.0, raddr4 as u32)),
            )
        };
        Ends {
            family,
            protocol: IPPROTO_TCP,
            lport: read!(self.0, lport as u16),
            rport: u16::from_be(read!(self.0, rport as u16)),
            laddr,
            raddr,
        }
    }
}
