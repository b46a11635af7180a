//! Layouts: channels of structs that derive `Layout` agree on fields; those of others on names and sizes.

mod common;

use bytemuck::Pod;
use common::{Name, all_free, role, start, watchdog};
use ipc_buffer::{AttachError, Buffer, ChannelOptions, ThreadContext};

/// Structs in a module of their own, as if in a program of their own, with one attribute more.
macro_rules! program {
    { $program:ident, $more:meta, $($struct:item)* } => {
        mod $program {
            // What the derive writes is no unsafe code of who derives.
            #![forbid(unsafe_code)]
            #![allow(dead_code, unreachable_pub)]
            $(
                #[repr(C)]
                #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
                #[$more]
                $struct
            )*
        }
    };
}

macro_rules! derived {
    { $program:ident $($struct:item)* } => { program! { $program, derive(ipc_buffer::Layout), $($struct)* } };
}

macro_rules! plain {
    { $program:ident $($struct:item)* } => { program! { $program, allow(dead_code), $($struct)* } };
}

derived! { here pub struct Sample { t_ns: u64, value: f64 } }
derived! { there pub struct Sample { t_ns: u64, value: f64 } }
derived! { swapped pub struct Sample { value: f64, t_ns: u64 } }
derived! { renamed pub struct Sample { t_us: u64, value: f64 } }
derived! { retyped pub struct Sample { t_ns: i64, value: f64 } }
derived! { divided pub struct Sample { t_ns: u64, value: f32, unit: u32 } }
derived! { reading pub struct Reading { t_ns: u64, value: f64 } }
plain! { plain pub struct Sample { t_ns: u64, value: f64 } }
plain! { plain_swapped pub struct Sample { value: f64, t_ns: u64 } }

const HERE: &str = "Sample{t_ns:u64@0,value:f64@8} (16 bytes, align 8)";
const SWAPPED: &str = "Sample{value:f64@0,t_ns:u64@8} (16 bytes, align 8)";
const PLAIN: &str = "Sample (16 bytes, align 8)";

fn assert_refused<E>(result: Result<E, AttachError>, theirs: &str, ours: &str) {
    let Err(error) = result else { panic!("{ours} attached to a channel of {theirs}") };
    assert_eq!(error, AttachError::TypeMismatch { id: 1, ours: ours.into(), theirs: theirs.into() });
    let text = error.to_string();
    assert!(text.contains(theirs) && text.contains(ours) && text.contains("derive Layout"), "{text}");
}

fn is_mismatch<E>(result: &Result<E, AttachError>) -> bool {
    matches!(result, Err(AttachError::TypeMismatch { .. }))
}

/// What a channel of `T` is listed with.
fn listed<T: Pod>(ctx: &ThreadContext, buffer: &Buffer) -> String {
    let _tx = ctx.producer::<T>(77).expect("an id of its own");
    buffer.channels().expect("a list").into_iter().find(|channel| channel.id == 77).expect("it is there").carries
}

#[test]
fn fields_must_agree() {
    let name = Name::new("layouts");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let tx = ctx.producer::<here::Sample>(1).unwrap();
    drop(ctx.consumer::<here::Sample>(1).unwrap());
    drop(ctx.consumer::<there::Sample>(1).unwrap());
    assert_refused(ctx.consumer::<swapped::Sample>(1), HERE, SWAPPED);
    assert_refused(ctx.consumer::<renamed::Sample>(1), HERE, "Sample{t_us:u64@0,value:f64@8} (16 bytes, align 8)");
    assert_refused(ctx.consumer::<retyped::Sample>(1), HERE, "Sample{t_ns:i64@0,value:f64@8} (16 bytes, align 8)");
    let divided = "Sample{t_ns:u64@0,value:f32@8,unit:u32@12} (16 bytes, align 8)";
    assert_refused(ctx.consumer::<divided::Sample>(1), HERE, divided);
    let reading = "Reading{t_ns:u64@0,value:f64@8} (16 bytes, align 8)";
    assert_refused(ctx.consumer::<reading::Reading>(1), HERE, reading);
    // No refusal has cost anything.
    drop((ctx.consumer::<there::Sample>(1).unwrap(), tx, ctx));
    all_free(&buffer);
}

