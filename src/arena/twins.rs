//! A macro that defines types and their twins in an arena.

/// Defines types together with their *twins*: types of the same shape whose fields are the [twins](crate::arena::CopyIn) of
/// theirs, and so may lie in an arena. A value is copied by [`ArenaRef::copy_in`](crate::arena::ArenaRef::copy_in), and its twin is
/// [`Contained`](crate::arena::Contained).
///
/// ```
/// use cowbell::arena::Arena;
/// use std::collections::HashMap;
///
/// cowbell::twin! {
///     #[derive(Clone, Debug, serde::Deserialize)]
///     pub struct Package as #[derive(Debug)] FrozenPackage {
///         pub name: String,
///         #[serde(default)]
///         pub versions: Vec<Version>,
///         pub kind: Kind,
///     }
///
///     #[derive(Clone, Debug, serde::Deserialize)]
///     pub struct Version as #[derive(Debug)] FrozenVersion(u32, u32);
///
///     #[derive(Clone, Debug, serde::Deserialize)]
///     pub enum Kind as #[derive(Debug)] FrozenKind {
///         Library,
///         Plugin { of: Box<Package> },
///         Other(String, Option<u64>),
///     }
/// }
///
/// let package = Package { name: "log".to_owned(), versions: vec![Version(0, 4)], kind: Kind::Library };
/// let plugin = Kind::Plugin { of: Box::new(package.clone()) };
/// let plugin = Package { name: "log-json".to_owned(), versions: Vec::new(), kind: plugin };
/// let all: HashMap<String, Package> = [package, plugin].map(|package| (package.name.clone(), package)).into();
///
/// let arena = Arena::builder("packages").build()?;
/// let all = arena.copy_in(&all)?;
/// let all = arena.freeze(all)?;
/// let FrozenKind::Plugin { of } = &all["log-json"].kind else { unreachable!() };
/// assert_eq!((&*of.name, of.versions[0].1), ("log", 4));
/// # Ok::<(), cowbell::Error>(())
/// ```
///
/// Attributes before `struct` or `enum`, and those of fields, are the type's alone; the twin's stand behind `as`. Twins are as visible as their types, and so are their fields. The types have no
/// generic parameters; for those the trait is implemented by hand.
///
/// A field that has no twin is refused:
///
/// ```compile_fail,E0277
/// cowbell::twin! {
///     struct Shop as FrozenShop { open: std::sync::Mutex<bool> }
/// }
/// ```
#[macro_export]
macro_rules! twin {
    () => {};
    ($(#[$meta:meta])* $vis:vis struct $name:ident as $(#[$twin_meta:meta])* $twin:ident {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident : $type:ty),* $(,)?
    } $($rest:tt)*) => {
        $(#[$meta])* $vis struct $name {
            $($(#[$field_meta])* $field_vis $field: $type),*
        }
        $crate::contained! {
            $(#[$twin_meta])*
            #[doc = ::core::concat!("[`", ::core::stringify!($name), "`] in an arena.")]
            $vis struct $twin {
                $(
                    #[doc = ::core::concat!("The twin of `", ::core::stringify!($field), "`.")]
                    $field_vis $field: <$type as $crate::arena::CopyIn>::Twin
                ),*
            }
        }
        $crate::__twin! { [$name $twin] [] { [Self] [$twin] { $($field)* } } }
        $crate::twin! { $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis struct $name:ident as $(#[$twin_meta:meta])* $twin:ident (
        $($(#[$field_meta:meta])* $field_vis:vis $type:ty),* $(,)?
    ); $($rest:tt)*) => {
        $(#[$meta])* $vis struct $name (
            $($(#[$field_meta])* $field_vis $type),*
        );
        $crate::contained! {
            $(#[$twin_meta])*
            #[doc = ::core::concat!("[`", ::core::stringify!($name), "`] in an arena.")]
            $vis struct $twin (
                $(
                    #[doc = "The twin of the field in this place."]
                    $field_vis <$type as $crate::arena::CopyIn>::Twin
                ),*
            );
        }
        $crate::__twin! { [$name $twin] [] { [Self] [$twin] ( $([$type])* ) } }
        $crate::twin! { $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis struct $name:ident as $(#[$twin_meta:meta])* $twin:ident; $($rest:tt)*) => {
        $(#[$meta])* $vis struct $name;
        $crate::contained! {
            $(#[$twin_meta])*
            #[doc = ::core::concat!("[`", ::core::stringify!($name), "`] in an arena.")]
            $vis struct $twin;
        }
        $crate::__twin! { [$name $twin] [] { [Self] [$twin] {} } }
        $crate::twin! { $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis enum $name:ident as $(#[$twin_meta:meta])* $twin:ident { $(
        $(#[$variant_meta:meta])* $variant:ident
        $(( $($(#[$part_meta:meta])* $part:ty),* $(,)? ))?
        $({ $($(#[$field_meta:meta])* $field:ident : $type:ty),* $(,)? })?
        $(= $number:expr)?
    ),* $(,)? } $($rest:tt)*) => {
        $(#[$meta])* $vis enum $name { $(
            $(#[$variant_meta])* $variant
            $(( $($(#[$part_meta])* $part),* ))?
            $({ $($(#[$field_meta])* $field: $type),* })?
            $(= $number)?
        ),* }
        $crate::contained! {
            $(#[$twin_meta])*
            #[doc = ::core::concat!("[`", ::core::stringify!($name), "`] in an arena.")]
            $vis enum $twin { $(
                #[doc = ::core::concat!("The twin of `", ::core::stringify!($variant), "`.")]
                $variant
                $(( $(<$part as $crate::arena::CopyIn>::Twin),* ))?
                $({ $(
                    #[doc = ::core::concat!("The twin of `", ::core::stringify!($field), "`.")]
                    $field: <$type as $crate::arena::CopyIn>::Twin
                ),* })?
                $(= $number)?
            ),* }
        }
        $crate::__twin! { [$name $twin] [] $(
            { [Self::$variant] [$twin::$variant] $(( $([$part])* ))? $({ $($field)* })? }
        )* }
        $crate::twin! { $($rest)* }
    };
}

/// Part of [`twin!`]: from `{ [path] [twin's path] (types) }`, `{ [path] [twin's path] { names } }` and `{ [path] [twin's path] }` to an implementation. Fields are bound as in
/// [`contained!`].
#[doc(hidden)]
#[macro_export]
macro_rules! __twin {
    ([$name:ident $twin:ident] [$({ [$($path:tt)*] [$($twin_path:tt)*] [$({ $key:tt $value:ident })*] })*]) => {
        impl $crate::arena::CopyIn for $name {
            type Twin = $twin;
            fn copy_in(&self, __cowbell_to: &mut $crate::arena::Copying) -> $crate::Result<$twin> {
                let _ = &__cowbell_to;
                match *self {
                    $($($path)* { $($key: ref $value),* } => $crate::Result::Ok($($twin_path)* {
                        $($key: $crate::arena::CopyIn::copy_in($value, __cowbell_to)?),*
                    }),)*
                }
            }
        }
    };

    ($type:tt [$($done:tt)*] { $path:tt $twin:tt } $($rest:tt)*) => {
        $crate::__twin! { $type [$($done)* { $path $twin [] }] $($rest)* }
    };
    ($type:tt $done:tt { $path:tt $twin:tt { $($field:ident)* } } $($rest:tt)*) => {
        $crate::__twin! { @named $type $done $path $twin [] [$($field)*] [$($rest)*] }
    };
    ($type:tt $done:tt { $path:tt $twin:tt ( $($part:tt)* ) } $($rest:tt)*) => {
        $crate::__twin! { @tuple $type $done $path $twin [] [$($part)*]
            [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31] [$($rest)*] }
    };

    (@named $type:tt [$($done:tt)*] $path:tt $twin:tt $bound:tt [] [$($rest:tt)*]) => {
        $crate::__twin! { $type [$($done)* { $path $twin $bound }] $($rest)* }
    };
    (@named $type:tt $done:tt $path:tt $twin:tt [$($bound:tt)*] [$f0:ident $f1:ident $f2:ident $f3:ident $f4:ident $f5:ident $f6:ident $f7:ident $($more:ident)*] $rest:tt) => {
        $crate::__twin! { @named $type $done $path $twin
            [$($bound)* { $f0 __cowbell_0 } { $f1 __cowbell_1 } { $f2 __cowbell_2 } { $f3 __cowbell_3 } { $f4 __cowbell_4 } { $f5 __cowbell_5 } { $f6 __cowbell_6 } { $f7 __cowbell_7 }]
            [$($more)*] $rest }
    };
    (@named $type:tt $done:tt $path:tt $twin:tt [$($bound:tt)*] [$field:ident $($more:ident)*] $rest:tt) => {
        $crate::__twin! { @named $type $done $path $twin [$($bound)* { $field __cowbell_field }] [$($more)*] $rest }
    };

    (@tuple $type:tt [$($done:tt)*] $path:tt $twin:tt $bound:tt [] $numbers:tt [$($rest:tt)*]) => {
        $crate::__twin! { $type [$($done)* { $path $twin $bound }] $($rest)* }
    };
    (@tuple $type:tt $done:tt $path:tt $twin:tt [$($bound:tt)*] [$part:tt $($more:tt)*] [$number:tt $($numbers:tt)*] $rest:tt) => {
        $crate::__twin! { @tuple $type $done $path $twin
            [$($bound)* { $number __cowbell_part }] [$($more)*] [$($numbers)*] $rest }
    };
    (@tuple $type:tt $done:tt $path:tt $twin:tt $bound:tt $parts:tt [] $rest:tt) => {
        ::core::compile_error!("twin! takes up to 32 fields without names; give them names");
    };
}
