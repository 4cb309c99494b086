//! Steps: everything that a view is told in a run, in order.

use crate::{
    event::{Comm, Process, Via},
    kernel::Counters,
    lifecycle::Round,
    sink::OtherProtocols,
};

/// A process that holds the socket with an inode number (`/proc/PID/fd`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Inode number of the socket.
    pub inode: u64,
    /// The process.
    pub process: Process,
}

/// One thing that a view is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A record of the kernel side, as it came: see [`crate::event::Event::decode`].
    Record(&'a [u8]),
    /// A turn begins: what was lost until `now` is known.
    Losses {
        /// Nanoseconds of `CLOCK_MONOTONIC`.
        now: u64,
        /// What the kernel side has counted.
        counters: Counters,
        /// Records that were not waited for at the end.
        unread: u64,
    },
    /// It is this late, and everything before has been read.
    Settled(u64),
    /// Processes that hold sockets, or some of them.
    Holders(Vec<Holder>),
    /// The sockets that were there before have all been read.
    Listed,
    /// A list of minisockets has been read.
    Round(Round),
    /// Minisockets are looked at once more, for who shows what is still there.
    Refresh,
    /// A cgroup, and its path.
    Cgroup(u64, &'a str),
    /// So many records found no place in the recording so far; the last of them stood here.
    Unrecorded(u64),
    /// The run ended at this time.
    End(u64),
}

/// Bytes of a [`Holder`].
const HOLDER: usize = 28;

/// The kind of [`Step::Record`]. 255 is none: see `fold.rs`.
pub(super) const RECORD: u8 = 1;
const LOSSES: u8 = 2;
const SETTLED: u8 = 3;
const HOLDERS: u8 = 4;
const LISTED: u8 = 5;
const ROUND: u8 = 6;
const REFRESH: u8 = 7;
const CGROUP: u8 = 8;
const UNRECORDED: u8 = 9;
const END: u8 = 10;

impl Step<'_> {
    /// Writes it behind what is there. What is too long to be written is left out.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Record(bytes) => {
                let Ok(length) = u16::try_from(bytes.len()) else {
                    return;
                };
                out.push(RECORD);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Self::Losses {
                now,
                counters,
                unread,
            } => {
                let others = counters.other_protocols;
                let numbers = [
                    *now,
                    counters.lost,
                    counters.not_found,
                    counters.passed_over,
                    counters.second_looks,
                    counters.unobserved,
                    others.mptcp,
                    others.sctp,
                    others.other,
                    *unread,
                ];
                out.push(LOSSES);
                for number in numbers {
                    put(out, number);
                }
            }
            Self::Settled(now) => {
                out.push(SETTLED);
                put(out, *now);
            }
            Self::Holders(holders) => {
                let Ok(count) = u32::try_from(holders.len()) else {
                    return;
                };
                out.push(HOLDERS);
                out.extend_from_slice(&count.to_le_bytes());
                for Holder { inode, process } in holders {
                    let mut comm = [0; 16];
                    let name = process.comm.as_bytes();
                    comm[..name.len()].copy_from_slice(name);
                    put(out, *inode);
                    out.extend_from_slice(&process.pid.to_le_bytes());
                    out.extend_from_slice(&comm);
                }
            }
            Self::Listed => out.push(LISTED),
            Self::Round(round) => {
                out.push(ROUND);
                put(out, round.began);
                put(out, round.ended);
                out.push(round.complete.into());
            }
            Self::Refresh => out.push(REFRESH),
            Self::Cgroup(id, path) => {
                let Ok(length) = u16::try_from(path.len()) else {
                    return;
                };
                out.push(CGROUP);
                put(out, *id);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(path.as_bytes());
            }
            Self::Unrecorded(count) => {
                out.push(UNRECORDED);
                put(out, *count);
            }
            Self::End(at) => {
                out.push(END);
                put(out, *at);
            }
        }
    }
}

fn put(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// The steps of a block.
#[derive(Clone, Debug)]
pub struct Steps<'a>(&'a [u8]);

/// What is there is no step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoStep;

