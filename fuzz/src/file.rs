//! A whole file. Its checksums are put right first, or nothing would be tried but those.

use std::io::Cursor;

use tcpstate_user::recording::Reader;

use super::shown;

const PREAMBLE: usize = 24;
const HEAD: usize = 80;
const TRAILER: usize = 16;

/// The first byte says what to do with the others.
pub fn run(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else {
        return;
    };
    let mut file = data.to_vec();
    if choice & 1 == 0 {
        mend(&mut file);
    }
    read(&file, u64::from(*choice) << 24);
    if choice & 2 == 0 {
        shown::on(&file, |files| {
            files.info();
            files.show(choice >> 2 << 5);
        });
    }
}

/// All that can be read, from the beginning and from somewhere.
fn read(file: &[u8], time: u64) {
    for since in [None, Some(0), Some(time), Some(u64::MAX)] {
        let Ok(mut reader) = Reader::new(Cursor::new(file)) else {
            return;
        };
        if let Some(since) = since {
            let begins = reader.header().begins;
            reader
                .skip_to(begins.saturating_add(since))
                .expect("memory can be read");
        }
        let mut before = reader.offset();
        while let Ok(Some(block)) = reader.next_block() {
            assert!(before <= block.offset && block.offset < reader.offset());
            assert!(reader.offset() <= file.len() as u64);
            before = reader.offset();
            let mut steps = reader.steps();
            while let Some(step) = steps.step() {
                drop(step);
            }
        }
    }
}

fn mend(file: &mut [u8]) {
    if let Some(preamble) = file.get_mut(..PREAMBLE) {
        seal(preamble);
    }
    let mut at = PREAMBLE;
    while let Some((head, body)) = file
        .get_mut(at..)
        .and_then(|rest| rest.split_at_mut_checked(HEAD))
    {
        let stored = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        if let Some(body) = body.get(..stored) {
            head[72..76].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        }
        seal(head);
        at = at.saturating_add(HEAD).saturating_add(stored);
    }
    // The index is named by the trailer, wherever that is.
    if let Some(start) = file.len().checked_sub(TRAILER) {
        seal(&mut file[start..start + 12]);
    }
}

/// The last four bytes are the checksum of those before.
fn seal(bytes: &mut [u8]) {
    if let Some((bytes, sum)) = bytes.split_last_chunk_mut::<4>() {
        *sum = crc32fast::hash(bytes).to_le_bytes();
    }
}
