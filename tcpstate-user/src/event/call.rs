//! What a system call brought that no state tells.

use tcpstate_common::record::{Call, CallRecord};

use super::{Comm, DecodeError, Endpoint, Process, Protocol, Via, check_family, known};

/// What happened in the system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStep {
    /// bind() failed with `EADDRINUSE`: somebody has this address, or there is no port left if the port is 0. `None` if the
    /// address could not be read.
    BindFailed(Option<Endpoint>),
    /// accept() gave a connection to the process.
    Accepted,
}

/// A system call on a socket has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallEvent {
    /// When it ended (nanoseconds of `CLOCK_MONOTONIC`).
    pub time: u64,
    /// What happened.
    pub step: CallStep,
    /// Socket cookie; `None` if nobody has asked for it yet, and before Linux 5.12.
    pub cookie: Option<u64>,
    /// Address of the kernel's socket, an identity while it lives.
    pub socket: u64,
    /// Network namespace: cookie.
    pub netns_cookie: Option<u64>,
    /// Network namespace: inode number.
    pub netns: Option<u32>,
    /// Id of the task's cgroup.
    pub cgroup: Option<u64>,
    /// Protocol.
    pub protocol: Protocol,
    /// The process that called.
    pub process: Process,
}

impl CallEvent {
    pub(super) fn from_record(record: &CallRecord) -> Result<Self, DecodeError> {
        const BIND: u8 = Call::Bind as u8;
        const ACCEPT: u8 = Call::Accept as u8;
        let (step, via) = match (record.call, record.family) {
            (BIND, 0) => (CallStep::BindFailed(None), Via::Syscall),
            (BIND, family) => {
                check_family(family)?;
                let asked = Endpoint::new(record.addr, record.port);
                (CallStep::BindFailed(Some(asked)), Via::Syscall)
            }
            (ACCEPT, _) => (CallStep::Accepted, Via::Accept),
            (other, _) => return Err(DecodeError::UnknownCall(other)),
        };
        Ok(Self {
            time: record.time,
            step,
            cookie: known(record.cookie),
            socket: record.socket,
            netns_cookie: known(record.netns_cookie),
            netns: (record.netns != 0).then_some(record.netns),
            cgroup: known(record.cgroup),
            protocol: Protocol::from_number(record.protocol),
            process: Process {
                pid: record.pid,
                comm: Comm::new(record.comm),
                via,
            },
        })
    }
}
