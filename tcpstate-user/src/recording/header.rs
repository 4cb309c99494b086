//! What is known of a run before it begins.

use std::{
    fs,
    io::{Read, Write},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use super::{FORMAT, LAYOUT, ReadError, block};
use crate::{
    clock,
    kernel::{Hook, Missing, Plan, TimeWaitHook, hook_names},
    lifecycle::Callers,
    settings::Settings,
};

/// What a view has to know of a run, and what a reader wants to know of it. Times are nanoseconds of `CLOCK_MONOTONIC` of the
/// machine it was on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Header {
    /// Version of tcpstate.
    pub tcpstate: String,
    /// Version of the records' layout: [`LAYOUT`].
    pub layout: u32,
    /// Release of the kernel, as `uname -r` says.
    pub kernel: String,
    /// Name of the machine.
    pub host: String,
    /// The hook for transitions.
    pub hook: Hook,
    /// How minisockets were observed, if they were.
    pub timewait: Option<TimeWaitHook>,
    /// Whether system calls were watched.
    pub calls: bool,
    /// What could not be known.
    pub missing: Vec<Missing>,
    /// The filters that decided what was recorded, as they were given; empty if there were none.
    pub filter: String,
    /// What the network namespaces had set that could be found and entered when it began; empty if nobody asked.
    #[serde(default)]
    pub settings: Vec<Settings>,
    /// When the hooks were in place.
    pub start: u64,
    /// The time of day when this clock was zero, in nanoseconds since 1970.
    pub zero: i64,
    /// When the machine was started, in nanoseconds since 1970.
    pub boot: i64,
    /// Length of a tick of the kernel's timers, in nanoseconds.
    pub tick: u64,
    /// Where the functions of the kernel are that make and end minisockets.
    pub callers: Callers,
    /// The same in all parts of a recording, and in no other.
    pub id: u64,
    /// Which part of the recording this file is, from 1.
    pub part: u32,
    /// When this part begins.
    pub begins: u64,
    /// What was replaced before it was written: `addresses`, `names`.
    #[serde(default)]
    pub anonymized: Vec<String>,
}

/// What every version begins with, so that an older one can say what is needed.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Preamble {
    magic: [u8; 8],
    format: U32,
    /// The version of tcpstate that reads it: major, minor, patch.
    needs: [U16; 3],
    reserved: U16,
    check: U32,
}

/// Not text, and broken by what takes it for text.
const MAGIC: [u8; 8] = *b"\x89tcps\r\n\x1a";
const LENGTH: usize = size_of::<Preamble>();

const _: () = assert!(LENGTH == 24);

impl Preamble {
    fn ours() -> Self {
        let mut ours = Self {
            magic: MAGIC,
            format: FORMAT.into(),
            // The first version that had recordings.
            needs: [0.into(), 1.into(), 0.into()],
            reserved: U16::ZERO,
            check: U32::ZERO,
        };
        ours.check = ours.sum().into();
        ours
    }

    fn sum(&self) -> u32 {
        crc32fast::hash(&self.as_bytes()[..LENGTH - 4])
    }
}

impl Header {
    /// Of a run that begins now. `filter` is what decides what the kernel side sends.
    #[must_use]
    pub fn new(plan: &Plan, start: u64, filter: String) -> Self {
        let zero = clock::zero();
        let of_system = |name: &str| {
            fs::read_to_string(format!("/proc/sys/kernel/{name}"))
                .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
        };
        Self {
            tcpstate: env!("CARGO_PKG_VERSION").to_owned(),
            layout: LAYOUT,
            kernel: of_system("osrelease"),
            host: of_system("hostname"),
            hook: plan.hook,
            timewait: plan.timewait,
            calls: plan.calls,
            missing: plan.missing.clone(),
            filter,
            settings: Vec::new(),
            start,
            zero,
            boot: clock::boot(),
            tick: u64::try_from(clock::tick().as_nanos()).unwrap_or_default(),
            callers: plan.callers.clone(),
            // Two recordings do not begin in the same nanosecond.
            id: start ^ zero.unsigned_abs(),
            part: 1,
            begins: start,
            anonymized: Vec::new(),
        }
    }

