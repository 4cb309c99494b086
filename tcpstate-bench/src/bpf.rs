//! BPF programs of a process: which, and how long they ran. And the smallest program there is.

use std::{
    collections::BTreeMap,
    fs, io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;
use aya_obj::{
    btf::{Btf, BtfKind},
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type},
};

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

/// `return 0` on the tracepoint, through BTF: what any program costs. It is there as long as this lives.
pub struct Nothing(#[expect(dead_code, reason = "held, not used")] [OwnedFd; 2]);

impl Nothing {
    pub fn attach() -> Result<Self> {
        let types = Btf::from_sys_fs().context("this kernel has no BTF")?;
        let target = types
            .id_by_type_name_kind("btf_trace_inet_sock_set_state", BtfKind::Typedef)
            .context("this kernel lacks the tracepoint")?;
        // BPF_ALU64 | BPF_MOV | BPF_K: r0 = 0; BPF_JMP | BPF_EXIT.
        let instructions: [u64; 2] = [0xb7, 0x95];
        let licence = c"GPL";
        // SAFETY: all bytes zero are an attribute.
        let mut load: bpf_attr = unsafe { mem::zeroed() };
        // SAFETY: plain numbers, in the part of the union that BPF_PROG_LOAD reads.
        let part = unsafe { &mut load.__bindgen_anon_3 };
        part.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
        part.expected_attach_type = bpf_attach_type::BPF_TRACE_RAW_TP as u32;
        part.attach_btf_id = target;
        part.insn_cnt = 2;
        part.insns = instructions.as_ptr().expose_provenance() as u64;
        part.license = licence.as_ptr().expose_provenance() as u64;
        let program = bpf(bpf_cmd::BPF_PROG_LOAD, &load).context("the empty program is refused")?;
        // SAFETY: all bytes zero are an attribute.
        let mut open: bpf_attr = unsafe { mem::zeroed() };
        open.raw_tracepoint.prog_fd = u32::try_from(program.as_raw_fd())?;
        let link = bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &open)
            .context("the empty program cannot be attached")?;
        Ok(Self([program, link]))
    }
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
