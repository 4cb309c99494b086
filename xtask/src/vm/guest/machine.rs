//! The machine itself: file systems, modules, its end.

use std::{
    ffi::{CString, c_long},
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
};

use crate::protocol::MODULES;

/// What it takes to report anything.
pub fn mount_devices() -> io::Result<()> {
    mount("devtmpfs", "/dev")
}

/// Everything else; what there is not is said, since it may be what is tested.
pub fn mount_rest() -> io::Result<Vec<String>> {
    mount("proc", "/proc")?;
    mount("sysfs", "/sys")?;
    // The root is in memory already; what is mounted over it would hide what the host has put there.
    for folder in ["/tmp", "/run"] {
        fs::create_dir_all(folder)?;
    }
    let rest = [
        ("tracefs", "/sys/kernel/tracing"),
        ("debugfs", "/sys/kernel/debug"),
        ("securityfs", "/sys/kernel/security"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ];
    let failed = rest.into_iter().filter_map(|(kind, folder)| {
        let error = mount(kind, folder).err()?;
        Some(format!("{kind} cannot be mounted on {folder}: {error}"))
    });
    Ok(failed.collect())
}

/// Hides a folder of the kernel's; why it cannot be.
pub fn hide(folder: &str) -> Option<String> {
    let error = mount("tmpfs", folder).err()?;
    Some(format!("{folder} cannot be hidden: {error}"))
}

/// Loads what the host has put there, in its order; says what could not be loaded.
pub fn load_modules() -> io::Result<Vec<String>> {
    let mut paths: Vec<_> = fs::read_dir(MODULES)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    paths.sort();
    let mut troubles = Vec::new();
    for path in paths {
        let file = File::open(&path)?;
        // SAFETY: the file and the empty string of parameters live through the call.
        let result: c_long =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        if result != 0 {
            let error = io::Error::last_os_error();
            troubles.push(format!("{} cannot be loaded: {error}", path.display()));
        }
    }
    Ok(troubles)
}

fn mount(kind: &str, folder: &str) -> io::Result<()> {
    // Fails where the folder is the kernel's own; mounting tells whether it is there.
    let _ = fs::create_dir_all(folder);
    let (kind, folder) = (CString::new(kind)?, CString::new(folder)?);
    // SAFETY: the strings live through the call; there is no data.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            folder.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// qemu is told to end instead of starting again. If this fails, the kernel panics as its first process ends, which ends
/// qemu as well.
pub fn switch_off() {
    // SAFETY: a call without pointers.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
}
