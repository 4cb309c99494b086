//! Folding: most of a record is what the last one of its kind was, so of each a block keeps what differs. With what is left zstd has less
//! to do, and files are smaller.

use super::step::{NoStep, Step, Steps};

/// Stands where a step would begin, and is none: a record that differs from the last one of its group.
const LIKE: u8 = 255;

/// Records of so many words of eight bytes can be folded: a bit for each word has to find room.
const WORDS: usize = 24;

/// Groups of records.
const GROUPS: usize = 61;

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

/// Bytes before a record: the kind of the step and the length.
const HEAD: usize = 3;

/// Which records are of one group, if of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Groups {
    /// All of them (format 2).
    Length,
    /// Those with the same first three bytes, nearly always: what happened, and in which states.
    Kind,
}

impl Groups {
    /// The group of a record, and how many words it has, if it can be folded.
    fn of(self, record: &[u8]) -> Option<(usize, usize)> {
        let words = record.len() / 8;
        if !record.len().is_multiple_of(8) || words > WORDS {
            return None;
        }
        let group = match (self, record) {
            (Self::Length, _) => words,
            (Self::Kind, [a, b, c, ..]) => u32::from_le_bytes([*a, *b, *c, 0]) as usize % GROUPS,
            (Self::Kind, _) => return None,
        };
        Some((group, words))
    }
}

/// Folds steps; `None` if that makes them no shorter.
pub(super) fn fold<'a>(plain: &[u8], folded: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    folded.clear();
    let mut last: [&[u8]; GROUPS] = [&[]; GROUPS];
    let mut steps = Steps::new(plain);
    let mut at = 0;
    while let Some(step) = steps.next() {
        let step = step.ok()?;
        let end = plain.len() - steps.rest().len();
        if let Step::Record(record) = step
            && let Some((group, _)) = Groups::Kind.of(record)
            && let Some(last) = last.get_mut(group)
            && let before = std::mem::replace(last, record)
            && before.len() == record.len()
        {
            differ(group, before, record, folded);
        } else {
            folded.extend_from_slice(plain.get(at..end)?);
        }
        at = end;
    }
    (folded.len() < plain.len()).then_some(folded.as_slice())
}

/// Writes what a record has otherwise than the last one: which words differ, and of each where the bytes that differ begin, how many they
/// are to the last one, and these bytes.
fn differ(group: usize, last: &[u8], record: &[u8], folded: &mut Vec<u8>) {
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
    let [group, ..] = group.to_le_bytes();
    if let Some(head) = folded.get_mut(begin + 1..begin + 5) {
        head.copy_from_slice(&[group, a, b, c]);
    }
}

/// The last record of each group, as it stands in the ring buffers: where its numbers can be read at once.
pub(super) struct Last([Record; GROUPS]);

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Record {
    bytes: [[u8; 8]; WORDS],
    /// How many there are; `None` before there is one.
    words: Option<usize>,
}

impl Default for Last {
    fn default() -> Self {
        let none = Record {
            bytes: [[0; 8]; WORDS],
            words: None,
        };
        Self([none; GROUPS])
    }
}

/// The steps of a block. Each is there until the next one is asked for.
#[expect(
    missing_debug_implementations,
    reason = "nobody wants to see all of a block"
)]
pub struct BlockSteps<'a> {
    rest: &'a [u8],
    /// So many bytes they are, unfolded, that are still to come.
    left: usize,
    /// If they are folded.
    last: Option<(&'a mut Last, Groups)>,
}

/// The next step.
enum Next<'a> {
    /// A record, which is the last one of this group now.
    Like(usize),
    /// It stands there.
    Plain(Step<'a>),
}

impl<'a> BlockSteps<'a> {
    /// Of a block of so many bytes, unfolded.
    pub(super) fn new(
        bytes: &'a [u8],
        length: usize,
        mut last: Option<(&'a mut Last, Groups)>,
    ) -> Self {
        if let Some((Last(records), _)) = &mut last {
            for record in records {
                record.words = None;
            }
        }
        Self {
            rest: bytes,
            left: length,
            last,
        }
    }

    /// The next step, if there is one. After one that is none there are no more.
    pub fn step(&mut self) -> Option<Result<Step<'_>, NoStep>> {
        if self.rest.is_empty() && self.left == 0 {
            return None;
        }
        match self.advance() {
            Some(Next::Plain(step)) => Some(Ok(step)),
            Some(Next::Like(group)) => {
                let (Last(records), _) = self.last.as_ref()?;
                let Record { bytes, words } = records.get(group)?;
                let record = bytes.as_flattened().get(..(*words)? * 8)?;
                Some(Ok(Step::Record(record)))
            }
            None => {
                (self.rest, self.left) = (&[], 0);
                Some(Err(NoStep))
            }
        }
    }