#[test]
fn who_derives_does_not_match_who_does_not() {
    let name = Name::new("layouts-one-side");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let tx = ctx.producer::<here::Sample>(1).unwrap();
    assert_refused(ctx.consumer::<plain::Sample>(1), HERE, PLAIN);
    drop(tx);
    let _tx = ctx.producer::<plain::Sample>(1).unwrap();
    assert_refused(ctx.consumer::<here::Sample>(1), PLAIN, HERE);
    // The plain way: names and sizes only.
    assert!(ctx.consumer::<plain_swapped::Sample>(1).is_ok());
}

#[test]
fn fields_must_agree_in_every_form() {
    let name = Name::new("layouts-forms");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let tx = ctx.value_producer::<here::Sample>(1).unwrap();
    assert!(is_mismatch(&ctx.value_consumer::<swapped::Sample>(1)));
    assert!(ctx.value_consumer::<there::Sample>(1).is_ok());
    drop(tx);
    let tx = ctx.producer::<[here::Sample]>(1).unwrap();
    assert!(is_mismatch(&ctx.consumer::<[swapped::Sample]>(1)));
    assert!(ctx.consumer::<[there::Sample]>(1).is_ok());
    drop(tx);
    let tx = ctx.value_producer::<[here::Sample; 3]>(1).unwrap();
    assert!(is_mismatch(&ctx.value_consumer::<[swapped::Sample; 3]>(1)));
    assert!(ctx.value_consumer::<[there::Sample; 3]>(1).is_ok());
    drop(tx);
    let _tx = ctx.producer::<[[here::Sample; 3]; 2]>(1).unwrap();
    let here = "[[Sample{t_ns:u64@0,value:f64@8}; 3]; 2] (96 bytes, align 8)";
    let plain = "[[Sample; 3]; 2] (96 bytes, align 8)";
    assert_refused(ctx.consumer::<[[plain::Sample; 3]; 2]>(1), here, plain);
    assert!(is_mismatch(&ctx.consumer::<[[swapped::Sample; 3]; 2]>(1)));
    assert!(is_mismatch(&ctx.consumer::<[[there::Sample; 2]; 3]>(1)));
    assert!(ctx.consumer::<[[there::Sample; 3]; 2]>(1).is_ok());
}

#[test]
fn a_tag_takes_the_place_of_the_fields() {
    let name = Name::new("layouts-tags");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let tagged = ChannelOptions::new().type_tag("sample/2");
    let _tx = ctx.producer_with::<here::Sample>(1, &tagged).unwrap();
    assert_refused(ctx.consumer::<here::Sample>(1), "sample/2 (16 bytes, align 8)", HERE);
    drop(ctx.consumer_with::<plain::Sample>(1, &tagged).unwrap());
    drop(ctx.consumer_with::<reading::Reading>(1, &tagged).unwrap());
    // Who can't derive can say the fields, in whatever language.
    let _tx = ctx.producer::<here::Sample>(2).unwrap();
    let said = ChannelOptions::new().type_tag("Sample{t_ns:u64@0,value:f64@8}");
    assert!(ctx.consumer_with::<plain::Sample>(2, &said).is_ok());
}

/// Attaches as `T`, in a process that was started for it.
fn play<T: Pod>(buffer: &str) -> Result<[u64; 2], AttachError> {
    let ctx = Buffer::options().must_exist(true).open(buffer).expect("open").context().expect("a context");
    let mut rx = ctx.consumer::<T>(1)?;
    Ok(bytemuck::cast(*rx.recv().expect("a record")))
}

#[test]
fn processes_must_agree() {
    let _watchdog = watchdog();
    if let Some((role, buffer)) = role() {
        return match role.as_str() {
            "swapped" => assert_refused(play::<swapped::Sample>(&buffer), HERE, SWAPPED),
            "plain" => assert_refused(play::<plain::Sample>(&buffer), HERE, PLAIN),
            _ => assert_eq!(play::<there::Sample>(&buffer).unwrap(), [7, 8]),
        };
    }
    let name = Name::new("layouts-processes");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer::<here::Sample>(1).unwrap();
    tx.send(ctx.record(bytemuck::cast([7_u64, 8])).unwrap()).unwrap();
    for role in ["swapped", "plain", "there"] {
        start("processes_must_agree", role, &name).success();
    }
    drop((tx, ctx));
    all_free(&buffer);
}

