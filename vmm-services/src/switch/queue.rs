//! The frames that wait for one port, packed into a ring of bytes.

/// Bytes of the length in front of each frame.
const LENGTH: usize = size_of::<u16>();

/// A bounded first-in first-out queue of frames in memory of the caller's.
#[derive(Debug)]
pub(super) struct FrameQueue<S> {
    storage: S,
    /// Bytes of the ring.
    capacity: usize,
    /// Index of the oldest byte.
    head: usize,
    /// Bytes in use, lengths included.
    used: usize,
    frames: usize,
    max_frames: usize,
}

impl<S: AsMut<[u8]>> FrameQueue<S> {
    /// An empty queue of at most `max_frames` frames.
    pub(super) fn new(mut storage: S, max_frames: usize) -> Self {
        let capacity = storage.as_mut().len();
        Self { storage, capacity, head: 0, used: 0, frames: 0, max_frames }
    }

    pub(super) fn into_storage(self) -> S {
        self.storage
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames == 0
    }

    pub(super) fn clear(&mut self) {
        (self.head, self.used, self.frames) = (0, 0, 0);
    }

    /// Appends a frame; `false` if it does not fit, and then nothing has changed.
    pub(super) fn push(&mut self, frame: &[u8]) -> bool {
        let Ok(length) = u16::try_from(frame.len()) else { return false };
        let needed = LENGTH + frame.len();
        if self.frames >= self.max_frames || needed > self.capacity - self.used {
            return false;
        }
        let tail = self.head + self.used;
        self.copy_in(tail, &length.to_le_bytes());
        self.copy_in(tail + LENGTH, frame);
        self.used += needed;
        self.frames += 1;
        true
    }

    /// Takes the oldest frame, cut to what `into` holds, and returns how many bytes that are.
    pub(super) fn pop(&mut self, into: &mut [u8]) -> Option<usize> {
        if self.frames == 0 {
            return None;
        }
        let mut length = [0; LENGTH];
        self.copy_out(self.head, &mut length);
        let length = usize::from(u16::from_le_bytes(length));
        let copied = length.min(into.len());
        if let Some(into) = into.get_mut(..copied) {
            self.copy_out(self.head + LENGTH, into);
        }
        self.head = (self.head + LENGTH + length) % self.capacity.max(1);
        self.used -= LENGTH + length;
        self.frames -= 1;
        Some(copied)
    }

    /// Writes `bytes` at `position`, modulo the size of the ring.
    fn copy_in(&mut self, position: usize, bytes: &[u8]) {
        let ring = self.storage.as_mut();
        let start = position % ring.len().max(1);
        let (first, second) = bytes.split_at(bytes.len().min(ring.len() - start));
        let places = [(start, first), (0, second)];
        for (at, piece) in places {
            if let Some(place) = ring.get_mut(at..at + piece.len()) {
                place.copy_from_slice(piece);
            }
        }
    }

    /// Reads `bytes.len()` bytes at `position`, modulo the size of the ring.
    fn copy_out(&mut self, position: usize, bytes: &mut [u8]) {
        let ring = self.storage.as_mut();
        let start = position % ring.len().max(1);
        let (first, second) = bytes.split_at_mut(bytes.len().min(ring.len() - start));
        for (at, piece) in [(start, first), (0, second)] {
            if let Some(place) = ring.get(at..at + piece.len()) {
                piece.copy_from_slice(place);
            }
        }
    }
}
