//! Which events are worth a record. What a socket does not have yet (the local port before an active open is bound,
//! the remote end of a socket just cloned from its listener) passes, and so does the next event of that socket, by which
//! user space decides about both.

use tcpstate_common::{
    config::{KernelFilter, MAX_FILTERS},
    state::TcpState,
};

use crate::{
    constants::constant,
    memory::{Address, Ends, ipv4_mapped},
};

#[inline(always)]
pub(crate) fn wants_ends(ends: &Ends, old: i32) -> bool {
    let active = old == TcpState::SynSent as i32;
    let passive = old == TcpState::SynRecv as i32;
    (active || wants_local_port(ends.lport))
        && (passive
            || (wants_version(ends) && wants_remote_port(ends.rport) && wants_addresses(ends)))
}

#[inline(always)]
pub(crate) fn wants_netns(cookie: u64, inode: u32) -> bool {
    let wanted_cookie = constant!(CONFIG.filter.netns_cookie);
    let wanted_inode = constant!(CONFIG.filter.netns);
    (wanted_cookie == 0 || wanted_cookie == cookie) && (wanted_inode == 0 || wanted_inode == inode)
}

#[inline(always)]
pub(crate) fn wants_protocol(protocol: u16) -> bool {
    let wanted = constant!(CONFIG.filter.protocol);
    wanted == KernelFilter::ANY_PROTOCOL || wanted == u32::from(protocol)
}

#[inline(always)]
fn wants_version(ends: &Ends) -> bool {
    let version = constant!(CONFIG.filter.ip_version);
    if version == 0 {
        return true;
    }
    // A dual-stack socket says only by its addresses what it talks.
    let mapped = is_mapped(ends.laddr) || is_mapped(ends.raddr);
    let undecided = ends.raddr[0] == 0 && ends.raddr[1] == 0;
    undecided || mapped == (version == 4)
}

#[inline(always)]
fn is_mapped(address: Address) -> bool {
    address[0] == 0 && address[1] as u32 == ipv4_mapped(0)[1] as u32
}

#[inline(always)]
fn is_unspecified(address: Address) -> bool {
    address[0] == 0 && (address[1] == 0 || address[1] == ipv4_mapped(0)[1])
}

macro_rules! wants_port {
    ($function:ident, $count:ident, $ranges:ident) => {
        #[inline(always)]
        fn $function(port: u16) -> bool {
            let count = constant!(CONFIG.filter.$count);
            if count == 0 || port == 0 {
                return true;
            }
            let mut index = 0;
            while index < MAX_FILTERS {
                if index as u32 == count {
                    return false;
                }
                let range = constant!(CONFIG.filter.$ranges[index]);
                if range.first <= port && port <= range.last {
                    return true;
                }
                index += 1;
            }
            false
        }
    };
}

wants_port!(wants_local_port, local_port_count, local_ports);
wants_port!(wants_remote_port, remote_port_count, remote_ports);

#[inline(always)]
fn wants_addresses(ends: &Ends) -> bool {
    let count = constant!(CONFIG.filter.prefix_count);
    if count == 0 || is_unspecified(ends.laddr) || is_unspecified(ends.raddr) {
        return true;
    }
    let mut index = 0;
    while index < MAX_FILTERS {
        if index as u32 == count {
            return false;
        }
        let address = constant!(CONFIG.filter.prefixes[index].address);
        let mask = constant!(CONFIG.filter.prefixes[index].mask);
        let within =
            |end: Address| end[0] & mask[0] == address[0] && end[1] & mask[1] == address[1];
        if within(ends.laddr) || within(ends.raddr) {
            return true;
        }
        index += 1;
    }
    false
}