type TwoPoints = [road::Point; 2];
derived! {
    road
    pub struct Point { x: f32, y: f32 }
    pub struct Stop { at: Point, until_ns: u64 }
    pub struct Bends { at: super::TwoPoints }
    pub struct Grid { cells: [[Stop; 1]; 2] }
}
derived! {
    same_road
    pub struct Point { x: f32, y: f32 }
    pub struct Stop { at: Point, until_ns: u64 }
    pub struct Bends { at: [Point; 2] }
    pub struct Grid { cells: [[Stop; 1]; 2] }
}
derived! {
    mirrored_road
    pub struct Point { y: f32, x: f32 }
    pub struct Stop { at: Point, until_ns: u64 }
    pub struct Bends { at: [Point; 2] }
    pub struct Grid { cells: [[Stop; 1]; 2] }
}
mod plain_road {
    plain! {
        points
        pub struct Point { x: f32, y: f32 }
        pub struct Stop { until_ns: u64, at: Point }
    }
    derived! {
        structs
        pub struct Stop { at: super::points::Point, until_ns: u64 }
        pub struct Bends { at: [super::points::Point; 2] }
        pub struct Grid { cells: [[super::points::Stop; 1]; 2] }
    }
    pub(super) use structs::*;
}

#[test]
fn structs_in_structs_are_compared_in_depth() {
    let name = Name::new("layouts-depth");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    macro_rules! check {
        ($name:ident, $full:literal, $plain:literal) => {
            assert_eq!(listed::<road::$name>(&ctx, &buffer), $full);
            assert_eq!(listed::<plain_road::$name>(&ctx, &buffer), $plain);
            let tx = ctx.producer::<road::$name>(1).unwrap();
            assert_refused(ctx.consumer::<plain_road::$name>(1), $full, $plain);
            assert!(is_mismatch(&ctx.consumer::<mirrored_road::$name>(1)), "{}", $full);
            assert!(ctx.consumer::<same_road::$name>(1).is_ok(), "{}", $full);
            drop(tx);
        };
    }
    check!(
        Stop,
        "Stop{at:Point{x:f32@0,y:f32@4}@0,until_ns:u64@8} (16 bytes, align 8)",
        "Stop{at:Point(8,4)@0,until_ns:u64@8} (16 bytes, align 8)"
    );
    check!(
        Bends,
        "Bends{at:[Point{x:f32@0,y:f32@4}; 2]@0} (16 bytes, align 4)",
        "Bends{at:[Point; 2](16,4)@0} (16 bytes, align 4)"
    );
    check!(
        Grid,
        "Grid{cells:[[Stop{at:Point{x:f32@0,y:f32@4}@0,until_ns:u64@8}; 1]; 2]@0} (32 bytes, align 8)",
        "Grid{cells:[[Stop; 1]; 2](32,8)@0} (32 bytes, align 8)"
    );
}

derived! {
    long
    pub struct Book { bids: [f64; 10], asks: [f64; 10], bid_sizes: [u32; 10], ask_sizes: [u32; 10], exchange_time_ns: u64, local_time_ns: u64 }
}
derived! {
    same_long
    pub struct Book { bids: [f64; 10], asks: [f64; 10], bid_sizes: [u32; 10], ask_sizes: [u32; 10], exchange_time_ns: u64, local_time_ns: u64 }
}
derived! {
    other_end
    pub struct Book { bids: [f64; 10], asks: [f64; 10], bid_sizes: [u32; 10], ask_sizes: [u32; 10], local_time_ns: u64, exchange_time_ns: u64 }
}

#[test]
fn all_of_a_long_layout_counts() {
    let name = Name::new("layouts-long");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (tag, other) = (listed::<long::Book>(&ctx, &buffer), listed::<other_end::Book>(&ctx, &buffer));
    let beginning = "Book{bids:[f64; 10]@0,asks:[f64; 10]@80,bid_sizes:[u32; 10]@160,ask_sizes:[u32; 10]@200,exchang";
    let (left, hash) = tag.split_once('#').expect("a hash for the rest");
    assert!(left.starts_with(beginning) && hash.len() == 16 + " (256 bytes, align 8)".len(), "{tag}");
    let _tx = ctx.producer::<long::Book>(1).unwrap();
    assert_refused(ctx.consumer::<other_end::Book>(1), &tag, &other);
    assert!(ctx.consumer::<same_long::Book>(1).is_ok());
}

mod shapes {
    #![forbid(unsafe_code)]
    #![allow(dead_code)]
    use bytemuck::{Pod, Zeroable};
    use ipc_buffer::Layout;
    use std::marker::PhantomData;
    use std::num::Wrapping;

    #[repr(transparent)]
    #[derive(Clone, Copy, Pod, Zeroable, Layout)]
    pub(super) struct Meters(pub f64);

    #[repr(C, packed(2))]
    #[derive(Clone, Copy, Pod, Zeroable, Layout)]
    pub(super) struct Packed(u16, u64, Meters);

