//! The only door to the interpreter: its symbols, which the process that loads this object has, behind safe functions.
//!
//! # Safety
//! Two facts carry every block here. The thread holds the GIL of the main interpreter: `ctypes.PyDLL` keeps it held
//! over each call, and each exported function makes the [`Gil`] that every function here asks for. An [`Object`]
//! points to a live object: it comes from a caller that owns a reference, or from a container that does, and the walk
//! keeps none over the end of a call that was not made immortal or given a reference first.
#![expect(unsafe_code, reason = "the interpreter's objects are read and written through pointers")]

use std::ffi::{c_char, c_int, c_ulong, c_void};
use std::ptr::{self, NonNull};

use crate::layout::{self, Layout, flag};

/// The C type of all objects. Only its address is used.
#[repr(C)]
pub struct PyObject {
    _opaque: [u8; 0],
}

type Visit = extern "C" fn(*mut PyObject, *mut c_void) -> c_int;

/// A type's `tp_traverse`.
pub type Traverse = unsafe extern "C" fn(*mut PyObject, Visit, *mut c_void) -> c_int;

/// A type's `tp_hash`.
pub type Hash = unsafe extern "C" fn(*mut PyObject) -> isize;

// SAFETY: these are the signatures in CPython's headers, unchanged from 3.12 to 3.15.
unsafe extern "C" {
    static Py_Version: c_ulong;
    static PyModule_Type: PyObject;
    static PyFunction_Type: PyObject;
    static PyCFunction_Type: PyObject;
    static PyCode_Type: PyObject;
    static PyFrame_Type: PyObject;
    static PyGen_Type: PyObject;
    static PyCoro_Type: PyObject;
    static PyAsyncGen_Type: PyObject;
    static PyUnicode_Type: PyObject;
    static PyBytes_Type: PyObject;
    static PyTuple_Type: PyObject;
    static PyFrozenSet_Type: PyObject;
    static PySet_Type: PyObject;
    static PyDict_Type: PyObject;
    static PyByteArray_Type: PyObject;
    static PyFloat_Type: PyObject;
    static PyLong_Type: PyObject;
    static PyBool_Type: PyObject;
    static PyComplex_Type: PyObject;
    static _Py_NoneStruct: PyObject;
    fn PyType_GetFlags(of: *mut PyObject) -> c_ulong;
    fn PyType_GetSlot(of: *mut PyObject, slot: c_int) -> *mut c_void;
    fn PyType_IsSubtype(of: *mut PyObject, base: *mut PyObject) -> c_int;
    fn PyDict_Next(of: *mut PyObject, at: *mut isize, key: *mut *mut PyObject, value: *mut *mut PyObject) -> c_int;
    fn PyErr_Clear();
    fn PyObject_IS_GC(of: *mut PyObject) -> c_int;
    fn PyObject_GenericGetDict(of: *mut PyObject, context: *mut c_void) -> *mut PyObject;
    fn PyObject_GetAttrString(of: *mut PyObject, name: *const c_char) -> *mut PyObject;
    fn PyObject_CallOneArg(callable: *mut PyObject, argument: *mut PyObject) -> *mut PyObject;
    fn PyLong_AsSsize_t(of: *mut PyObject) -> isize;
    fn PyTuple_GetItem(of: *mut PyObject, at: isize) -> *mut PyObject;
    fn Py_IncRef(of: *mut PyObject);
    fn Py_DecRef(of: *mut PyObject);
    fn PyInterpreterState_Get() -> *mut c_void;
    fn PyInterpreterState_Main() -> *mut c_void;
}

/// Shows that the GIL is held.
#[derive(Clone, Copy)]
pub struct Gil(());

/// A live object.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Object(NonNull<PyObject>);

/// A static of the interpreter, whose address is taken and whose content is not read.
fn named(of: *const PyObject) -> Object {
    Object(NonNull::new(of.cast_mut()).expect("a static has an address"))
}

