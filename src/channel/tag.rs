//! Type tags: what a channel says about the type it carries, besides its size and alignment.
//!
//! A tag is text for two readers, the machine that compares it and whoever reads the refusal: a type's name, and the fields of a type
//! that derives [`Layout`](macro@Layout). So what differs can be seen in both tags.
//!
//! Any `Pod` type can travel, so the type's own trait can't give its fields: each derive puts them on a list instead, by a constructor
//! that runs before `main`, or when a library is loaded (crate `inventory`). The list only grows, without a lock, so that a
//! fork at any moment leaves nothing held. It is read where a channel is attached, and nowhere else.
//!
//! # Which types are found
//! A type is found by its `TypeId`. The element of an array has none at hand: it is found by its full name, which two types may have
//! (in two blocks of a function, or in two versions of a crate); then the tag has the fields of both, and only a program with both
//! agrees. Anything else that is made of other types (`Wrapping<Sample>`) has its name, size and alignment.

use crate::directory::{self, Form, Kind};
use std::any::{TypeId, type_name};

/// Makes a channel compare the struct's fields: their names, types and offsets.
///
/// The two ends of a channel of such a struct agree only if all of these are the same. Without it, a channel compares
/// [the type's name](crate::ChannelOptions::type_tag), size and alignment, so two structs that have their fields in another order exchange
/// garbage.
///
/// ```
/// # let name = format!("doc-layout-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// mod one_program {
///     use bytemuck::{Pod, Zeroable};
///     use ipc_buffer::Layout;
///
///     #[repr(C)]
///     #[derive(Clone, Copy, Pod, Zeroable, Layout)]
///     pub struct Sample {
///         pub t_ns: u64,
///         pub value: f64,
///     }
/// }
/// mod another {
///     # use bytemuck::{Pod, Zeroable};
///     # use ipc_buffer::Layout;
///     #[repr(C)]
///     #[derive(Clone, Copy, Pod, Zeroable, Layout)]
///     pub struct Sample {
///         pub value: f64,
///         pub t_ns: u64,
///     }
/// }
/// let _tx = ctx.producer::<one_program::Sample>(1)?;
/// let refused = ctx.consumer::<another::Sample>(1).unwrap_err().to_string();
/// assert!(refused.contains("Sample{t_ns:u64@0,value:f64@8}"));
/// assert!(refused.contains("not Sample{value:f64@0,t_ns:u64@8}"));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
///
/// # What is compared
/// The struct's name and, in their order, each field's name, type and offset. A field of a type that derives `Layout`, too, or an array
/// of one, is compared in depth; any other by the name of its type, with size and alignment. Paths have no part in it: two programs may
/// define the struct each in a module of its own. A long layout is cut in listings and errors, and ends in a hash of all of it.
///
/// It counts for channels of the struct, of slices and of arrays of it, of records and of values. A
/// [`type_tag`](crate::ChannelOptions::type_tag) takes its place: for a new revision that is meant to talk to the old one, after a field
/// or the struct itself was renamed, and for programs in other languages.
///
/// Who derives it does not match who doesn't: the channel is refused, with both tags. Derive it on both sides.
///
/// # Which structs
/// Plain data (`bytemuck::Pod`) with `#[repr(C)]` or `#[repr(transparent)]`:
///
/// ```compile_fail
/// #[derive(Clone, Copy, ipc_buffer::Layout)]
/// struct Sample { t_ns: u64 } // "add #[repr(C)]"
/// ```
/// ```compile_fail,E0277
/// #[repr(C)]
/// #[derive(Clone, Copy, ipc_buffer::Layout)]
/// struct Sample { t_ns: u64 } // not `Pod`
/// ```
/// ```
/// #[repr(C)]
/// #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable, ipc_buffer::Layout)]
/// struct Sample { t_ns: u64 }
/// ```
/// No enums and unions, which `Pod` can't be derived for either, and nothing generic, since the derive does not hear of the instances.
/// Leave it out there: names and sizes are compared, and a `type_tag` tells layouts apart.
///
/// ```compile_fail
/// #[repr(transparent)]
/// #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable, ipc_buffer::Layout)]
/// struct Meters<T> { value: T }
/// ```
/// ```
/// #[repr(transparent)]
/// #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
/// struct Meters<T> { value: T }
/// ```
/// ```compile_fail
/// #[repr(C)]
/// #[derive(Clone, Copy, ipc_buffer::Layout)]
/// enum Side { Bid, Ask } // "Layout is for structs"
/// ```
/// ```compile_fail
/// #[repr(C)]
/// #[derive(Clone, Copy, ipc_buffer::Layout)]
/// union Either { left: u64, right: f64 } // "Layout is for structs"
/// ```
///
/// # Where it works
/// In programs and shared libraries, also those that are loaded later, whether linked statically or not. A Rust `staticlib` is another
/// program's to link: it has to take the archive as a whole (`--whole-archive`), or the linker may leave the fields out, and the
/// struct counts as one that doesn't derive `Layout`.
///
/// The library is expected at `::ipc_buffer`; if it has another name, say it: `#[layout(crate = "other::path")]`.
#[doc(inline)]
pub use ipc_buffer_derive::Layout;

