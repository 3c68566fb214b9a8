//! Jobs and results lie in shared memory: one after the other, each with its side table.
//!
//! ```text
//! item: bytes u32 | passengers u24, status u8 | the bytes, padded to 8 | passengers, 32 bytes each
//! ```

use crate::wire::Passenger;

/// The way a job ended: the status of its item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobStatus {
    /// A job, or a result.
    Value = 0,
    /// The job panicked: message and place.
    Panicked = 1,
    /// The worker could not read the job, or not encode the result: why.
    Unreadable = 2,
    /// The result found no room: why.
    NoRoom = 3,
}

const PASSENGER: usize = size_of::<Passenger>();
const PASSENGERS_MAX: usize = 1 << 24;

/// An item, where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item<'a> {
    pub(crate) status: JobStatus,
    pub(crate) bytes: &'a [u8],
    passengers: &'a [u8],
}

impl Item<'_> {
    /// The bytes it takes.
    pub(crate) fn size(&self) -> usize {
        8 + self.bytes.len().next_multiple_of(8) + self.passengers.len()
    }

    /// Appends the same item to a row.
    pub(crate) fn append_to(&self, row: &mut Vec<u8>) {
        let start = begin(row);
        row.extend_from_slice(self.bytes);
        let _as_it_was = end(row, start, self.status, &self.passengers());
    }

    /// The side table.
    pub(crate) fn passengers(&self) -> Vec<Passenger> {
        let (all, _) = self.passengers.as_chunks::<PASSENGER>();
        all.iter().map(passenger).collect()
    }
}

fn passenger(bytes: &[u8; PASSENGER]) -> Passenger {
    let (words, _) = bytes.as_chunks::<8>();
    let word = |at: usize| words.get(at).map_or(0, |word| u64::from_ne_bytes(*word));
    Passenger { kind: [word(0), word(1)], words: [word(2), word(3)] }
}

/// Makes room for the head of an item at the end of `row`; its bytes are appended next.
pub(crate) fn begin(row: &mut Vec<u8>) -> usize {
    let start = row.len();
    row.extend_from_slice(&[0; 8]);
    start
}

/// Ends the item that [`begin`] began; false, and the item is gone, when a part is too large for its field.
pub(crate) fn end(row: &mut Vec<u8>, start: usize, status: JobStatus, passengers: &[Passenger]) -> bool {
    let length = u32::try_from(row.len() - start - 8).ok().filter(|_| passengers.len() < PASSENGERS_MAX);
    let Some((length, head)) = length.zip(row.get_mut(start..).and_then(<[u8]>::first_chunk_mut::<8>)) else {
        row.truncate(start);
        return false;
    };
    let second = (passengers.len() as u32) << 8 | status as u32;
    *head = (u64::from(second) << 32 | u64::from(length)).to_le_bytes();
    row.resize(row.len().next_multiple_of(8), 0);
    for passenger in passengers {
        for word in passenger.kind.iter().chain(&passenger.words) {
            row.extend_from_slice(&word.to_ne_bytes());
        }
    }
    true
}

/// The first item of `bytes`, and what is behind it.
pub(crate) fn split(bytes: &[u8]) -> Option<(Item<'_>, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    let head = u64::from_le_bytes(*head);
    let (length, second) = (head as u32 as usize, (head >> 32) as u32);
    let status = match second & 0xff {
        0 => JobStatus::Value,
        1 => JobStatus::Panicked,
        2 => JobStatus::Unreadable,
        3 => JobStatus::NoRoom,
        _ => return None,
    };
    let (body, rest) = rest.split_at_checked(length.next_multiple_of(8))?;
    let (passengers, rest) = rest.split_at_checked((second >> 8) as usize * PASSENGER)?;
    Some((Item { status, bytes: body.get(..length)?, passengers }, rest))
}

/// The items of `bytes`, in order.
pub(crate) fn items(mut bytes: &[u8]) -> impl Iterator<Item = Item<'_>> {
    std::iter::from_fn(move || {
        let (item, rest) = split(bytes)?;
        bytes = rest;
        Some(item)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_read_back_in_order_with_their_passengers() {
        let passengers = [Passenger { kind: [1, 2], words: [3, 4] }, Passenger { kind: [5, 6], words: [7, 8] }];
        let mut row = Vec::new();
        for length in 0..20usize {
            let body: Vec<u8> = (0..length as u8).collect();
            let some = passengers.get(..length % 3).expect("two");
            let start = begin(&mut row);
            row.extend_from_slice(&body);
            assert!(end(&mut row, start, JobStatus::Value, some));
        }
        let read: Vec<_> = items(&row).collect();
        assert_eq!(read.len(), 20);
        for (length, item) in read.iter().enumerate() {
            assert_eq!(item.bytes.len(), length);
            let words: Vec<_> = item.passengers().iter().map(|passenger| passenger.words).collect();
            assert_eq!(words, passengers.iter().take(length % 3).map(|p| p.words).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_row_that_is_cut_ends_early() {
        let mut row = Vec::new();
        let start = begin(&mut row);
        row.extend_from_slice(b"what");
        assert!(end(&mut row, start, JobStatus::Panicked, &[]));
        for end in 0..row.len() {
            assert!(split(row.get(..end).expect("shorter")).is_none());
        }
        assert_eq!(split(&row).expect("whole").0.status, JobStatus::Panicked);
    }
}
