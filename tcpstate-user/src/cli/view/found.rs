//! Sockets that were there before, and the processes that hold them.

use std::io;

use tcpstate_common::state::TcpState;

use super::View;
use crate::{
    event::{SocketEvent, TimeWaitEvent},
    kernel::Owners,
    lifecycle::Found,
    recording::{Holder, Step},
};

impl View {
    /// The sockets that were there before are about to be read; these are the processes that hold them.
    pub fn begin_finding(&mut self, owners: Owners) {
        const IN_A_STEP: usize = 1024;
        if self.tape.is_some() {
            let holder = |(inode, process)| Holder { inode, process };
            let holders: Vec<_> = owners.holders().map(holder).collect();
            for some in holders.chunks(IN_A_STEP) {
                self.on_tape(&Step::Holders(some.to_vec()));
            }
        }
        self.owners = owners;
    }

    /// These are some of the processes that hold them.
    pub fn add_owners(&mut self, holders: Vec<Holder>) {
        for Holder { inode, process } in holders {
            self.owners.insert(inode, process);
        }
    }

    /// Minisockets are looked at once more, for who shows what is still there.
    pub fn begin_refresh(&mut self) {
        self.on_tape(&Step::Refresh);
        self.skip_found = !self.refreshes() && !self.lifecycle.polls();
    }

    /// Whether a second look at minisockets that are still there at the end is of use.
    pub const fn refreshes(&self) -> bool {
        self.running || self.idle
    }

    /// All of them have been read; says how many.
    pub fn end_finding(&mut self) -> u64 {
        self.on_tape(&Step::Listed);
        self.owners = Owners::default();
        self.lifecycle.end_finding();
        if let Some(reports) = &mut self.reports {
            reports.all_found();
        }
        self.lifecycle.counts().found + self.passed
    }

    pub(super) fn found_socket(&mut self, event: &SocketEvent) {
        let listens = event.state == TcpState::Listen;
        if !listens && !self.filter.wants_socket(event) || self.gate.holds(event.socket) {
            return;
        }
        self.name_cgroup(event.cgroup);
        let owner = event.inode.and_then(|inode| self.owners.of(inode));
        if let Some(found) = self.lifecycle.found(event, owner) {
            self.take_found(&found, self.filter.wants_socket(event));
        }
    }

    pub(super) fn found_minisocket(&mut self, event: &TimeWaitEvent) -> io::Result<()> {
        if !self.minisockets || self.skip_found || !self.filter.wants_minisocket(event) {
            return Ok(());
        }
        let mut found = None;
        self.understand(|lifecycle, out| found = lifecycle.found_minisocket(event, out))?;
        if let Some(found) = found {
            self.take_found(&found, true);
        }
        Ok(())
    }

    /// `connection` says whether its connection is wanted: listeners that are not come here all the same.
    fn take_found(&mut self, found: &Found, connection: bool) {
        if let Some(reports) = &mut self.reports {
            let owner = self
                .filter
                .wants_owner(found.process, found.cgroup.as_deref());
            reports.found(found, connection && owner.unwrap_or(false));
        }
        if let Some(connections) = &mut self.connections {
            connections.found(found);
        }
    }
}