/// Types whose instances lead from data into the program, each with its place in the Python side's list of reasons.
pub fn types_of_programs() -> [(Object, u8); 8] {
    [
        (named(&raw const PyModule_Type), 1),
        (named(&raw const PyFunction_Type), 2),
        (named(&raw const PyCFunction_Type), 2),
        (named(&raw const PyCode_Type), 3),
        (named(&raw const PyFrame_Type), 3),
        (named(&raw const PyGen_Type), 4),
        (named(&raw const PyCoro_Type), 4),
        (named(&raw const PyAsyncGen_Type), 4),
    ]
}

/// The built-in types that the walk treats in ways of their own.
pub struct Builtins {
    /// `str`
    pub str: Object,
    /// `bytes`
    pub bytes: Object,
    /// `tuple`
    pub tuple: Object,
    /// `frozenset`
    pub frozenset: Object,
    /// `dict`
    pub dict: Object,
    /// Other containers that can tell their size.
    pub sized: [Object; 4],
    /// Numbers and None: they hold nothing, and hashing them runs no code of users.
    pub plain: [Object; 5],
}

impl Builtins {
    /// Finds them in the interpreter.
    pub fn find() -> Self {
        Self {
            str: named(&raw const PyUnicode_Type),
            bytes: named(&raw const PyBytes_Type),
            tuple: named(&raw const PyTuple_Type),
            frozenset: named(&raw const PyFrozenSet_Type),
            dict: named(&raw const PyDict_Type),
            sized: [
                named(&raw const PyDict_Type),
                named(&raw const PySet_Type),
                named(&raw const PyFrozenSet_Type),
                named(&raw const PyByteArray_Type),
            ],
            plain: [
                named(&raw const PyLong_Type),
                named(&raw const PyBool_Type),
                named(&raw const PyFloat_Type),
                named(&raw const PyComplex_Type),
                named(&raw const _Py_NoneStruct).type_of(),
            ],
        }
    }
}

impl Gil {
    /// # Safety
    /// The calling thread holds the GIL for as long as the value is used.
    pub const unsafe fn assume_held() -> Self {
        Self(())
    }

    /// `Py_Version`: major, minor, micro, level and serial in bytes.
    pub fn version(self) -> u64 {
        // SAFETY: the interpreter sets this constant when it is built.
        unsafe { Py_Version }
    }

    /// Tells whether this is the interpreter that ends with the process.
    pub fn is_main_interpreter(self) -> bool {
        // SAFETY: the GIL is held, so there is a current interpreter.
        let current = unsafe { PyInterpreterState_Get() };
        // SAFETY: this reads a pointer that is set before Python code runs.
        current == unsafe { PyInterpreterState_Main() }
    }

    /// Hands each object that the collector's traverse function of `of` visits to `found`.
    pub fn traverse<F: FnMut(Object)>(self, of: Object, traverse: Traverse, found: &mut F) {
        extern "C" fn visit<F: FnMut(Object)>(object: *mut PyObject, found: *mut c_void) -> c_int {
            if let Some(object) = NonNull::new(object) {
                // SAFETY: `traverse` below hands on the closure it borrowed for the length of the call.
                let found = unsafe { &mut *found.cast::<F>() };
                found(Object(object));
            }
            0
        }
        // SAFETY: it is the slot of the object's own type, and `PyObject_IS_GC` said that it may be asked.
        unsafe { traverse(of.pointer(), visit::<F>, ptr::from_mut(found).cast()) };
    }