impl<'a> Steps<'a> {
    /// In these bytes.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes of those that follow.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    fn step(&mut self) -> Option<Step<'a>> {
        let [kind] = self.array()?;
        Some(match kind {
            RECORD => Step::Record(self.counted()?),
            LOSSES => Step::Losses {
                now: self.number()?,
                counters: Counters {
                    lost: self.number()?,
                    not_found: self.number()?,
                    passed_over: self.number()?,
                    second_looks: self.number()?,
                    unobserved: self.number()?,
                    other_protocols: OtherProtocols {
                        mptcp: self.number()?,
                        sctp: self.number()?,
                        other: self.number()?,
                    },
                },
                unread: self.number()?,
            },
            SETTLED => Step::Settled(self.number()?),
            HOLDERS => Step::Holders(self.holders()?),
            LISTED => Step::Listed,
            ROUND => Step::Round(Round {
                began: self.number()?,
                ended: self.number()?,
                complete: self.flag()?,
            }),
            REFRESH => Step::Refresh,
            CGROUP => Step::Cgroup(self.number()?, std::str::from_utf8(self.counted()?).ok()?),
            UNRECORDED => Step::Unrecorded(self.number()?),
            END => Step::End(self.number()?),
            _ => return None,
        })
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.array()? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn counted(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_le_bytes(self.array()?);
        self.take(length.into())
    }

    fn holders(&mut self) -> Option<Vec<Holder>> {
        let count = usize::try_from(u32::from_le_bytes(self.array()?)).ok()?;
        let mut rest = Self(self.take(count.checked_mul(HOLDER)?)?);
        (0..count)
            .map(|_| {
                Some(Holder {
                    inode: rest.number()?,
                    process: Process {
                        pid: u32::from_le_bytes(rest.array()?),
                        comm: Comm::new(rest.array()?),
                        via: Via::Scan,
                    },
                })
            })
            .collect()
    }
}

impl<'a> Iterator for Steps<'a> {
    type Item = Result<Step<'a>, NoStep>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let step = self.step().ok_or(NoStep);
        if step.is_err() {
            self.0 = &[];
        }
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::{Holder, Step, Steps};
    use crate::{
        event::{Comm, Process, Via},
        kernel::Counters,
        lifecycle::Round,
        sink::OtherProtocols,
    };

    fn all() -> Vec<Step<'static>> {
        let holder = Holder {
            inode: 77,
            process: Process {
                pid: 1000,
                comm: Comm::truncated("a name of fifteen"),
                via: Via::Scan,
            },
        };
        vec![
            Step::Record(&[1, 2, 3]),
            Step::Record(&[]),
            Step::Losses {
                now: u64::MAX,
                counters: Counters {
                    lost: 1,
                    not_found: 2,
                    passed_over: 8,
                    second_looks: 9,
                    unobserved: 10,
                    other_protocols: OtherProtocols {
                        mptcp: 3,
                        sctp: 4,
                        other: 5,
                    },
                },
                unread: 6,
            },
            Step::Settled(7),
            Step::Holders(vec![holder, holder]),
            Step::Holders(Vec::new()),
            Step::Listed,
            Step::Round(Round {
                began: 1,
                ended: 2,
                complete: true,
            }),
            Step::Refresh,
            Step::Cgroup(9, "/system.slice/ünit"),
            Step::Unrecorded(10),
            Step::End(11),
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        for step in all() {
            step.write(&mut bytes);
        }
        let read: Result<Vec<_>, _> = Steps::new(&bytes).collect();
        assert_eq!(read, Ok(all()));
    }

    #[test]
    fn a_part_of_a_step_is_none() {
        for step in all() {
            let mut bytes = Vec::new();
            step.write(&mut bytes);
            for length in 1..bytes.len() {
                let read: Vec<_> = Steps::new(&bytes[..length]).collect();
                assert_eq!(read, [Err(super::NoStep)], "{step:?} {length}");
            }
        }
        for bytes in [&[0][..], &[11], &[255, 0, 0], &[4, 255, 255, 255, 255]] {
            assert!(Steps::new(bytes).any(|step| step.is_err()), "{bytes:?}");
        }
    }
}
