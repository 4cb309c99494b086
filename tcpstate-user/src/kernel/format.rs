//! The `format` file of the classic tracepoint: where its fields are.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tcpstate_common::fields::{Field, Format};

/// Why the classic tracepoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// No tracefs.
    #[error(
        "tracefs is mounted neither at {} nor at {}: `mount -t tracefs nodev {}`",
        ROOTS[0], ROOTS[1], ROOTS[0]
    )]
    NotMounted,
    /// The kernel has no such tracepoint, or we may not look.
    #[error(
        "{path}: {error}; mount tracefs (`mount -t tracefs nodev /sys/kernel/tracing`), or this kernel lacks the \
         tracepoint (Linux 4.16 and later have it)"
    )]
    Unreadable {
        /// The file that could not be read.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A field is not as we know it.
    #[error("field {name} of the tracepoint has {found}, expected {expected} bytes")]
    Field {
        /// Name of the field.
        name: &'static str,
        /// What is there instead.
        found: String,
        /// Bytes we would read.
        expected: u32,
    },
}

const ROOTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const TRACEPOINT: &str = "events/sock/inet_sock_set_state/format";

/// Reads where the running kernel has the tracepoint's fields.
///
/// # Errors
/// If the file cannot be read, or does not say what we need.
pub fn read() -> Result<Format, FormatError> {
    if fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| !has_tracefs(&mounts)) {
        return Err(FormatError::NotMounted);
    }
    let path = ROOTS
        .iter()
        .map(|root| Path::new(root).join(TRACEPOINT))
        .find(|path| path.exists())
        .unwrap_or_else(|| Path::new(ROOTS[0]).join(TRACEPOINT));
    let text =
        fs::read_to_string(&path).map_err(|error| FormatError::Unreadable { path, error })?;
    parse(&text)
}

/// A line reads `device place type options 0 0`. The one below debugfs is mounted when somebody looks there.
fn has_tracefs(mounts: &str) -> bool {
    let mut kinds = mounts.lines().filter_map(|line| line.split(' ').nth(2));
    kinds.any(|kind| matches!(kind, "tracefs" | "debugfs"))
}

fn parse(text: &str) -> Result<Format, FormatError> {
    Format::resolve(|field| find(text, field))
}

/// A line reads `field:__u8 saddr[4]; offset:32; size:4; signed:0;`, with tabs between.
fn find(text: &str, field: &Field) -> Result<u32, FormatError> {
    let error = |found: String| FormatError::Field {
        name: field.path,
        found,
        expected: field.size,
    };
    let line = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("field:"))
        .find(|line| {
            let declaration = line.split(';').next().unwrap_or_default();
            let name = declaration.rsplit([' ', '*']).next().unwrap_or_default();
            name.split('[').next() == Some(field.path)
        })
        .ok_or_else(|| error("no place".to_owned()))?;
    let number = |key: &str| -> Option<u32> {
        line.split(';')
            .find_map(|part| part.trim().strip_prefix(key))
            .and_then(|value| value.parse().ok())
    };
    match (number("offset:"), number("size:")) {
        (Some(offset), Some(size)) if size == field.size => Ok(offset),
        (Some(_), Some(size)) => Err(error(format!("{size} bytes"))),
        _ => Err(error("no offset and size".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::{has_tracefs, parse};

    const LINUX_6_18: &str = include_str!("../../tests/fixtures/format/6.18.txt");

    #[test]
    fn a_format_file_is_understood() {
        let format = parse(LINUX_6_18).map(|format| {
            [
                format.socket,
                format.old,
                format.new,
                format.lport,
                format.rport,
                format.raddr6,
            ]
        });
        assert!(matches!(format, Ok([8, 16, 20, 24, 26, 56])));
    }

    #[test]
    fn tracefs_is_looked_for_by_its_type() {
        let others = "nodev /proc proc rw 0 0\nnodev /mnt/tracefs tmpfs rw 0 0\n";
        assert!(!has_tracefs(others));
        let mounted = format!("{others}nodev /sys/kernel/tracing tracefs rw 0 0\n");
        assert!(has_tracefs(&mounted));
    }

    #[test]
    fn a_field_of_another_size_or_without_a_place_is_refused() {
        let narrow = LINUX_6_18.replace(
            "protocol;\toffset:30;\tsize:2",
            "protocol;\toffset:30;\tsize:1",
        );
        let message = parse(&narrow).map_err(|error| error.to_string());
        assert_eq!(
            message,
            Err("field protocol of the tracepoint has 1 bytes, expected 2 bytes".into())
        );
        let gone = LINUX_6_18.replace("skaddr", "sk");
        assert!(parse(&gone).is_err());
        assert!(parse("").is_err());
        assert!(parse("field:const void * skaddr;\toffset:x;\tsize:8;").is_err());
    }
}