/// A type, as a program knows its own.
#[derive(Debug, Clone, Copy)]
struct Type {
    id: fn() -> TypeId,
    name: fn() -> &'static str,
    size: usize,
    align: usize,
}

impl Type {
    const fn of<T: 'static>() -> Self {
        Self { id: TypeId::of::<T>, name: type_name::<T>, size: size_of::<T>(), align: align_of::<T>() }
    }
}

/// A field of a struct that derives `Layout`.
#[derive(Debug)]
pub struct Field {
    name: &'static str,
    offset: usize,
    of: Type,
}

impl Field {
    /// One of type `T` that starts at `offset`.
    #[doc(hidden)]
    pub const fn new<T: 'static>(name: &'static str, offset: usize) -> Self {
        Self { name, offset, of: Type::of::<T>() }
    }
}

/// A struct that derives `Layout`.
#[derive(Debug)]
pub struct Struct {
    of: Type,
    fields: &'static [Field],
}

impl Struct {
    /// `T`, with all its fields.
    #[doc(hidden)]
    pub const fn new<T: bytemuck::Pod>(fields: &'static [Field]) -> Self {
        Self { of: Type::of::<T>(), fields }
    }
}

inventory::collect!(Struct);

/// The tag of a type, of any length.
pub(crate) fn of<T: 'static>() -> String {
    describe(&Type::of::<T>(), &[])
}

/// `within` are the structs of which it is a part.
fn describe(of: &Type, within: &[TypeId]) -> String {
    if let Some(known) = derived().find(|it| (it.of.id)() == (of.id)()) {
        return layout(known, within);
    }
    let name = (of.name)();
    describe_array(name, of.size, within).unwrap_or_else(|| short_name(name))
}

/// `[Sample; 4]` with what is known of `Sample`; `None` if nothing is.
fn describe_array(name: &str, size: usize, within: &[TypeId]) -> Option<String> {
    let (element, count) = name.strip_prefix('[')?.strip_suffix(']')?.rsplit_once("; ")?;
    // Without elements it has no layout.
    let size = size.checked_div(count.parse().ok()?)?;
    // One of the same name that it is a part of is another type.
    let fits = |it: &&Struct| (it.of.name)() == element && it.of.size == size && !within.contains(&(it.of.id)());
    let mut known: Vec<_> = derived().filter(fits).map(|it| layout(it, within)).collect();
    known.sort_unstable();
    known.dedup();
    let element = if known.is_empty() { describe_array(element, size, within)? } else { known.join("|") };
    Some(format!("[{element}; {count}]"))
}

/// `Sample{t_ns:u64@0,value:f64@8}`.
fn layout(of: &Struct, within: &[TypeId]) -> String {
    let within = [within, &[(of.of.id)()]].concat();
    let field = |Field { name, offset, of }: &Field| format!("{name}:{}@{offset}", describe_field(of, &within));
    let fields: Vec<_> = of.fields.iter().map(field).collect();
    format!("{}{{{}}}", short_name((of.of.name)()), fields.join(","))
}

