//! The example `hello` does what a newcomer is promised.

mod common;

use common::{Name, watchdog};
use std::process::{Command, Stdio};

#[test]
fn two_processes_talk_and_nothing_is_left() {
    let _watchdog = watchdog();
    let test = std::env::current_exe().expect("own path");
    let example = test.ancestors().nth(2).expect("a target directory").join("examples/hello");
    assert!(example.exists(), "there is no {example:?}; `cargo test` makes it, and so does `cargo build --examples`");
    let child = Command::new(example).stdout(Stdio::piped()).spawn().expect("the example");
    let (sender, name) = (child.id(), Name(format!("hello-{}", child.id())));
    let output = child.wait_with_output().expect("its output");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !name.exists());
    assert_eq!(text.lines().count(), 3, "{text}");
    for (second, line) in text.lines().enumerate() {
        assert!(line.starts_with("process ") && line.ends_with(&format!(" C at {second} s")), "{line}");
        assert!(!line.contains(&format!("process {sender} ")), "another process receives: {line}");
    }
}
