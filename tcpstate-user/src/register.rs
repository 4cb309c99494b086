//! What is known of many things, each by its number: a million connections by their cookies.
//!
//! With so many, to look one up is to wait for memory. So nothing is moved when something is removed, the place that was used last
//! is the next to be used, and who knows what will be looked up soon can have it fetched meanwhile.

mod index;

use std::hash::{BuildHasher as _, RandomState};

use crate::prefetch::{Prefetch, prefetch};
use index::{Index, NONE};

/// A value for each of many numbers.
#[derive(Clone, Debug)]
pub struct Register<T> {
    /// Where each number has its slot.
    index: Index,
    slots: Vec<Slot<T>>,
    /// The first free slot, if there is one.
    free: u32,
    /// Where to look for a victim.
    hand: usize,
    /// Of the hashes: another in each.
    seed: u64,
}

#[derive(Clone, Debug)]
struct Slot<T> {
    /// The number; of a free slot, the next free one.
    key: u64,
    value: Option<T>,
}

impl<T> Default for Register<T> {
    fn default() -> Self {
        Self {
            index: Index::default(),
            slots: Vec::new(),
            free: NONE,
            hand: 0,
            seed: RandomState::new().hash_one(0),
        }
    }
}

impl<T> Register<T> {
    /// How many values there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.index.len() == 0
    }

    /// Has what is kept of this number, which will be looked up soon, fetched from memory.
    pub fn prefetch(&self, key: u64, what: Prefetch) {
        if what == Prefetch::Place {
            self.index.prefetch(self.hash(key));
            return;
        }
        // Whether it is the right one is not worth waiting for.
        let at = self.index.find(self.hash(key), |_| true);
        if let Some(slot) = at.and_then(|at| self.slots.get(self.index.place(at))) {
            prefetch(slot);
        }
    }

    fn hash(&self, key: u64) -> u32 {
        hash(key, self.seed)
    }

    /// Where in the index, and where among the slots.
    fn find(&self, key: u64) -> Option<(usize, usize)> {
        let is_its = |place: usize| self.slots.get(place).is_some_and(|slot| slot.key == key);
        let at = self.index.find(self.hash(key), is_its)?;
        Some((at, self.index.place(at)))
    }

    /// Whether there is a value for this number.
    #[must_use]
    pub fn contains(&self, key: u64) -> bool {
        self.find(key).is_some()
    }

    /// The value for this number.
    #[must_use]
    pub fn get(&self, key: u64) -> Option<&T> {
        let (_, place) = self.find(key)?;
        self.slots.get(place)?.value.as_ref()
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let (_, place) = self.find(key)?;
        self.slots.get_mut(place)?.value.as_mut()
    }

    /// Keeps a value, and gives back the one that was there. Beyond four billion there is no place: it comes back itself.
    pub fn insert(&mut self, key: u64, value: T) -> Option<T> {
        if let Some((_, place)) = self.find(key) {
            return self.slots.get_mut(place)?.value.replace(value);
        }
        let slot = Slot {
            key,
            value: Some(value),
        };
        let place = self.free;
        if let Some(free) = self.slots.get_mut(place as usize) {
            self.free = u32::try_from(free.key).unwrap_or(NONE);
            *free = slot;
            self.index.insert(self.hash(key), place);
            return None;
        }
        match u32::try_from(self.slots.len()) {
            Ok(place) if place != NONE => {
                self.index.insert(self.hash(key), place);
                push(&mut self.slots, slot);
                None
            }
            _ => slot.value,
        }
    }

    /// Takes the value for this number away.
    pub fn remove(&mut self, key: u64) -> Option<T> {
        let (at, place) = self.find(key)?;
        self.index.remove(at);
        let slot = self.slots.get_mut(place)?;
        slot.key = self.free.into();
        self.free = u32::try_from(place).unwrap_or(NONE);
        slot.value.take()
    }

    /// Takes some value away, for want of room: none in particular, but never the same place twice in a row.
    pub fn remove_any(&mut self) -> Option<T> {
        let (before, after) = self.slots.split_at_checked(self.hand)?;
        let (ahead, slot) = (0..)
            .zip(after.iter().chain(before))
            .find(|(_, slot)| slot.value.is_some())?;
        let key = slot.key;
        self.hand = (self.hand + ahead + 1) % self.slots.len();
        self.remove(key)
    }

    /// Makes room for this number among at most so many: what had to leave for it, if anything had.
    pub fn make_room(&mut self, key: u64, limit: usize) -> Option<T> {
        if self.len() < limit || self.contains(key) {
            return None;
        }
        self.remove_any()
    }

    /// What is in a place, of as many as [`Register::places`] says.
    #[must_use]
    pub fn at(&self, place: usize) -> Option<(u64, &T)> {
        let slot = self.slots.get(place)?;
        slot.value.as_ref().map(|value| (slot.key, value))
    }

    /// How many places there are, the free ones included.
    #[must_use]
    pub fn places(&self) -> usize {
        self.slots.len()
    }

    /// All numbers and values, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        (0..self.places()).filter_map(|place| self.at(place))
    }

    /// All values, in no order.
    pub fn into_values(self) -> impl Iterator<Item = T> {
        self.slots.into_iter().filter_map(|slot| slot.value)
    }
}