/// As [`describe`]; what only the name is known of has its size and alignment, too.
fn describe_field(of: &Type, within: &[TypeId]) -> String {
    let (text, name) = (describe(of, within), (of.name)());
    let plain = short_name(name);
    // A name without a path is the language's own, and says it all.
    if text == plain && name != plain { format!("{text}({},{})", of.size, of.align) } else { text }
}

fn derived() -> impl Iterator<Item = &'static Struct> {
    inventory::iter::<Struct>.into_iter()
}

/// At most `limit` bytes that stand for `tag`: a longer one keeps its beginning, and a hash stands for all of it.
pub(crate) fn shorten(tag: String, limit: usize) -> String {
    if tag.len() <= limit {
        return tag;
    }
    let hash = format!("#{:016x}", fnv(tag.as_bytes()));
    let mut short = tag;
    while short.len() + hash.len() > limit {
        short.pop();
    }
    short + &hash
}

/// FNV-1a: fixed for ever, unlike the standard library's hashers.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// A type's name without the paths: `my_crate::geo::Grid<other::Cell>` is `Grid<Cell>`. A path may lead through functions
/// (`main::{{closure}}::Sample`), methods (`<Worker as Job>::run::Sample`) and generic types (`Gen<_>::new::Sample`).
fn short_name(full: &str) -> String {
    let mut short = String::new();
    // Where the path at hand starts, and those around it.
    let (mut start, mut around) = (0, Vec::new());
    let mut before = ' ';
    for c in full.chars() {
        short.push(c);
        match c {
            ':' => short.truncate(start),
            '<' | '(' | '[' => {
                around.push(start);
                start = short.len();
            }
            '>' if before == '-' => {}
            '>' | ')' | ']' => start = around.pop().unwrap_or(0),
            ' ' | ',' | ';' | '&' | '*' | '\'' => start = short.len(),
            _ => {}
        }
        before = c;
    }
    short
}

/// What a channel of `T`s in this form says it carries.
pub(crate) fn kind<T: 'static>(tag: Option<&str>, form: Form) -> Kind {
    let tag = tag.map_or_else(of::<T>, str::to_owned);
    let align = u32::try_from(align_of::<T>()).unwrap_or(u32::MAX);
    Kind { size: size_of::<T>() as u64, align, form, tag: shorten(tag, directory::TAG_BYTES) }
}

#[cfg(test)]
mod tests {
    use super::{short_name, shorten};

    #[test]
    fn long_tags_stay_apart() {
        assert_eq!(shorten("a".repeat(128), 128), "a".repeat(128));
        let (one, two) = (shorten("a".repeat(129), 128), shorten("a".repeat(130), 128));
        assert!(one.len() == 128 && two.len() == 128 && one != two && one.starts_with("aaa"));
    }

    #[test]
    fn names_lose_their_paths() {
        assert_eq!(short_name("f64"), "f64");
        assert_eq!(short_name("a::b::Sample"), "Sample");
        assert_eq!(short_name("a::Grid<b::c::Cell, [d::E; 4]>"), "Grid<Cell, [E; 4]>");
        assert_eq!(short_name("(a::B, &'static c::D)"), "(B, &'static D)");
        assert_eq!(short_name("fn(a::B, [c::D; 2]) -> e::F<g::H>"), "fn(B, [D; 2]) -> F<H>");
        assert_eq!(short_name("*const a::B"), "*const B");
    }

    #[test]
    fn types_inside_functions_are_named_alike() {
        for path in [
            "a::main::{{closure}}::",
            "a::f::{{closure}}::{{closure}}::",
            "<a::Worker as a::Job>::run::",
            "<a::Gen<_> as a::Job<b::C>>::run::",
            "a::Gen<_>::inherent::",
            "a::r#match::",
            "<impl a::Job for [b::C; 3]>::run::",
        ] {
            assert_eq!(short_name(&format!("{path}Sample")), "Sample", "{path}");
            assert_eq!(short_name(&format!("b::Grid<{path}Sample, u8>")), "Grid<Sample, u8>", "{path}");
        }
    }
}
