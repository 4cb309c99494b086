#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tcpstate_fuzz::file::run(data));