    /// Every key and value of a dict.
    pub fn items(self, dict: Object, found: &mut impl FnMut(Object)) {
        let (mut at, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
        loop {
            // SAFETY: it is a dict, and nothing changes it while the GIL is held and no Python code runs.
            let more = unsafe { PyDict_Next(dict.pointer(), &raw mut at, &raw mut key, &raw mut value) };
            if more == 0 {
                return;
            }
            [key, value].into_iter().filter_map(NonNull::new).for_each(|object| found(Object(object)));
        }
    }

    /// One item of a tuple.
    pub fn tuple_item(self, tuple: Object, at: usize) -> Option<Object> {
        // SAFETY: it is a tuple; the function checks the bound, and borrows the item from the tuple.
        let item = unsafe { PyTuple_GetItem(tuple.pointer(), at as isize) };
        let item = NonNull::new(item).map(Object);
        if item.is_none() {
            self.clear_error();
        }
        item
    }

    /// Lets the hash be computed and kept. The function must be the hash function of a built-in type, for which no Python code
    /// runs.
    pub fn hash(self, of: Object, hash: Hash) {
        // SAFETY: it is the slot of the object's own type.
        if unsafe { hash(of.pointer()) } == -1 {
            self.clear_error();
        }
    }

    /// The instance's dict, made if there is none yet. It stays alive as long as the instance.
    pub fn instance_dict(self, of: Object) -> Option<Object> {
        // SAFETY: the object is live; the function refuses types that have no dict.
        let dict = NonNull::new(unsafe { PyObject_GenericGetDict(of.pointer(), ptr::null_mut()) }).map(Object);
        match dict {
            // The instance owns another reference.
            Some(dict) => self.release(dict),
            None => self.clear_error(),
        }
        dict
    }

    /// `type.__sizeof__`, a method written in C, with a reference for the caller.
    pub fn size_method(self, of: Object) -> Option<Object> {
        // SAFETY: a built-in type is live, and the name ends with a zero.
        let method = unsafe { PyObject_GetAttrString(of.pointer(), c"__sizeof__".as_ptr()) };
        let method = NonNull::new(method).map(Object);
        if method.is_none() {
            self.clear_error();
        }
        method
    }

    /// The size that such a method says of an object, bytes.
    pub fn call_for_size(self, method: Object, of: Object) -> Option<usize> {
        // SAFETY: both are live.
        let answer = NonNull::new(unsafe { PyObject_CallOneArg(method.pointer(), of.pointer()) }).map(Object);
        let Some(answer) = answer else {
            self.clear_error();
            return None;
        };
        // SAFETY: the answer is ours; what is no integer gives -1.
        let bytes = unsafe { PyLong_AsSsize_t(answer.pointer()) };
        self.release(answer);
        usize::try_from(bytes).ok()
    }

    /// Takes a reference.
    pub fn retain(self, of: Object) {
        // SAFETY: the object is live.
        unsafe { Py_IncRef(of.pointer()) };
    }

    /// Gives a reference back.
    pub fn release(self, of: Object) {
        // SAFETY: the caller has a reference.
        unsafe { Py_DecRef(of.pointer()) };
    }

    fn clear_error(self) {
        // SAFETY: the GIL is held.
        unsafe { PyErr_Clear() };
    }
}

impl Object {
    /// # Safety
    /// The pointer is null or leads to an object that stays alive while the value is used.
    pub unsafe fn new(pointer: *mut PyObject) -> Option<Self> {
        NonNull::new(pointer).map(Self)
    }

    /// The address, which `id()` gives in Python.
    pub const fn pointer(self) -> *mut PyObject {
        self.0.as_ptr()
    }

    /// Reads a field.
    fn field<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the offset is one of `layout`, for an object of the type that has such a field.
        let at = unsafe { self.pointer().byte_add(offset) };
        // SAFETY: fields of objects are aligned and initialised.
        unsafe { at.cast::<T>().read() }
    }

    /// The first word: the count of references, and flags.
    pub fn word(self) -> u64 {
        self.field(0)
    }

    /// Makes the object immortal.
    pub fn make_immortal(self, layout: Layout, _: Gil) {
        let word = layout.immortal(self.word());
        // SAFETY: the word is the object's own, and only holders of the GIL write it.
        unsafe { self.pointer().cast::<u64>().write(word) };
    }

    /// The object's type.
    pub fn type_of(self) -> Self {
        Self(self.field(layout::TYPE))
    }

