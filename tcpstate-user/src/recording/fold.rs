//! Folding: most of a record is what the one before it was, so of each a block keeps what differs. With what is left zstd has less to do, and
//! files are smaller by a tenth.

use super::step::{RECORD, Step, Steps};

/// Stands where a step would begin, and is none: a record that differs from the last one of the same length.
const LIKE: u8 = 255;

/// Records of so many words of eight bytes can be folded: a bit for each word has to find room.
const WORDS: usize = 24;

/// The bytes of a word that a place (see [`differ`]) says; none if there is no such place.
static BYTES: [u64; 256] = {
    let mut bytes = [0; 256];
    let mut first = 0;
    while first < 8 {
        let mut count = 1;
        while first + count <= 8 {
            bytes[first << 4 | count] = u64::MAX >> (64 - 8 * count) << (8 * first);
            count += 1;
        }
        first += 1;
    }
    bytes
};

/// Where the last record of each length is.
type Last = [Option<usize>; WORDS + 1];

/// Bytes before a record: the kind of the step and the length.
const HEAD: usize = 3;

/// Folds steps; `None` if that makes them no shorter.
pub(super) fn fold<'a>(plain: &[u8], folded: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    folded.clear();
    let mut last: Last = [None; WORDS + 1];
    let mut steps = Steps::new(plain);
    let mut at = 0;
    while let Some(step) = steps.next() {
        let step = step.ok()?;
        let end = plain.len() - steps.rest().len();
        if let Step::Record(record) = step
            && let Some(last) = words(record.len()).and_then(|words| last.get_mut(words))
        {
            match last.replace(at + HEAD) {
                Some(last) => differ(plain.get(last..)?, record, folded),
                None => folded.extend_from_slice(plain.get(at..end)?),
            }
        } else {
            folded.extend_from_slice(plain.get(at..end)?);
        }
        at = end;
    }
    (folded.len() < plain.len()).then_some(folded.as_slice())
}

/// Writes what a record has otherwise than the last one: which words differ, and of each where the bytes that differ begin, how many they
/// are to the last one, and these bytes.
fn differ(last: &[u8], record: &[u8], folded: &mut Vec<u8>) {
    let begin = folded.len();
    // Which words differ is known afterwards.
    folded.extend_from_slice(&[LIKE, 0, 0, 0, 0]);
    let (last, _) = last.as_chunks();
    let (record, _) = record.as_chunks();
    let mut words = 0_u32;
    for (number, (last, new)) in last.iter().zip(record).enumerate() {
        let (last, new) = (u64::from_le_bytes(*last), u64::from_le_bytes(*new));
        if last == new {
            continue;
        }
        words |= 1 << number;
        let first = (last ^ new).trailing_zeros() / 8;
        let count = 8 - (last ^ new).leading_zeros() / 8 - first;
        let [place, ..] = (first << 4 | count).to_le_bytes();
        folded.push(place);
        // All eight are written faster than some.
        folded.extend_from_slice(&(new >> (8 * first)).to_le_bytes());
        folded.truncate(folded.len() - (8 - count as usize));
    }
    let [a, b, c, _] = words.to_le_bytes();
    let count = u8::try_from(record.len()).unwrap_or_default();
    if let Some(head) = folded.get_mut(begin + 1..begin + 5) {
        head.copy_from_slice(&[count, a, b, c]);
    }
}

/// Unfolds what fills `plain` then; `None` if it does not, or is nothing that was folded.
pub(super) fn unfold(mut folded: &[u8], plain: &mut [u8]) -> Option<()> {
    let mut last: Last = [None; WORDS + 1];
    let mut at = 0;
    while let Some((kind, rest)) = folded.split_first() {
        let (before, here) = plain.split_at_mut_checked(at)?;
        let bytes = if *kind == LIKE {
            let ([count, a, b, c], rest) = rest.split_first_chunk()?;
            let bytes = usize::from(*count) * 8;
            let from = (*last.get(usize::from(*count))?)?;
            let (head, here) = here.split_first_chunk_mut::<HEAD>()?;
            let [low, high] = u16::try_from(bytes).ok()?.to_le_bytes();
            *head = [RECORD, low, high];
            let record = here.get_mut(..bytes)?;
            record.copy_from_slice(before.get(from..from + bytes)?);
            folded = put(rest, u32::from_le_bytes([*a, *b, *c, 0]), record)?;
            at += HEAD + bytes;
            Some(bytes)
        } else {
            let mut steps = Steps::new(folded);
            let step = steps.next()?.ok()?;
            let taken = folded.len() - steps.rest().len();
            here.get_mut(..taken)?.copy_from_slice(folded.get(..taken)?);
            folded = steps.rest();
            at += taken;
            match step {
                Step::Record(record) => Some(record.len()),
                _ => None,
            }
        };
        if let Some(bytes) = bytes
            && let Some(last) = words(bytes).and_then(|words| last.get_mut(words))
        {
            *last = Some(at - bytes);
        }
    }
    (at == plain.len()).then_some(())
}

