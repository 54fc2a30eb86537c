#![no_main]

#[path = "../entries/gguf.rs"]
mod entry;
#[path = "../entries/network.rs"]
mod network;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = entry::run(bytes);
});