    /// The memory at an address that a live object has in a field of its own; nothing at 0. Not an object of Python's: only its fields are read.
    pub fn at(address: usize) -> Option<Self> {
        NonNull::new(ptr::with_exposed_provenance_mut(address)).map(Self)
    }

    /// A field that is an address or a number.
    pub fn pointer_field(self, offset: usize) -> usize {
        self.field(offset)
    }

    /// The memory that a field leads to, see [`Object::at`].
    pub fn object_field(self, offset: usize) -> Option<Self> {
        Self::at(self.field(offset))
    }

    /// One byte.
    pub fn byte(self, offset: usize) -> u8 {
        self.field(offset)
    }

    /// One byte before it.
    pub fn byte_before(self, bytes: usize) -> u8 {
        // SAFETY: values of instances have a prefix, whose last byte this is.
        let at = unsafe { self.pointer().byte_sub(bytes) };
        // SAFETY: it is initialised.
        unsafe { at.cast::<u8>().read() }
    }

    /// The word before it, where instances have what is managed.
    pub fn word_before(self, bytes: usize) -> u64 {
        // SAFETY: types with such a flag allocate 32 bytes before each instance.
        let at = unsafe { self.pointer().byte_sub(bytes) };
        // SAFETY: they are aligned and initialised.
        unsafe { at.cast::<u64>().read() }
    }

    /// The number of items; only for objects of variable size.
    pub fn items(self) -> usize {
        self.field::<isize>(layout::ITEMS).unsigned_abs()
    }

    /// The pointers for which a list has room.
    pub fn list_room(self) -> usize {
        self.field(layout::LIST_ROOM)
    }

    /// The bits that say how a str is stored.
    pub fn str_state(self) -> u32 {
        self.field(layout::STR_STATE)
    }

    /// Tells whether a str, bytes or, from 3.14 on, tuple has kept its hash.
    pub fn is_hashed(self) -> bool {
        self.kept_hash() != -1
    }

    /// See [`Object::is_hashed`].
    pub fn kept_hash(self) -> isize {
        self.field(layout::KEPT_HASH)
    }

    /// A type's size of instances and of one item, bytes.
    pub fn sizes(self) -> (usize, usize) {
        (self.field(layout::BASIC_SIZE), self.field(layout::ITEM_SIZE))
    }

    /// A type's flags.
    pub fn flags(self) -> u64 {
        // SAFETY: the types of live objects are live.
        unsafe { PyType_GetFlags(self.pointer()) }
    }

    /// Tells whether a type is `base` or below it.
    pub fn is_subtype(self, base: Self) -> bool {
        // SAFETY: both are live types.
        unsafe { PyType_IsSubtype(self.pointer(), base.pointer()) != 0 }
    }

    /// Tells whether a type has this slot.
    pub fn has_slot(self, slot: i32) -> bool {
        !self.slot(slot).is_null()
    }

    fn slot(self, slot: i32) -> *mut c_void {
        // SAFETY: the type is live, and the number is one of the stable ABI's.
        unsafe { PyType_GetSlot(self.pointer(), slot) }
    }

    /// A type's function that shows the collector what an instance holds.
    pub fn traverse_slot(self) -> Option<Traverse> {
        let slot = self.slot(layout::slot::TRAVERSE);
        // SAFETY: that slot holds null or a function of this type.
        unsafe { std::mem::transmute::<*mut c_void, Option<Traverse>>(slot) }
    }

    /// A type's function that hashes instances.
    pub fn hash_slot(self) -> Option<Hash> {
        let slot = self.slot(layout::slot::HASH);
        // SAFETY: that slot holds null or a function of this type.
        unsafe { std::mem::transmute::<*mut c_void, Option<Hash>>(slot) }
    }

    /// Tells whether the collector knows this object: static types have the flag and must not be traversed.
    pub fn is_collected(self, type_flags: u64) -> bool {
        // SAFETY: the object is live.
        type_flags & flag::HAVE_GC != 0 && unsafe { PyObject_IS_GC(self.pointer()) != 0 }
    }
}