/// Makes room slowly. Left to itself a full vector doubles, and half of it may then be empty for hours.
fn push<T>(slots: &mut Vec<T>, slot: T) {
    if slots.len() == slots.capacity() {
        slots.reserve_exact((slots.len() / 8).max(64));
    }
    slots.push(slot);
}

/// Mixed so that neither numbers in a row, nor any other pattern, nor who makes up a recording and cannot know the seed, bring many
/// to the same place.
fn hash(key: u64, seed: u64) -> u32 {
    let mixed = (key ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let [a, b, c, d, ..] = (mixed ^ mixed >> 32).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::{Prefetch, Register, hash};

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Insert(u64, u32),
        Remove(u64),
        RemoveAny,
    }

    const KEYS: u64 = 100;

    /// Without a seed every second number has one of four hashes, at the ends of the index and in the middle; the others have hashes
    /// of their own.
    fn key(number: u64) -> u64 {
        /// What undoes the multiplication of a hash.
        const INVERSE: u64 = 0xf1de_83e1_9937_733d;
        let hash = match number % 8 {
            0 => 0,
            2 => u32::MAX,
            4 => u32::MAX - 1,
            6 => 1 << 31,
            _ => return number,
        };
        INVERSE.wrapping_mul(number << 32 | u64::from(hash) ^ number)
    }

    #[test]
    fn some_keys_have_the_same_hash() {
        assert_eq!([hash(key(0), 0), hash(key(8), 0)], [0; 2]);
        assert_eq!([hash(key(2), 0), hash(key(90), 0)], [u32::MAX; 2]);
        assert_ne!(hash(key(2), 1), hash(key(90), 1));
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = || (0..KEYS).prop_map(key);
        prop_oneof![
            3 => (key(), any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            2 => key().prop_map(Step::Remove),
            1 => Just(Step::RemoveAny),
        ]
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_would(steps in vec(step(), 0..600)) {
            let mut register = Register {
                seed: 0,
                ..Register::default()
            };
            let mut map = BTreeMap::new();
            let mut most = 0;
            for step in steps {
                match step {
                    Step::Insert(key, value) => {
                        prop_assert_eq!(register.insert(key, value), map.insert(key, value));
                    }
                    Step::Remove(key) => prop_assert_eq!(register.remove(key), map.remove(&key)),
                    Step::RemoveAny => {
                        let before = map.clone();
                        let gone = register.remove_any();
                        map.retain(|key, _| register.contains(*key));
                        prop_assert_eq!(gone.is_some(), !before.is_empty());
                        prop_assert_eq!(map.len(), before.len().saturating_sub(1));
                    }
                }
                most = most.max(map.len());
                prop_assert_eq!(register.len(), map.len());
                prop_assert!(register.places() <= most);
                let held: BTreeMap<_, _> = register.iter().map(|(key, value)| (key, *value)).collect();
                prop_assert_eq!(&held, &map);
                for key in (0..KEYS).map(key) {
                    register.prefetch(key, Prefetch::Place);
                    register.prefetch(key, Prefetch::Value);
                    prop_assert_eq!(register.get(key), map.get(&key));
                }
            }
        }
    }
}
