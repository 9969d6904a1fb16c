//! How many segments a process holds in memory at once, and the memory for them.
//!
//! Several pushes overlap, so that one is made durable while another is compressed; only the compression needs the
//! segment itself. Invariants: no more buffers are out at a time than there is room for; each comes back when it is
//! dropped, and is used again as it is: an allocator asked for the same 16 MiB by several threads in turn keeps as
//! much for each.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Room for some segments.
#[derive(Debug)]
pub(crate) struct Room {
    free: Mutex<Vec<Vec<u8>>>,
    given_back: Condvar,
}

/// Bytes in memory, in a room's buffer where there is a room.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    pub(crate) bytes: Vec<u8>,
    room: Option<&'a Room>,
}

impl Room {
    /// For at least one.
    pub(crate) fn new(segments: usize) -> Self {
        Room {
            free: Mutex::new(vec![Vec::new(); segments.max(1)]),
            given_back: Condvar::new(),
        }
    }

    /// Waits until there is room; an empty buffer.
    pub(crate) fn take(&self) -> Held<'_> {
        let mut free = self
            .given_back
            .wait_while(self.free(), |free| free.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let mut bytes = free.pop().unwrap_or_default();
        bytes.clear();
        Held {
            bytes,
            room: Some(self),
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held<'_> {
    /// Memory of its own.
    pub(crate) fn alone(bytes: Vec<u8>) -> Self {
        Held { bytes, room: None }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(room) = self.room {
            room.free().push(std::mem::take(&mut self.bytes));
            room.given_back.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn no_more_are_held_than_there_is_room_for_and_their_memory_is_used_again() {
        let (room, held, most) = (Room::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
        let places = Mutex::new(BTreeSet::new());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let mut taken = room.take();
                        assert!(taken.bytes.is_empty());
                        most.fetch_max(held.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        taken.bytes.resize(1 << 16, 7);
                        places.lock().unwrap().insert(taken.bytes.as_ptr() as usize);
                        std::thread::yield_now();
                        held.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!((1..=2).contains(&most.into_inner()));
        assert!((1..=2).contains(&places.into_inner().unwrap().len()));
        assert_eq!(room.free().len(), 2);
    }
}