/// Puts what differs into a record, and says what is behind it.
fn put<'a>(mut folded: &'a [u8], mut words: u32, record: &mut [u8]) -> Option<&'a [u8]> {
    let (record, _) = record.as_chunks_mut();
    while words != 0 {
        let word = record.get_mut(words.trailing_zeros() as usize)?;
        words &= words - 1;
        let (place, rest) = folded.split_first()?;
        let bytes = BYTES[usize::from(*place)];
        if bytes == 0 {
            return None;
        }
        let count = usize::from(place & 15);
        let (new, rest) = if let Some(new) = rest.first_chunk() {
            (u64::from_le_bytes(*new), &rest[count..])
        } else {
            let (few, rest) = rest.split_at_checked(count)?;
            let mut new = [0; 8];
            new[..few.len()].copy_from_slice(few);
            (u64::from_le_bytes(new), rest)
        };
        let old = u64::from_le_bytes(*word);
        let new = new << (place >> 4 << 3);
        *word = (old ^ (old ^ new) & bytes).to_le_bytes();
        folded = rest;
    }
    Some(folded)
}

/// How many words a record of so many bytes has, if it can be folded.
fn words(bytes: usize) -> Option<usize> {
    (bytes.is_multiple_of(8) && bytes <= WORDS * 8).then_some(bytes / 8)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{Step, fold, unfold};

    /// Records that have much in common, and some that cannot be folded.
    fn records() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let bytes = prop_oneof![6 => Just(0_u8), 1 => any::<u8>()];
        let length = prop_oneof![
            4 => Just(160_usize),
            2 => Just(168),
            1 => Just(192),
            1 => Just(200),
            1 => 0..170_usize
        ];
        vec(
            length.prop_flat_map(move |length| vec(bytes.clone(), length)),
            0..30,
        )
    }

    fn steps(records: &[Vec<u8>]) -> Vec<u8> {
        let mut plain = Vec::new();
        for (number, record) in records.iter().enumerate() {
            Step::Record(record).write(&mut plain);
            if number % 3 == 0 {
                Step::Settled(number as u64).write(&mut plain);
            }
        }
        plain
    }

    proptest! {
        #[test]
        fn what_was_folded_is_unfolded(records in records()) {
            let plain = steps(&records);
            if let Some(folded) = fold(&plain, &mut Vec::new()) {
                prop_assert!(folded.len() < plain.len());
                let mut unfolded = vec![1; plain.len()];
                prop_assert_eq!(unfold(folded, &mut unfolded), Some(()));
                prop_assert_eq!(&unfolded, &plain);
                for wrong in [0, plain.len() - 1, plain.len() + 1] {
                    prop_assert_eq!(unfold(folded, &mut vec![1; wrong]), None);
                }
                for cut in 0..folded.len() {
                    prop_assert_eq!(unfold(&folded[..cut], &mut unfolded), None);
                }
            }
        }

        #[test]
        fn anything_is_unfolded_or_refused(
            records in records(),
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let plain = steps(&records);
            let mut folded = Vec::new();
            if fold(&plain, &mut folded).is_none() { return Ok(()) }
            for (at, byte) in changes {
                let at = at.index(folded.len());
                folded[at] = byte;
            }
            unfold(&folded, &mut vec![1; plain.len()]);
        }
    }

    #[test]
    fn the_same_record_again_takes_five_bytes() {
        let plain = steps(&[vec![7; 160], vec![7; 160]]);
        let mut folded = Vec::new();
        let folded = fold(&plain, &mut folded).map(<[u8]>::len);
        assert_eq!(folded, Some(plain.len() - 163 + 5));
    }
}
