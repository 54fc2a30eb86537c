#![no_main]

#[path = "../entries/request.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = entry::run(bytes);
});
