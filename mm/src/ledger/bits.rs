//! A set of small integers as a tree of bitmaps, in memory that the caller provides.

/// Bits in one word of the tree.
const WORD_BITS: usize = 32;

/// A set of the integers `0..len`: level 0 holds one bit per member, each level above one bit per
/// non-zero word of the level below, up to a single word.
///
/// Inserting, removing and finding the smallest member visit one word per level: at most six levels
/// for 2^30 members.
pub(super) struct BitTree<'w> {
    words: &'w mut [u32],
    len: usize,
}

impl<'w> BitTree<'w> {
    /// Words that a tree for `len` members needs.
    pub(super) const fn words_for(len: usize) -> usize {
        let mut level = len.div_ceil(WORD_BITS);
        let mut total = level;
        while level > 1 {
            level = level.div_ceil(WORD_BITS);
            total += level;
        }
        total
    }

    /// Views `words`, which hold exactly one tree for `len` members. All-zero words are the empty set.
    pub(super) const fn new(words: &'w mut [u32], len: usize) -> Self {
        Self { words, len }
    }

    /// Adds `member`; nothing happens when it is out of range.
    pub(super) fn insert(&mut self, member: usize) {
        self.walk_up(member, |word, bit| {
            *word |= bit;
            true
        });
    }

    /// Removes `member`; nothing happens when it is out of range.
    pub(super) fn remove(&mut self, member: usize) {
        self.walk_up(member, |word, bit| {
            *word &= !bit;
            *word == 0
        });
    }

    /// The smallest member.
    pub(super) fn first(&self) -> Option<usize> {
        // Level bounds from the leaves up: (offset of the level, words in it).
        let mut bounds = [(0, 0); 7];
        let mut levels = 0;
        let mut start = 0;
        let mut count = self.len.div_ceil(WORD_BITS);
        loop {
            *bounds.get_mut(levels)? = (start, count);
            levels += 1;
            if count <= 1 {
                break;
            }
            start += count;
            count = count.div_ceil(WORD_BITS);
        }
        let mut index = 0;
        for &(offset, _) in bounds.get(..levels)?.iter().rev() {
            let word = *self.words.get(offset + index)?;
            if word == 0 {
                return None;
            }
            index = index * WORD_BITS + word.trailing_zeros() as usize;
        }
        Some(index)
    }

    /// Applies `change` to the member's bit on each level while it asks to go on upwards.
    fn walk_up(&mut self, member: usize, mut change: impl FnMut(&mut u32, u32) -> bool) {
        if member >= self.len {
            return;
        }
        let mut index = member;
        let mut offset = 0;
        let mut count = self.len.div_ceil(WORD_BITS);
        loop {
            let Some(word) = self.words.get_mut(offset + index / WORD_BITS) else { return };
            let go_on = change(word, 1 << (index % WORD_BITS));
            if !go_on || count <= 1 {
                return;
            }
            index /= WORD_BITS;
            offset += count;
            count = count.div_ceil(WORD_BITS);
        }
    }
}
