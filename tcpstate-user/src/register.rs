//! What is known of many things, each by its number: a million connections by their cookies.
//!
//! With so many, to look one up is to wait for memory. So nothing is moved when something is removed, and the place that was used last
//! is the next to be used.

use std::hash::BuildHasher as _;

use hashbrown::hash_table::{Entry, HashTable};
use rustc_hash::FxBuildHasher;

/// A value for each of many numbers.
#[derive(Clone, Debug)]
pub struct Register<T> {
    /// Where each number has its slot.
    index: HashTable<u32>,
    slots: Vec<Slot<T>>,
    /// The first free slot, if there is one.
    free: u32,
    /// Where to look for a victim.
    hand: usize,
}

#[derive(Clone, Debug)]
struct Slot<T> {
    /// The number; of a free slot, the next free one.
    key: u64,
    value: Option<T>,
}

/// No slot.
const NONE: u32 = u32::MAX;

impl<T> Default for Register<T> {
    fn default() -> Self {
        Self {
            index: HashTable::new(),
            slots: Vec::new(),
            free: NONE,
            hand: 0,
        }
    }
}

impl<T> Register<T> {
    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    fn place(&self, key: u64) -> Option<usize> {
        let place = self
            .index
            .find(hash(key), |place| is_of(&self.slots, *place, key))?;
        Some(*place as usize)
    }

    /// Whether there is a value for this number.
    #[must_use]
    pub fn contains(&self, key: u64) -> bool {
        self.place(key).is_some()
    }

    /// The value for this number.
    #[must_use]
    pub fn get(&self, key: u64) -> Option<&T> {
        self.slots.get(self.place(key)?)?.value.as_ref()
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let place = self.place(key)?;
        self.slots.get_mut(place)?.value.as_mut()
    }

    /// Keeps a value, and gives back the one that was there. Beyond four billion there is no place: it comes back itself.
    pub fn insert(&mut self, key: u64, value: T) -> Option<T> {
        let Self {
            index, slots, free, ..
        } = self;
        let is_its = |place: &u32| is_of(slots, *place, key);
        match index.entry(hash(key), is_its, |place| hash_at(slots, *place)) {
            Entry::Occupied(entry) => {
                let slot = slots.get_mut(*entry.get() as usize)?;
                slot.value.replace(value)
            }
            Entry::Vacant(entry) => {
                let slot = Slot {
                    key,
                    value: Some(value),
                };
                if let Some(place) = slots.get_mut(*free as usize) {
                    let next = u32::try_from(place.key).unwrap_or(NONE);
                    *place = slot;
                    entry.insert(*free);
                    *free = next;
                    return None;
                }
                match u32::try_from(slots.len()) {
                    Ok(place) if place != NONE => {
                        entry.insert(place);
                        push(slots, slot);
                        None
                    }
                    _ => slot.value,
                }
            }
        }
    }

    /// Takes the value for this number away.
    pub fn remove(&mut self, key: u64) -> Option<T> {
        let Self { index, slots, .. } = self;
        let entry = index
            .find_entry(hash(key), |place| is_of(slots, *place, key))
            .ok()?;
        let (place, _) = entry.remove();
        let slot = self.slots.get_mut(place as usize)?;
        slot.key = self.free.into();
        self.free = place;
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

fn is_of<T>(slots: &[Slot<T>], place: u32, key: u64) -> bool {
    slots
        .get(place as usize)
        .is_some_and(|slot| slot.key == key)
}

fn hash(key: u64) -> u64 {
    FxBuildHasher.hash_one(key)
}

fn hash_at<T>(slots: &[Slot<T>], place: u32) -> u64 {
    slots.get(place as usize).map_or(0, |slot| hash(slot.key))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::Register;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Insert(u64, u32),
        Remove(u64),
        RemoveAny,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..40_u64, any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            (0..40_u64).prop_map(Step::Remove),
            Just(Step::RemoveAny),
        ]
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_would(steps in vec(step(), 0..400)) {
            let mut register = Register::default();
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
                for key in 0..40 {
                    prop_assert_eq!(register.get(key), map.get(&key));
                }
            }
        }
    }
}
