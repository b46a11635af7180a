//! Builds snmalloc from the source that `snmalloc-sys` ships, with NDEBUG.
//!
//! `snmalloc-sys` can build it without cmake (`build_cc`), but then forgets NDEBUG outside Windows: every internal assertion is
//! on, and the strongest rival runs at half its speed. The flags here are those of snmalloc's own cmake release build.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let root = source_of("snmalloc-sys").join("upstream/src");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .opt_level(3)
        .include(&root)
        .file(root.join("snmalloc/override/rust.cc"))
        .define("NDEBUG", None)
        .define("SNMALLOC_USE_WAIT_ON_ADDRESS", "1")
        .define("SNMALLOC_HAS_LINUX_FUTEX_H", None)
        .define("SNMALLOC_HAS_LINUX_RANDOM_H", None)
        .define("SNMALLOC_PLATFORM_HAS_GETENTROPY", None)
        .flag_if_supported("-mcx16")
        .flag_if_supported("-mprfchw")
        .flag("-fno-exceptions")
        .flag("-fno-rtti")
        .flag("-fomit-frame-pointer")
        .flag("-ftls-model=initial-exec")
        .warnings(false)
        .compile("snmalloc_release");
    println!("cargo:rustc-link-lib=atomic");
    println!("cargo:rerun-if-changed=build.rs");
}

/// Where cargo keeps the source of the dependency `name`.
fn source_of(name: &str) -> PathBuf {
    let output = Command::new(std::env::var_os("CARGO").expect("run by cargo"))
        // What this target does not need may not be there.
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform"])
        .arg(std::env::var_os("TARGET").expect("set by cargo"))
        .output()
        .expect("run cargo metadata");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    // Of all manifest paths the one in the folder `name-version`: no need for a JSON parser.
    let manifest = text
        .split("\"manifest_path\":\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .find(|path| path.rsplit('/').nth(1).is_some_and(|folder| folder.starts_with(name)));
    let error = String::from_utf8_lossy(&output.stderr);
    let manifest = manifest.unwrap_or_else(|| panic!("cargo metadata does not name {name}: {error}"));
    PathBuf::from(manifest).parent().expect("a folder").to_path_buf()
}
