//! BPF programs of a process: which, and how long they ran. And the smallest programs there are.

use std::{
    collections::BTreeMap,
    fs, io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;
use aya_obj::{
    btf::{Btf, BtfKind},
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_type},
};
use clap::ValueEnum;

/// How often and how long a program ran.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    pub name: String,
    pub times: u64,
    pub nanoseconds: u64,
}

/// The ids of the programs that a process holds, or has attached.
pub fn programs(pid: u32) -> Vec<u32> {
    let mut ids = Vec::new();
    for file in fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let info = fs::read_to_string(file.path()).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("prog_id:"));
        ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// What the kernel counts of these programs, while it is asked to (`aya::sys::enable_stats`).
pub fn ran(ids: &[u32]) -> BTreeMap<u32, Ran> {
    loaded_programs()
        .flatten()
        .filter(|program| ids.contains(&program.id()))
        .map(|program| {
            let ran = Ran {
                name: program.name_as_str().unwrap_or("?").to_owned(),
                times: program.run_count(),
                nanoseconds: u64::try_from(program.run_time().as_nanos()).unwrap_or(u64::MAX),
            };
            (program.id(), ran)
        })
        .collect()
}

/// Programs on the tracepoint, through BTF, that tell what any program costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Floor {
    /// One that returns 0.
    Empty,
    /// Two of those: as many as tcpstate has.
    Empties,
    /// One that counts by old and new state, in an array for each processor: the least that any view asks for.
    Count,
}

/// What is attached as long as this lives.
pub struct Attached(#[expect(dead_code, reason = "held, not used")] Vec<OwnedFd>);

impl Floor {
    /// What --only calls it, and what it is.
    pub const ALL: [(Self, &str, &str); 3] = [
        (Self::Empty, "empty", "a program that returns 0"),
        (Self::Empties, "empties", "two programs that return 0"),
        (
            Self::Count,
            "count",
            "a program that counts, in an array for each processor",
        ),
    ];

    pub fn attach(self) -> Result<Attached> {
        let mut held = Vec::new();
        match self {
            Self::Empty => attach(&EMPTY, &mut held)?,
            Self::Empties => {
                attach(&EMPTY, &mut held)?;
                attach(&EMPTY, &mut held)?;
            }
            Self::Count => {
                let counters = counters().context("there is no room for counters")?;
                attach(&counting(counters.as_raw_fd()), &mut held)?;
                held.push(counters);
            }
        }
        Ok(Attached(held))
    }
}

/// Numbers of the old and the new state are less than this, and a power of two.
const STATES: i32 = 16;

/// r0 = 0; exit.
const EMPTY: [u64; 2] = [instruction(0xb7, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)];

/// One instruction: code, registers, offset, number (`struct bpf_insn`).
const fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset.cast_unsigned() as u64) << 16
        | (number.cast_unsigned() as u64) << 32
}

/// counters[0][16 * old + new] += 1, on this processor.
fn counting(counters: RawFd) -> Vec<u64> {
    let mut instructions = vec![
        // r6 = old; r7 = new
        instruction(0x79, 6, 1, 8, 0),
        instruction(0x79, 7, 1, 16, 0),
        // r6 = 8 * (16 * (r6 & 15) | r7 & 15)
        instruction(0x57, 6, 0, 0, STATES - 1),
        instruction(0x27, 6, 0, 0, STATES),
        instruction(0x57, 7, 0, 0, STATES - 1),
        instruction(0x4f, 6, 7, 0, 0),
        instruction(0x67, 6, 0, 0, 3),
        // r0 = bpf_map_lookup_elem(counters, &0)
        instruction(0x62, 10, 0, -4, 0),
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x18, 1, 1, 0, counters),
        0,
        instruction(0x85, 0, 0, 0, 1),
        // if r0 != 0: *(r0 + r6) += 1
        instruction(0x15, 0, 0, 4, 0),
        instruction(0x0f, 0, 6, 0, 0),
        instruction(0x79, 1, 0, 0, 0),
        instruction(0x07, 1, 0, 0, 1),
        instruction(0x7b, 0, 1, 0, 0),
    ];
    instructions.extend(EMPTY);
    instructions
}

/// An array of one element for each processor.
fn counters() -> Result<OwnedFd> {
    // SAFETY: all bytes zero are an attribute.
    let mut create: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: plain numbers, in the part of the union that BPF_MAP_CREATE reads.
    let part = unsafe { &mut create.__bindgen_anon_1 };
    part.map_type = bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32;
    part.key_size = 4;
    part.value_size = 8 * STATES.cast_unsigned().pow(2);
    part.max_entries = 1;
    Ok(bpf(bpf_cmd::BPF_MAP_CREATE, &create)?)
}

fn attach(instructions: &[u64], held: &mut Vec<OwnedFd>) -> Result<()> {
    let types = Btf::from_sys_fs().context("this kernel has no BTF")?;
    let target = types
        .id_by_type_name_kind("btf_trace_inet_sock_set_state", BtfKind::Typedef)
        .context("this kernel lacks the tracepoint")?;
    let licence = c"GPL";
    // SAFETY: all bytes zero are an attribute.
    let mut load: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: plain numbers, in the part of the union that BPF_PROG_LOAD reads.
    let part = unsafe { &mut load.__bindgen_anon_3 };
    part.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
    part.expected_attach_type = bpf_attach_type::BPF_TRACE_RAW_TP as u32;
    part.attach_btf_id = target;
    part.insn_cnt = u32::try_from(instructions.len())?;
    part.insns = instructions.as_ptr().expose_provenance() as u64;
    part.license = licence.as_ptr().expose_provenance() as u64;
    let program = bpf(bpf_cmd::BPF_PROG_LOAD, &load).context("the program is refused")?;
    // SAFETY: all bytes zero are an attribute.
    let mut open: bpf_attr = unsafe { mem::zeroed() };
    open.raw_tracepoint.prog_fd = u32::try_from(program.as_raw_fd())?;
    let link =
        bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &open).context("the program cannot be attached")?;
    held.extend([program, link]);
    Ok(())
}

fn bpf(command: bpf_cmd, attribute: &bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the attribute is as long as is said, and what it points to lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_ref(attribute),
            size_of::<bpf_attr>(),
        )
    };
    match libc::c_int::try_from(result) {
        // SAFETY: both commands return a new descriptor.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}
