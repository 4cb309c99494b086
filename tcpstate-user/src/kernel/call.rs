//! The hook at the end of system calls, for who asks for it (`--syscalls`).

use aya::{Btf, Ebpf, programs::BtfTracePoint};

use super::{btf::MissingField, observer::program, plan::Plan, refusal::reason};

/// Its program, and its name for people.
pub(super) const PROGRAM: &str = "call";
/// Its name for people.
pub const LABEL: &str = "system calls";

const TRACEPOINT: &str = "sys_exit";

/// Whether system calls are to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallRequest {
    /// No.
    Off,
    /// If that works.
    May,
    /// Yes; it is an error if it does not work.
    Must,
}

/// What it costs.
pub(super) const COSTS: &str = "some 20 ns for every system call of the machine";
/// What is lost without it.
pub(super) const LOSES: &str = "bind() that fails, and who accepts";

/// The numbers of bind(), accept() and accept4().
pub(super) const NUMBERS: [u32; 3] = [
    number(libc::SYS_bind),
    number(libc::SYS_accept),
    number(libc::SYS_accept4),
];

/// They are small.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a const function has no other way"
)]
const fn number(number: libc::c_long) -> u32 {
    number as u32
}

/// Loads and attaches it.
pub(super) fn attach(ebpf: &mut Ebpf, plan: &Plan, kernel_types: &Btf) -> Result<(), String> {
    // The registers that arguments are in are known to the kernel side.
    if !cfg!(target_arch = "x86_64") {
        return Err("it is for x86-64 only".to_owned());
    }
    fields(&plan.lacking)?;
    load(ebpf, kernel_types).map_err(|error| format!("{TRACEPOINT}: {}", reason(&error)))
}

/// Whether the kernel has the fields that lead from a call to its socket.
fn fields(lacking: &[MissingField]) -> Result<(), String> {
    let needed = |lack: &&MissingField| lack.is_for_calls() || lack.field.name == "socket_file";
    let lacking: Vec<_> = lacking
        .iter()
        .filter(needed)
        .map(MissingField::to_string)
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(format!("this kernel has no {}", lacking.join(", ")))
}

fn load(ebpf: &mut Ebpf, kernel_types: &Btf) -> Result<(), aya::programs::ProgramError> {
    let program = program::<BtfTracePoint>(ebpf, PROGRAM)?;
    program.load(TRACEPOINT, kernel_types)?;
    program.attach().map(|_| ())
}

#[cfg(test)]
mod tests {
    use tcpstate_common::fields::{Need, Offsets};

    use super::fields;
    use crate::kernel::btf::{FieldError, MissingField};

    /// A kernel without these fields.
    fn without(names: &[&str]) -> Vec<MissingField> {
        Offsets::FIELDS
            .iter()
            .filter(|field| names.contains(&field.name))
            .map(|field| MissingField {
                field: *field,
                reason: FieldError::NoStruct,
                lost: match field.need {
                    Need::Required => "",
                    Need::Optional(lost) | Need::OneOf(lost) => lost,
                },
            })
            .collect()
    }

    #[test]
    fn fields_that_calls_need_are_named_at_once() {
        assert_eq!(fields(&without(&["uid", "file_count"])), Ok(()));
        assert_eq!(
            fields(&without(&["uid", "socket_file", "table_size"])),
            Err(
                "this kernel has no socket.file: no such struct, fdtable.max_fds: no such struct"
                    .to_owned()
            )
        );
    }
}
