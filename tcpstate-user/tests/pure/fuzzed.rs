//! The inputs that fuzzing has found to matter (`fuzz/corpus`), and those that broke something once (`fuzz/regressions`).

use std::{fs, path::Path};

use crate::fuzz::{file, records, steps};

/// Tries all inputs of a target, each as fuzzing does.
fn all(target: &str, run: fn(&[u8])) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let mut tried = 0;
    for kind in ["corpus", "regressions"] {
        let Ok(inputs) = fs::read_dir(fuzz.join(kind).join(target)) else {
            continue;
        };
        for input in inputs {
            let path = input.expect("a file").path();
            // Shown if it fails.
            println!("{}", path.display());
            run(&fs::read(path).expect("a file"));
            tried += 1;
        }
    }
    assert!(tried > 20, "{tried}");
}

#[test]
fn files() {
    all("file", file::run);
}

#[test]
fn steps_of_runs() {
    all("steps", steps::run);
}

#[test]
fn records_of_the_kernel_side() {
    all("records", records::run);
}
