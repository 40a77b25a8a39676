//! Lists threaded through arrays by entity number: no pointers, no allocation, constant time.

use core::num::NonZeroU16;

/// Index of an entity, stored off by one so that "none" costs nothing.
type Link = Option<NonZeroU16>;

fn link(index: usize) -> Link {
    u16::try_from(index + 1).ok().and_then(NonZeroU16::new)
}

fn index(link: Link) -> Option<usize> {
    link.map(|number| usize::from(number.get()) - 1)
}

#[derive(Clone, Copy, Debug)]
struct Node {
    previous: Link,
    next: Link,
}

/// The links of all entities. An entity is in at most one list at a time.
#[derive(Debug)]
pub(crate) struct Links<const ENTITIES: usize> {
    nodes: [Node; ENTITIES],
}

impl<const ENTITIES: usize> Links<ENTITIES> {
    pub(crate) const fn new() -> Self {
        const UNLINKED: Node = Node { previous: None, next: None };
        Self { nodes: [UNLINKED; ENTITIES] }
    }
}

/// A doubly linked list of entities.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    first: Link,
    last: Link,
}

impl List {
    pub(crate) const EMPTY: Self = Self { first: None, last: None };

    pub(crate) const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn first(&self) -> Option<usize> {
        index(self.first)
    }

    pub(crate) fn push_front<const N: usize>(&mut self, links: &mut Links<N>, entity: usize) {
        self.insert_before(links, entity, self.first());
    }

    pub(crate) fn push_back<const N: usize>(&mut self, links: &mut Links<N>, entity: usize) {
        self.insert_before(links, entity, None);
    }

    /// Inserts `entity` before `next`, or last for `None`.
    pub(crate) fn insert_before<const N: usize>(
        &mut self,
        links: &mut Links<N>,
        entity: usize,
        next: Option<usize>,
    ) {
        let next = next.and_then(link);
        let previous = match index(next) {
            Some(next) => links.nodes[next].previous,
            None => self.last,
        };
        links.nodes[entity] = Node { previous, next };
        self.join(links, previous, link(entity));
        self.join(links, link(entity), next);
    }

    pub(crate) fn remove<const N: usize>(&mut self, links: &mut Links<N>, entity: usize) {
        let Node { previous, next } = links.nodes[entity];
        self.join(links, previous, next);
    }

    /// Makes `next` follow `previous`; `None` stands for the respective end of the list.
    fn join<const N: usize>(&mut self, links: &mut Links<N>, previous: Link, next: Link) {
        match index(previous) {
            Some(previous) => links.nodes[previous].next = next,
            None => self.first = next,
        }
        match index(next) {
            Some(next) => links.nodes[next].previous = previous,
            None => self.last = previous,
        }
    }

    /// The entities in order.
    pub(crate) fn iter<const N: usize>(&self, links: &Links<N>) -> impl Iterator<Item = usize> {
        core::iter::successors(self.first(), |&entity| index(links.nodes[entity].next))
    }
}

/// Runnable entities of one core: a list per priority and a bitmap of the priorities in use, so
/// that the most urgent one is found in constant time.
#[derive(Debug)]
pub(crate) struct RunQueue {
    lists: [List; 256],
    occupied: [u64; 4],
    len: usize,
}

impl RunQueue {
    pub(crate) const fn new() -> Self {
        Self { lists: [List::EMPTY; 256], occupied: [0; 4], len: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Whether anything of exactly this priority is queued.
    pub(crate) fn has(&self, priority: u8) -> bool {
        !self.lists[usize::from(priority)].is_empty()
    }

    /// The most urgent priority that is queued.
    pub(crate) fn top(&self) -> Option<u8> {
        self.top_at_most(u8::MAX)
    }

    fn top_at_most(&self, limit: u8) -> Option<u8> {
        if self.len == 0 {
            return None;
        }
        let mut word = limit / 64;
        let mut bits = self.occupied[usize::from(word)] & u64::MAX >> (63 - limit % 64);
        loop {
            if let Some(bit) = bits.checked_ilog2() {
                // At most 63 + 64 * 3.
                return Some(word * 64 + bit as u8);
            }
            word = word.checked_sub(1)?;
            bits = self.occupied[usize::from(word)];
        }
    }

    pub(crate) fn push<const N: usize>(
        &mut self,
        links: &mut Links<N>,
        entity: usize,
        priority: u8,
        front: bool,
    ) {
        let list = &mut self.lists[usize::from(priority)];
        if front {
            list.push_front(links, entity);
        } else {
            list.push_back(links, entity);
        }
        self.occupied[usize::from(priority / 64)] |= 1 << (priority % 64);
        self.len += 1;
    }

    pub(crate) fn remove<const N: usize>(
        &mut self,
        links: &mut Links<N>,
        entity: usize,
        priority: u8,
    ) {
        let list = &mut self.lists[usize::from(priority)];
        list.remove(links, entity);
        if list.is_empty() {
            self.occupied[usize::from(priority / 64)] &= !(1 << (priority % 64));
        }
        self.len -= 1;
    }

    /// The entities from the most urgent on, in the order in which they would run.
    pub(crate) fn iter<const N: usize>(&self, links: &Links<N>) -> impl Iterator<Item = usize> {
        let priorities = core::iter::successors(self.top(), |&priority| {
            priority.checked_sub(1).and_then(|below| self.top_at_most(below))
        });
        priorities.flat_map(|priority| self.lists[usize::from(priority)].iter(links))
    }
}
