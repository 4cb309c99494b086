//! Commands as users give them, on a recording that somebody has made up. What they print must be well-formed whatever is in it.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    io::{Seek as _, SeekFrom, Write as _},
    os::fd::AsRawFd as _,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use tcpstate_user::cli::CommandLine;

/// The formats of output.
const FORMATS: [&[&str]; 4] = [&["-j"], &["-s"], &["-w", "-T"], &[]];
/// What can be looked at, and how.
const VIEWS: [&[&str]; 8] = [
    &["conns"],
    &["conns", "--running"],
    &["trace"],
    &["closers", "--by", "process,remote,container"],
    &["hist", "--by", "cgroup"],
    &["closers", "8760h"],
    &["trace", "--state", "time_wait", "--comm", "nginx"],
    &["conns", "--max-connections", "2"],
];
/// The part that is looked at.
const WINDOWS: [&[&str]; 4] = [
    &[],
    &["--since", "+1s"],
    &["--since", "+1s", "--skip-earlier", "--until", "+20s"],
    &["--until", "+1s", "--netns", "7"],
];

/// Files that are in memory only, and the commands that were tried on them: understanding those takes longer than what follows.
pub struct Files {
    recording: File,
    output: File,
    commands: HashMap<Option<u8>, CommandLine>,
}

thread_local! {
    static FILES: RefCell<Files> = RefCell::new(Files::new());
}

/// Tries something on a recording.
pub fn on(recording: &[u8], tries: impl FnOnce(&mut Files)) {
    FILES.with_borrow_mut(|files| {
        write(&mut files.recording, recording);
        tries(files);
    });
}

impl Files {
    fn new() -> Self {
        let file =
            |name| File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
        Self {
            recording: file(c"recording"),
            output: file(c"output"),
            commands: HashMap::new(),
        }
    }

    /// The view with this number.
    pub fn show(&mut self, choice: u8) {
        let number = usize::from(choice);
        let format = FORMATS[number % 4];
        let view = VIEWS[number / 4 % 8];
        let window = WINDOWS[number / 32 % 4];
        write(&mut self.output, &[]);
        let output = path(&self.output);
        let files = [
            "--from".into(),
            path(&self.recording),
            "--output".into(),
            output,
        ];
        self.run(Some(choice), &[view, format, window].concat(), &files);
        let shown = fs::read(path(&self.output)).expect("a file");
        let shown = std::str::from_utf8(&shown).expect("UTF-8");
        for line in shown.lines() {
            if format == ["-j"] {
                serde_json::from_str::<serde_json::Value>(line).expect("JSON");
            } else {
                assert!(!line.contains(char::is_control), "{line:?}");
            }
        }
    }

    /// What is in it.
    pub fn info(&mut self) {
        self.run(None, &["info"], &[path(&self.recording)]);
    }

    fn run(&mut self, key: Option<u8>, words: &[&str], files: &[OsString]) {
        let words = ["tcpstate"].iter().chain(words).map(OsString::from);
        let words = words.chain(files.iter().cloned());
        let command = self
            .commands
            .entry(key)
            .or_insert_with(|| CommandLine::parse(words).expect("a good command line"));
        // An error is an answer, too.
        let _ = command.run();
    }
}

fn write(file: &mut File, bytes: &[u8]) {
    file.set_len(0).expect("it is ours");
    file.seek(SeekFrom::Start(0)).expect("a file");
    file.write_all(bytes).expect("memory");
}

fn path(file: &File) -> OsString {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
