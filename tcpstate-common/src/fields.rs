//! The kernel fields that the kernel side reads: the one place where they are listed.
//!
//! User space finds each by name in the running kernel's BTF (or in the `format` file of the classic tracepoint),
//! checks its size, and hands the offsets over as read-only data. To read one more field, add it here.

use zerocopy::{Immutable, IntoBytes};

/// Offset of a field that this kernel does not have (or has in another size).
pub const ABSENT: u32 = u32::MAX;

/// One kernel field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name of the member of [`Offsets`] or [`Format`].
    pub name: &'static str,
    /// The struct it is looked up in.
    pub container: &'static str,
    /// Path of member names from that struct, joined by `.`.
    pub path: &'static str,
    /// Size in bytes that the kernel side reads.
    pub size: u32,
    /// What happens on a kernel that does not have it.
    pub need: Need,
}

/// What a missing field means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing works without it.
    Required,
    /// The rest works; this is lost.
    Optional(&'static str),
    /// Kernels have one or the other of the fields with this text; it is lost if they have none.
    OneOf(&'static str),
}

macro_rules! fields {
    (
        $(#[$doc:meta])*
        $Offsets:ident {
            $($name:ident: $container:literal, $path:literal, $size:literal, $need:expr;)+
        }
    ) => {
        $(#[$doc])*
        ///
        /// Each member is a byte offset from the start of its struct, or [`ABSENT`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
        #[repr(C)]
        pub struct $Offsets {
            $(#[doc = concat!("Offset of `", $container, "::", $path, "`.")] pub $name: u32,)+
        }

        impl $Offsets {
            /// Every field, in the order of the members.
            pub const FIELDS: &[Field] = &[
                $(Field {
                    name: stringify!($name),
                    container: $container,
                    path: $path,
                    size: $size,
                    need: $need,
                },)+
            ];

            /// Asks `resolve` for the offset of every field.
            ///
            /// # Errors
            /// The first error of `resolve`.
            pub fn resolve<E>(mut resolve: impl FnMut(&Field) -> Result<u32, E>) -> Result<Self, E> {
                let mut fields = Self::FIELDS.iter();
                $(let $name = match fields.next() {
                    Some(field) => resolve(field)?,
                    None => ABSENT,
                };)+
                Ok(Self { $($name,)+ })
            }

            /// No field known: what the kernel side is built with.
            #[must_use]
            pub const fn absent() -> Self {
                Self { $($name: ABSENT,)+ }
            }
        }
    };
}

const PROCESS_NAME: &str = "the process name is that of the thread, not of the process";
const CLOSE_OR_SHUTDOWN: &str = "close() and shutdown() are not told apart";
const TOTALS: &str = "bytes, retransmissions and round-trip time of connections";
const TIMEWAIT: &str = "the life of TIME_WAIT";
const EXISTING: &str = "sockets that were there before";
const SCAN: &str = "the processes of sockets that were there before";
const NETNS_GONE: &str =
    "that a TIME_WAIT ends with its network namespace, with fentry and kprobes on some kernels";
/// Lost without the fields that only the program for system calls reads.
pub const CALLS: &str = "who accepts, and bind() that fails (--syscalls)";
const LISTENER: &str = "a passive connection has no owner before its process uses it";

fields! {
    /// Where the fields of the kernel's structs are.
    Offsets {
        family:         "sock", "__sk_common.skc_family", 2, Need::Required;
        lport:          "sock", "__sk_common.skc_num", 2, Need::Required;
        rport:          "sock", "__sk_common.skc_dport", 2, Need::Required;
        laddr4:         "sock", "__sk_common.skc_rcv_saddr", 4, Need::Required;
        raddr4:         "sock", "__sk_common.skc_daddr", 4, Need::Required;
        laddr6:         "sock", "__sk_common.skc_v6_rcv_saddr", 16, Need::Optional("IPv6 addresses");
        raddr6:         "sock", "__sk_common.skc_v6_daddr", 16, Need::Optional("IPv6 addresses");
        bound_lport:    "inet_sock", "inet_sport", 2, Need::Optional("the local port of a closed socket");
        netns:          "sock", "__sk_common.skc_net.net", 8, Need::Optional("network namespaces");
        netns_inode:    "net", "ns.inum", 4, Need::Optional("network namespace numbers");
        netns_count:    "net", "count.refs.counter", 4, Need::OneOf(NETNS_GONE);
        netns_ns_count: "net", "ns.count.refs.counter", 4, Need::OneOf(NETNS_GONE);
        netns_ns_ref:   "net", "ns.__ns_ref.refs.counter", 4, Need::OneOf(NETNS_GONE);
        netns_cookie:   "net", "net_cookie", 8, Need::Optional("network namespaces are known by a number that the kernel reuses");
        cookie:         "sock", "__sk_common.skc_cookie", 8, Need::Optional(LISTENER);
        bind_node:      "sock", "__sk_common.skc_bind_node", 16, Need::Optional(LISTENER);
        owned:          "sock", "sk_lock.owned", 4, Need::Optional("processes: no event says whose it is");
        protocol:       "sock", "sk_protocol", 2, Need::Required;
        error:          "sock", "sk_err", 4, Need::Optional("why a socket was closed");
        uid:            "sock", "sk_uid", 4, Need::Optional("user ids");
        cgroup:         "sock", "sk_cgrp_data.cgroup", 8, Need::Optional("cgroups");
        cgroup_node:    "cgroup", "kn", 8, Need::Optional("cgroups");
        cgroup_id:      "kernfs_node", "id", 8, Need::Optional("cgroups");
        socket:         "sock", "sk_socket", 8, Need::Optional(CLOSE_OR_SHUTDOWN);
        socket_file:    "socket", "file", 8, Need::Optional(CLOSE_OR_SHUTDOWN);
        state:          "sock", "__sk_common.skc_state", 1, Need::Optional(EXISTING);
        file_inode:     "file", "f_inode", 8, Need::Optional(SCAN);
        inode_number:   "inode", "i_ino", 8, Need::Optional(SCAN);
        file_count:     "file", "f_count.counter", 8, Need::OneOf(CLOSE_OR_SHUTDOWN);
        file_ref:       "file", "f_ref.refcnt.counter", 8, Need::OneOf(CLOSE_OR_SHUTDOWN);
        bytes_acked:    "tcp_sock", "bytes_acked", 8, Need::Optional(TOTALS);
        bytes_received: "tcp_sock", "bytes_received", 8, Need::Optional(TOTALS);
        retransmits:    "tcp_sock", "total_retrans", 4, Need::Optional(TOTALS);
        srtt_us:        "tcp_sock", "srtt_us", 4, Need::Optional(TOTALS);
        segments_sent:  "tcp_sock", "segs_out", 4, Need::Optional("connect() that finds no port, of a socket used before");
        sock_flags:     "sock", "__sk_common.skc_flags", 8, Need::Optional("whether an overflow of TIME_WAIT came before the peer's FIN");
        timer_node:     "timer_list", "entry.pprev", 8, Need::Optional(TIMEWAIT);
        timer_function: "timer_list", "function", 8, Need::Optional(TIMEWAIT);
        timer_expires:  "timer_list", "expires", 8, Need::Optional(TIMEWAIT);
        tw_timer:       "inet_timewait_sock", "tw_timer.function", 8, Need::Optional(TIMEWAIT);
        tw_substate:    "inet_timewait_sock", "tw_substate", 1, Need::Optional(TIMEWAIT);
        task_flags:     "task_struct", "flags", 4, Need::Optional("kernel threads are not told from processes");
        task_files:     "task_struct", "files", 8, Need::Optional(CALLS);
        task_status:    "task_struct", "thread_info.status", 4, Need::Optional(CALLS);
        files_table:    "files_struct", "fdt", 8, Need::Optional(CALLS);
        table_size:     "fdtable", "max_fds", 4, Need::Optional(CALLS);
        table_files:    "fdtable", "fd", 8, Need::Optional(CALLS);
        file_socket:    "file", "private_data", 8, Need::Optional(CALLS);
        socket_sock:    "socket", "sk", 8, Need::Optional(CALLS);
        call_number:    "pt_regs", "orig_ax", 8, Need::Optional(CALLS);
        call_fd:        "pt_regs", "di", 8, Need::Optional(CALLS);
        call_address:   "pt_regs", "si", 8, Need::Optional(CALLS);
        task_leader:    "task_struct", "group_leader", 8, Need::Optional(PROCESS_NAME);
        task_comm:      "task_struct", "comm", 16, Need::Optional(PROCESS_NAME);
    }
}

fields! {
    /// Where the classic tracepoint `sock:inet_sock_set_state` has its fields.
    Format {
        socket:   "inet_sock_set_state", "skaddr", 8, Need::Required;
        old:      "inet_sock_set_state", "oldstate", 4, Need::Required;
        new:      "inet_sock_set_state", "newstate", 4, Need::Required;
        lport:    "inet_sock_set_state", "sport", 2, Need::Required;
        rport:    "inet_sock_set_state", "dport", 2, Need::Required;
        family:   "inet_sock_set_state", "family", 2, Need::Required;
        protocol: "inet_sock_set_state", "protocol", 2, Need::Required;
        laddr4:   "inet_sock_set_state", "saddr", 4, Need::Required;
        raddr4:   "inet_sock_set_state", "daddr", 4, Need::Required;
        laddr6:   "inet_sock_set_state", "saddr_v6", 16, Need::Required;
        raddr6:   "inet_sock_set_state", "daddr_v6", 16, Need::Required;
    }
}

#[cfg(test)]
mod tests {
    use super::{ABSENT, Offsets};

    #[test]
    fn offsets_are_resolved_in_the_order_of_the_list() {
        let mut next = 0;
        let offsets = Offsets::resolve(|_| {
            next += 1;
            Ok::<u32, ()>(next)
        })
        .unwrap_or(Offsets::absent());
        assert_eq!(offsets.family, 1);
        assert_eq!(offsets.task_comm as usize, Offsets::FIELDS.len());
        assert_eq!(size_of::<Offsets>(), Offsets::FIELDS.len() * 4);
        assert_eq!(Offsets::absent().owned, ABSENT);
    }
}
