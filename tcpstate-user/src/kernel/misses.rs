//! How often the kernel did not run a program of ours for an event, because it was already at another one on that CPU
//! (`recursion_misses`, Linux 5.12 and later; before that it did run it).

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::FileExt as _,
    },
};

use aya::{Ebpf, programs::ProgramError};

/// The kernel's count for one program.
#[derive(Debug)]
pub(super) struct Misses(File);

impl Misses {
    /// Of a program that is loaded.
    pub(super) fn of(ebpf: &Ebpf, program: &str) -> Result<Self, ProgramError> {
        let fd = ebpf
            .program(program)
            .ok_or(ProgramError::NotLoaded)?
            .fd()?
            .as_fd()
            .as_raw_fd();
        File::open(format!("/proc/self/fdinfo/{fd}"))
            .map(Self)
            .map_err(ProgramError::IOError)
    }

    /// So often, so far.
    pub(super) fn count(&self) -> io::Result<u64> {
        let mut text = [0; 1024];
        let length = self.0.read_at(&mut text, 0)?;
        Ok(parse(&String::from_utf8_lossy(&text[..length])))
    }
}

fn parse(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn misses_are_read_where_the_kernel_has_them() {
        let new =
            "pos:\t0\nprog_type:\t26\nrun_cnt:\t0\nrecursion_misses:\t4156\nverified_insns:\t7\n";
        assert_eq!(parse(new), 4156);
        assert_eq!(parse("pos:\t0\nprog_type:\t26\n"), 0);
        assert_eq!(parse("recursion_misses:\tx\n"), 0);
    }
}
