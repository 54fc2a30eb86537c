//! Times the ops on this machine: `cargo bench -p esker-kernels --bench ops -- [OP] [CASE] [--threads N]`.
//!
//! Prints JSON lines: the machine's measured peaks first, then a row for each case whose printed form contains CASE.

use esker_kernels::{bench, device::Stream, peak::Peaks, simd};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut words, mut threads) = (Vec::new(), 0);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--threads" => threads = args.next().ok_or("--threads takes a number")?.parse()?,
            _ => words.push(arg),
        }
    }
    let op = words.first().map(String::as_str);
    if let Some(name) = op.filter(|name| bench::OPS.iter().all(|entry| entry.name != *name)) {
        let names: Vec<_> = bench::OPS.iter().map(|entry| entry.name).collect();
        return Err(format!("no op is called {name:?}; there are {}", names.join(", ")).into());
    }
    let case = words.get(1).map_or("", String::as_str);

    let s = Stream::cpu(threads)?;
    let peaks = Peaks::measure(&s)?;
    let machine = serde_json::json!({ "simd": simd::level().name(), "threads": s.threads(), "peaks": peaks });
    println!("{machine}");
    bench::all(&s, op, case, &peaks, |row| println!("{}", serde_json::json!(row)))?;
    Ok(())
}