    /// The names of the hooks in use.
    #[must_use]
    pub fn hooks(&self) -> Vec<&'static str> {
        hook_names(self.hook, self.timewait, self.calls)
    }

    /// What who reads an export wants to know of the run, as JSON.
    #[must_use]
    pub fn about(&self) -> serde_json::Value {
        let missing = self.missing.iter().map(|missing| &missing.loses);
        serde_json::json!({
            "tcpstate": self.tcpstate,
            "kernel": self.kernel,
            "host": self.host,
            "hooks": self.hooks(),
            "missing": missing.collect::<Vec<_>>(),
            "filter": self.filter,
            "anonymized": self.anonymized,
        })
    }

    /// Length of a tick of the kernel's timers.
    #[must_use]
    pub const fn tick(&self) -> Duration {
        Duration::from_nanos(self.tick)
    }

    /// Writes what a file begins with, and says how many bytes it took.
    pub(super) fn write(
        &self,
        out: &mut impl Write,
        packer: &mut block::Packer,
    ) -> std::io::Result<u64> {
        out.write_all(Preamble::ours().as_bytes())?;
        let text = serde_json::to_vec(self)?;
        let kind = block::Kind::Header;
        let length = packer.write(out, kind, &block::Mark::default(), &text)?;
        Ok(LENGTH as u64 + length)
    }

    /// Reads it back, with the version of the format.
    pub(super) fn read(
        input: &mut impl Read,
        unpacker: &mut block::Unpacker,
        offset: &mut u64,
    ) -> Result<(u32, Self), ReadError> {
        let format = read_preamble(input)?;
        *offset = LENGTH as u64;
        let begin = *offset;
        match unpacker.read(input, offset)? {
            None => return Err(cut_off(begin)),
            Some(block) if block.kind != block::Kind::Header => {
                return Err(damaged(begin, "there is no header"));
            }
            Some(_) => {}
        }
        let header: Self = serde_json::from_slice(unpacker.bytes())
            .map_err(|_| damaged(begin, "the header is not as it should be"))?;
        if header.layout > LAYOUT {
            return Err(ReadError::Newer {
                what: "records of layout",
                version: header.layout,
                ours: LAYOUT,
                needs: header.tcpstate,
            });
        }
        if !(1..=1_000_000_000).contains(&header.tick) {
            return Err(damaged(begin, "no kernel has ticks of such a length"));
        }
        Ok((format, header))
    }
}

/// Whether this begins as a recording does.
pub(super) fn begins(input: &mut impl Read) -> bool {
    let mut bytes = MAGIC.map(|_| 0);
    input.read_exact(&mut bytes).is_ok() && bytes == MAGIC
}

/// Whether a file is a recording, and of which format, if that is one that we know.
fn read_preamble(input: &mut impl Read) -> Result<u32, ReadError> {
    let mut bytes = [0; LENGTH];
    match block::read_up_to(input, &mut bytes)? {
        0 => return Err(ReadError::NoRecording("it is empty")),
        LENGTH => {}
        some if MAGIC.starts_with(&bytes[..some.min(MAGIC.len())]) => {
            return Err(cut_off(some as u64));
        }
        some => {
            return Err(no_recording(&bytes[..some]));
        }
    }
    let preamble: Preamble = zerocopy::transmute!(bytes);
    if preamble.magic != MAGIC {
        return Err(no_recording(&bytes));
    }
    if preamble.check.get() != preamble.sum() {
        return Err(damaged(0, "the checksum of the first bytes is wrong"));
    }
    let format = preamble.format.get();
    if format > FORMAT {
        let [major, minor, patch] = preamble.needs;
        return Err(ReadError::Newer {
            what: "format",
            version: format,
            ours: FORMAT,
            needs: format!("{major}.{minor}.{patch}"),
        });
    }
    Ok(format)
}

const fn cut_off(offset: u64) -> ReadError {
    ReadError::CutOff {
        offset,
        what: "the header is not whole",
    }
}

const fn damaged(offset: u64, what: &'static str) -> ReadError {
    ReadError::Damaged { offset, what }
}

/// What a file is that begins with these bytes.
fn no_recording(bytes: &[u8]) -> ReadError {
    // gzip, zstd, xz, bzip2
    const PACKED: [&[u8]; 4] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh"];
    ReadError::NoRecording(if PACKED.iter().any(|magic| bytes.starts_with(magic)) {
        "it is compressed, and so no recording yet: unpack it first (gunzip, unzstd, unxz, bunzip2)"
    } else {
        "it is no recording: `tcpstate record` makes one"
    })
}