    #[repr(C)]
    #[repr(align(32))]
    #[derive(Clone, Copy, Pod, Zeroable, Layout)]
    pub(super) struct Aligned {
        r#type: [u64; 4],
    }

    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable, Layout)]
    pub(super) struct Signal;

    /// Its own name in its fields.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable, Layout)]
    pub(super) struct Handle {
        number: u32,
        of: PhantomData<Handle>,
    }

    #[repr(transparent)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    pub(super) struct Generic<T>(T);

    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable, Layout)]
    pub(super) struct Made {
        of: Generic<Meters>,
        count: Wrapping<u64>,
    }

    pub(super) mod elsewhere {
        pub(in super::super) use ipc_buffer as renamed;

        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable, renamed::Layout)]
        #[layout(crate = "crate::shapes::elsewhere::renamed")]
        pub(in super::super) struct Elsewhere {
            pub(in super::super) it: u8,
        }
    }
}

#[test]
fn structs_of_any_shape_have_layouts() {
    let name = Name::new("layouts-shapes");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    assert_eq!(listed::<shapes::Meters>(&ctx, &buffer), "Meters{0:f64@0} (8 bytes, align 8)");
    let packed = "Packed{0:u16@0,1:u64@2,2:Meters{0:f64@0}@10} (18 bytes, align 2)";
    assert_eq!(listed::<shapes::Packed>(&ctx, &buffer), packed);
    assert_eq!(listed::<shapes::Aligned>(&ctx, &buffer), "Aligned{type:[u64; 4]@0} (32 bytes, align 32)");
    assert_eq!(listed::<shapes::Signal>(&ctx, &buffer), "Signal{} (0 bytes, align 1)");
    let handle = "Handle{number:u32@0,of:PhantomData<Handle>(0,1)@4} (4 bytes, align 4)";
    assert_eq!(listed::<shapes::Handle>(&ctx, &buffer), handle);
    let made = "Made{of:Generic<Meters>(8,8)@0,count:Wrapping<u64>(8,8)@8} (16 bytes, align 8)";
    assert_eq!(listed::<shapes::Made>(&ctx, &buffer), made);
    assert_eq!(listed::<shapes::elsewhere::Elsewhere>(&ctx, &buffer), "Elsewhere{it:u8@0} (1 bytes, align 1)");
}

/// A struct in a block of a function has the path of the function.
#[test]
fn structs_of_one_path_are_told_apart() {
    let name = Name::new("layouts-blocks");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let both = "[Sample{a:u32@0,b:u32@4}|Sample{b:u32@0,a:u32@4}; 2] (16 bytes, align 4)";
    {
        derived! { block pub struct Sample { a: u32, b: u32 } }
        use block::Sample;
        assert_eq!(listed::<Sample>(&ctx, &buffer), "Sample{a:u32@0,b:u32@4} (8 bytes, align 4)");
        assert_eq!(listed::<[Sample; 2]>(&ctx, &buffer), both);
    }
    {
        derived! { block pub struct Sample { b: u32, a: u32 } }
        use block::Sample;
        assert_eq!(listed::<Sample>(&ctx, &buffer), "Sample{b:u32@0,a:u32@4} (8 bytes, align 4)");
        assert_eq!(listed::<[Sample; 2]>(&ctx, &buffer), both);
    }
    {
        // The size tells this one apart.
        derived! { block pub struct Sample { a: u32 } }
        use block::Sample;
        assert_eq!(listed::<[Sample; 2]>(&ctx, &buffer), "[Sample{a:u32@0}; 2] (8 bytes, align 4)");
    }
}

#[test]
fn a_struct_of_the_same_path_can_be_inside() {
    let name = Name::new("layouts-inside");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable, ipc_buffer::Layout)]
    struct Sample(u64);
    type Inner = Sample;
    {
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable, ipc_buffer::Layout)]
        struct Sample([Inner; 1]);
        let (inner, outer) = ("Sample{0:u64@0}", "Sample{0:[Sample{0:u64@0}; 1]@0}");
        assert_eq!(listed::<Inner>(&ctx, &buffer), format!("{inner} (8 bytes, align 8)"));
        assert_eq!(listed::<Sample>(&ctx, &buffer), format!("{outer} (8 bytes, align 8)"));
        // The path leads to both.
        assert_eq!(listed::<[Sample; 3]>(&ctx, &buffer), format!("[{outer}|{inner}; 3] (24 bytes, align 8)"));
    }
}
