//! A sum for each group of connections. Nothing is allocated for an event, only for a group that is new.

use std::{hash::BuildHasher as _, sync::Arc};

use hashbrown::{
    DefaultHashBuilder,
    hash_table::{Entry, HashTable},
};
use indexmap::{IndexMap, map};

use super::{
    key::{By, Key},
    table::{Cell, Grouped, Sum},
};

/// Where the sum of a group is kept. Good until it is released, also across intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u32);

impl Place {
    /// The sum of all groups that were too many.
    const BEYOND: Self = Self(u32::MAX);
}

#[derive(Debug)]
struct Slot<A> {
    key: Key,
    cgroup: Option<Arc<str>>,
    sum: A,
    holders: u32,
}

/// A sum for each group, for a limited number of groups; those that come later are summed up together.
#[derive(Debug)]
pub struct Groups<A> {
    /// Where each key has its slot. The key stands there only: with many groups, to look at it is to wait for memory.
    index: HashTable<u32>,
    /// With a seed: who connects to us, and may choose addresses, must not choose their hashes.
    hasher: DefaultHashBuilder,
    slots: Vec<Slot<A>>,
    free: Vec<u32>,
    beyond: A,
    limit: usize,
}

/// What is summed up during an interval.
pub trait Interval: Sum {
    /// Gives away what the interval has brought, if it has brought anything, and begins the next.
    fn end(&mut self) -> Option<Self>;
}

impl<A: Interval> Groups<A> {
    /// For at most so many groups.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            slots: Vec::new(),
            free: Vec::new(),
            beyond: A::default(),
            limit: limit.min(Place::BEYOND.0 as usize),
        }
    }

    /// The place of a group.
    pub fn place(&mut self, key: Key, cgroup: Option<&Arc<str>>) -> Place {
        let Self {
            index,
            hasher,
            slots,
            free,
            limit,
            ..
        } = self;
        let full = index.len() >= *limit;
        let is_its = |place: &u32| {
            slots
                .get(*place as usize)
                .is_some_and(|slot| slot.key == key)
        };
        let hash_at = |place: &u32| {
            slots
                .get(*place as usize)
                .map_or(0, |slot| hasher.hash_one(slot.key))
        };
        match index.entry(hasher.hash_one(key), is_its, hash_at) {
            Entry::Occupied(entry) => {
                let place = *entry.get();
                if let Some(slot) = slots.get_mut(place as usize)
                    && slot.cgroup.is_none()
                {
                    slot.cgroup = cgroup.cloned();
                }
                Place(place)
            }
            Entry::Vacant(_) if full => Place::BEYOND,
            Entry::Vacant(entry) => {
                let slot = Slot {
                    key,
                    cgroup: cgroup.cloned(),
                    sum: A::default(),
                    holders: 0,
                };
                let place = if let Some(place) = free.pop() {
                    slots[place as usize] = slot;
                    place
                } else {
                    let Ok(place) = u32::try_from(slots.len()) else {
                        return Place::BEYOND;
                    };
                    slots.push(slot);
                    place
                };
                entry.insert(place);
                Place(place)
            }
        }
    }

    /// What a group has in common; `None` if it is one of those that were too many.
    pub fn key(&self, place: Place) -> Option<Key> {
        self.slots.get(place.0 as usize).map(|slot| slot.key)
    }

    /// The sum of a group.
    pub fn sum(&mut self, place: Place) -> &mut A {
        match self.slots.get_mut(place.0 as usize) {
            Some(slot) => &mut slot.sum,
            None => &mut self.beyond,
        }
    }

    /// Every group there is, but for those that were too many.
    pub fn each(&mut self, look: impl FnMut(&mut A)) {
        self.slots
            .iter_mut()
            .map(|slot| &mut slot.sum)
            .for_each(look);
    }

    /// The place stays this group's until it is released as often.
    pub fn hold(&mut self, place: Place) {
        if let Some(slot) = self.slots.get_mut(place.0 as usize) {
            slot.holders += 1;
        }
    }

    /// See [`Groups::hold`].
    pub fn release(&mut self, place: Place) {
        if let Some(slot) = self.slots.get_mut(place.0 as usize) {
            slot.holders = slot.holders.saturating_sub(1);
        }
    }

    /// What the interval has brought. Groups that it brought nothing, and that nobody holds, are forgotten.
    pub fn end(&mut self, by: &By) -> Grouped<A> {
        let mut labelled: IndexMap<Vec<Cell>, A> = IndexMap::default();
        for (place, slot) in (0..).zip(&mut self.slots) {
            match slot.sum.end() {
                // Several cgroups may be one container, or have had one path after the other.
                Some(sum) => match labelled.entry(by.label(&slot.key, slot.cgroup.as_ref())) {
                    map::Entry::Occupied(mut entry) => entry.get_mut().add(&sum),
                    map::Entry::Vacant(entry) => {
                        entry.insert(sum);
                    }
                },
                None if slot.holders == 0 => {
                    let own = |other: &u32| *other == place;
                    // It is not there if the slot is free already.
                    let hash = self.hasher.hash_one(slot.key);
                    if let Ok(entry) = self.index.find_entry(hash, own) {
                        entry.remove();
                        slot.cgroup = None;
                        self.free.push(place);
                    }
                }
                None => {}
            }
        }
        Grouped {
            keys: by.columns().len(),
            groups: labelled.into_iter().collect(),
            beyond: self.beyond.end(),
        }
    }
}
