//! Builds an image into the user's store: `build-image FLAVOUR [--rebuild]`.

use std::io::Write as _;
use std::time::Instant;

use cabana_builder::{Flavour, Options, build_image};
use cabana_store::Store;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let flavour = Flavour::find(arguments.first().map_or("default", String::as_str))?;
    let rebuild = arguments.iter().any(|argument| argument == "--rebuild");
    let options = Options { rebuild, ..Options::default() };
    let start = Instant::now();
    let artifact = build_image(&Store::open()?, &flavour, &options, &mut |progress| {
        print!("\r\x1b[K{:6.1} s  {progress}", start.elapsed().as_secs_f32());
        let _ = std::io::stdout().flush();
    })?;
    println!("\r\x1b[K{:6.1} s  {}", start.elapsed().as_secs_f32(), artifact.dir.display());
    for (name, entry) in &artifact.manifest.files {
        println!("{}  {:>10}  {name}", entry.sha256, cabana_store::Bytes(entry.size).to_string());
    }
    Ok(())
}
