//! What a record is about, before it is decoded.

use std::mem::offset_of;

use tcpstate_common::record::{
    CallRecord, RecordKind, SocketRecord, TimeWaitRecord, TransitionRecord,
};

use super::known;

/// What a record is about, as it says itself: for who wants to know before it is decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The cookie of the socket.
    pub cookie: Option<u64>,
    /// The address of the minisocket.
    pub minisocket: Option<u64>,
}

impl About {
    const COOKIE: usize = offset_of!(TransitionRecord, cookie);
    const MINISOCKET: usize = offset_of!(TimeWaitRecord, minisocket);
    const FULL: [u8; 3] = [
        RecordKind::Transition as u8,
        RecordKind::Socket as u8,
        RecordKind::Call as u8,
    ];

    /// Nothing is checked.
    #[must_use]
    pub fn of(record: &[u8]) -> Self {
        let number = |at: usize| -> Option<u64> {
            let bytes = record.get(at..)?.first_chunk()?;
            known(u64::from_ne_bytes(*bytes))
        };
        let full = record.first().is_some_and(|kind| Self::FULL.contains(kind));
        Self {
            cookie: number(Self::COOKIE),
            minisocket: number(Self::MINISOCKET).filter(|_| !full),
        }
    }
}

const _: () = assert!(
    offset_of!(TimeWaitRecord, cookie) == About::COOKIE
        && offset_of!(SocketRecord, cookie) == About::COOKIE
        && offset_of!(CallRecord, cookie) == About::COOKIE
);
