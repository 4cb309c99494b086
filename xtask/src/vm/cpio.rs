//! An archive as the kernel unpacks it into its first file system: cpio in its "newc" form
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::io::Write as _;

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive in the making. Folders come by themselves.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, FILE, (0, 0), content);
    }

    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, (0, 0), content);
    }

    pub fn character_device(&mut self, path: &str, numbers: (u32, u32)) {
        self.entry(path, CHARACTER_DEVICE, numbers, &[]);
    }

    pub fn folder(&mut self, path: &str) {
        let path = path.trim_matches('/');
        let ends = path.match_indices('/').map(|(index, _)| index);
        for end in ends.chain([path.len()]) {
            if self.folders.insert(path[..end].to_owned()) {
                self.append(&path[..end], FOLDER, (0, 0), &[]);
            }
        }
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.append("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let path = path.trim_start_matches('/');
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        self.append(path, mode, device, content);
    }

    fn append(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.inode += 1;
        // Writing to a Vec cannot fail.
        let _ = write!(
            self.bytes,
            "070701{inode:08x}{mode:08x}{owner:08x}{owner:08x}{links:08x}{time:08x}{size:08x}\
             {on:08x}{on:08x}{major:08x}{minor:08x}{name:08x}{check:08x}{path}\0",
            inode = self.inode,
            owner = 0,
            links = 1,
            time = 0,
            size = content.len(),
            on = 0,
            name = path.len() + 1,
            check = 0,
        );
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test stops where its set-up fails")]
mod tests {
    use super::*;

    /// Name, mode and content of each entry, read as the kernel reads them.
    fn entries(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let number = |field: usize| {
                let from = at + 6 + field * 8;
                let text = std::str::from_utf8(&bytes[from..from + 8]).expect("ASCII");
                u32::from_str_radix(text, 16).expect("a number")
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name) = (number(1), number(6) as usize, number(11) as usize);
            let name_at = at + 110;
            let content_at = (name_at + name).next_multiple_of(4);
            entries.push((
                String::from_utf8(bytes[name_at..name_at + name - 1].to_vec()).expect("UTF-8"),
                mode,
                bytes[content_at..content_at + size].to_vec(),
            ));
            at = (content_at + size).next_multiple_of(4);
        }
        entries
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_once() {
        let mut archive = Archive::default();
        archive.program("/a/b/c", b"12345");
        archive.file("a/b/d", b"");
        archive.folder("/modules");
        archive.character_device("/dev/console", (5, 1));
        let entries = entries(&archive.finish());
        let names: Vec<_> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "a",
                "a/b",
                "a/b/c",
                "a/b/d",
                "modules",
                "dev",
                "dev/console",
                "TRAILER!!!"
            ]
        );
        assert_eq!(entries[2].1, PROGRAM);
        assert_eq!(entries[2].2, b"12345");
        assert_eq!(entries[0].1, FOLDER);
    }
}