    fn advance(&mut self) -> Option<Next<'a>> {
        if let Some((Last(records), _)) = &mut self.last
            && let Some(([LIKE, group, a, b, c], rest)) = self.rest.split_first_chunk()
        {
            let group = usize::from(*group);
            let Record { bytes, words } = records.get_mut(group)?;
            let words = (*words)?;
            self.left = self.left.checked_sub(HEAD + words * 8)?;
            let differing = u32::from_le_bytes([*a, *b, *c, 0]);
            self.rest = put(rest, differing, bytes.get_mut(..words)?)?;
            return Some(Next::Like(group));
        }
        let mut steps = Steps::new(self.rest);
        let step = steps.next()?.ok()?;
        let taken = self.rest.len() - steps.rest().len();
        self.left = self.left.checked_sub(taken)?;
        self.rest = steps.rest();
        if let (Some((Last(records), groups)), Step::Record(record)) = (&mut self.last, &step)
            && let Some((group, words)) = groups.of(record)
            && let Some(last) = records.get_mut(group)
        {
            last.words = Some(words);
            last.bytes
                .as_flattened_mut()
                .get_mut(..record.len())?
                .copy_from_slice(record);
        }
        Some(Next::Plain(step))
    }
}

/// Puts what differs into a record, and says what is behind it.
fn put<'a>(mut folded: &'a [u8], mut words: u32, record: &mut [[u8; 8]]) -> Option<&'a [u8]> {
    while words != 0 {
        let word = record.get_mut(words.trailing_zeros() as usize)?;
        words &= words - 1;
        // All eight are read faster than some.
        let (place, new) = match folded.first_chunk::<9>() {
            Some([place, new @ ..]) => (*place, u64::from_le_bytes(*new)),
            None => at_the_end(folded)?,
        };
        let bytes = BYTES[usize::from(place)];
        if bytes == 0 {
            return None;
        }
        folded = folded.get(1 + usize::from(place & 15)..)?;
        let old = u64::from_le_bytes(*word);
        let new = new << (place >> 4 << 3);
        *word = (old ^ (old ^ new) & bytes).to_le_bytes();
    }
    Some(folded)
}

/// A place and the bytes that are left.
#[cold]
fn at_the_end(folded: &[u8]) -> Option<(u8, u64)> {
    let (place, rest) = folded.split_first()?;
    let mut new = [0; 8];
    for (new, byte) in new.iter_mut().zip(rest) {
        *new = *byte;
    }
    Some((*place, u64::from_le_bytes(new)))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{BlockSteps, Groups, Last, Step, fold};

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

    /// All steps, as they were; `None` if one is none.
    fn unfold(folded: &[u8], length: usize, groups: Groups) -> Option<Vec<u8>> {
        let mut last = Last::default();
        let mut steps = BlockSteps::new(folded, length, Some((&mut last, groups)));
        let mut plain = Vec::new();
        let mut wrong = false;
        while let Some(step) = steps.step() {
            assert!(!wrong, "there is something behind what is none");
            match step {
                Ok(step) => step.write(&mut plain),
                Err(_) => wrong = true,
            }
        }
        assert!(plain.len() <= length);
        (!wrong).then_some(plain)
    }

    proptest! {
        #[test]
        fn what_was_folded_is_unfolded(records in records()) {
            let plain = steps(&records);
            if let Some(folded) = fold(&plain, &mut Vec::new()) {
                prop_assert!(folded.len() < plain.len());
                let unfolded = unfold(folded, plain.len(), Groups::Kind);
                prop_assert_eq!(unfolded.as_ref(), Some(&plain));
                for wrong in [0, plain.len() - 1, plain.len() + 1] {
                    prop_assert_eq!(unfold(folded, wrong, Groups::Kind), None);
                }
                for cut in 0..folded.len() {
                    prop_assert_eq!(unfold(&folded[..cut], plain.len(), Groups::Kind), None);
                }
            }
        }

        #[test]
        fn anything_is_unfolded_or_refused(
            records in records(),
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            groups in prop_oneof![Just(Groups::Length), Just(Groups::Kind)],
        ) {
            let plain = steps(&records);
            let mut folded = Vec::new();
            if fold(&plain, &mut folded).is_none() { return Ok(()) }
            for (at, byte) in changes {
                let at = at.index(folded.len());
                folded[at] = byte;
            }
            unfold(&folded, plain.len(), groups);
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
