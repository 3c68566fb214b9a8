//! The table that travels beside the bytes.
//!
//! serde has no way to hand a context to the types it calls, so the table of the value that is encoded or decoded right
//! now is kept by thread; values within values (a type that encodes another for itself) have tables of their own.

use std::any::TypeId;
use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem;

/// One value that goes beside the bytes. Only this crate makes one, and only [`embark`] enters it into a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Passenger {
    /// The kind of thing that it is; see [`kind_of`].
    pub(crate) kind: Kind,
    /// The object's place, in the words of its type.
    pub(crate) words: [u64; 2],
}

/// 128 bits that tell a type from all others of this program: of the type's id the 64 bits that it gives to hashers, and
/// apart from it the type's name and shape. The same in every fork of one program image.
pub(crate) fn kind_of<T: 'static>() -> Kind {
    let id = TypeId::of::<T>();
    let known = KINDS.try_with(|kinds| kinds.iter().find_map(|known| known.get().filter(|(of, _)| *of == id)));
    if let Ok(Some((_, kind))) = known {
        return kind;
    }
    let kind = hashed_kind_of::<T>();
    // A thread that ends keeps nothing any more.
    let _kept = KINDS.try_with(|kinds| {
        let mut newer = Some((id, kind));
        kinds.iter().for_each(|known| newer = known.replace(newer));
    });
    kind
}

type Kind = [u64; 2];

thread_local! {
    /// The kinds that this thread asked for last: hashing one takes longer than all else that is done for a handle, and most jobs have handles of a type or two.
    static KINDS: [Cell<Option<(TypeId, Kind)>>; 4] = const { [const { Cell::new(None) }; 4] };
}

fn hashed_kind_of<T: 'static>() -> Kind {
    let mut id = DefaultHasher::new();
    TypeId::of::<T>().hash(&mut id);
    let mut name = DefaultHasher::new();
    (std::any::type_name::<T>(), size_of::<T>(), align_of::<T>()).hash(&mut name);
    [id.finish(), name.finish()]
}

/// Why a passenger was refused, if one was: the reason that is said to the user.
pub(super) type Refusals = Option<&'static str>;

#[derive(Default)]
struct State {
    table: Option<(TableUse, Vec<Passenger>)>,
    refusal: Refusals,
}

/// The use of a table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TableUse {
    /// A value is encoded.
    Boarding,
    /// A job's result is encoded.
    Returning,
    /// A value is decoded.
    Leaving,
}

thread_local! {
    static CURRENT: Cell<State> = const { Cell::new(State { table: None, refusal: None }) };
}

/// Looks at the current state. There is none while the thread ends.
fn with<R>(look: impl FnOnce(&mut State) -> R) -> Option<R> {
    CURRENT
        .try_with(|current| {
            let mut state = current.take();
            let found = look(&mut state);
            current.set(state);
            found
        })
        .ok()
}

/// Puts the former state back, on unwinding too.
struct Restore<'a> {
    former: State,
    /// The place that the table goes to that was current, cut to `len`.
    boarded: Option<&'a mut Vec<Passenger>>,
    len: usize,
}

impl Restore<'_> {
    fn end(&mut self) -> State {
        let former = mem::take(&mut self.former);
        with(|state| mem::replace(state, former)).unwrap_or_default()
    }
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        let ended = self.end();
        if let (Some(boarded), Some((_, mut table))) = (self.boarded.take(), ended.table) {
            table.truncate(self.len);
            *boarded = table;
        }
    }
}

fn enter<'a>(way: TableUse, table: Vec<Passenger>, boarded: Option<&'a mut Vec<Passenger>>) -> Restore<'a> {
    let len = table.len();
    let entered = State { table: Some((way, table)), refusal: None };
    let former = with(|state| mem::replace(state, entered)).unwrap_or_default();
    Restore { former, boarded, len }
}

/// Runs `encode` with `passengers` as the table, for this use. They are as before if it fails or unwinds.
pub(super) fn boarding<R, E>(
    way: TableUse,
    passengers: &mut Vec<Passenger>,
    encode: impl FnOnce() -> Result<R, E>,
) -> (Result<R, E>, Refusals) {
    let table = mem::take(passengers);
    let mut restore = enter(way, table, Some(passengers));
    let result = encode();
    let refusal = with(|state| {
        if let (Ok(_), Some((_, table))) = (&result, &state.table) {
            restore.len = table.len();
        }
        state.refusal
    });
    (result, refusal.flatten())
}

/// Runs `decode` with `passengers` as the table.
pub(super) fn leaving<R>(passengers: &[Passenger], decode: impl FnOnce() -> R) -> (R, Refusals) {
    let _restore = enter(TableUse::Leaving, passengers.to_vec(), None);
    let result = decode();
    (result, with(|state| state.refusal).flatten())
}

/// Enters a passenger into the table of the value that is being encoded, and says its number. `None` outside of
/// `encode`.
pub(crate) fn embark(passenger: Passenger) -> Option<u32> {
    enter_table(passenger, &[TableUse::Boarding, TableUse::Returning])
}

/// [`embark`] for what travels in the result of a job only, and not in a job that one job hands to a pool of its own.
pub(crate) fn embark_in_result(passenger: Passenger) -> Option<u32> {
    enter_table(passenger, &[TableUse::Returning])
}

fn enter_table(passenger: Passenger, ways: &[TableUse]) -> Option<u32> {
    with(|state| match &mut state.table {
        Some((way, table)) if ways.contains(way) => {
            let number = u32::try_from(table.len()).ok()?;
            table.push(passenger);
            Some(number)
        }
        _ => None,
    })?
}

/// The passenger of that number, in the table of the value that is being decoded. `None` outside of `decode`, and when there
/// is no such number. The same one may be asked for twice, by bytes that were made by hand.
pub(crate) fn disembark(number: u32) -> Option<Passenger> {
    with(|state| match &state.table {
        Some((TableUse::Leaving, table)) => table.get(number as usize).copied(),
        _ => None,
    })?
}

/// Notes for the error of this `encode` or `decode` why a value refused, and gives it back.
pub(crate) fn refuse(why: &'static str) -> &'static str {
    let _noted = with(|state| state.refusal = Some(why));
    why
}
