# A workspace with a library and a program: built, and not built again. Where there is time with a build
# script, tested, changed, built again.
modules=$((5 * SIZE))
export HOME="$PWD" CARGO_HOME="$PWD/cargo-home" CARGO_NET_OFFLINE=true
mkdir -p library/src program/src
echo '[workspace]
members = ["library", "program"]' > Cargo.toml
echo '[package]
name = "library"
version = "0.1.0"
edition = "2021"' > library/Cargo.toml
if [ "$SIZE" = 1 ]; then
    echo 'pub const MADE: u32 = 40;' > library/src/lib.rs
else
    echo 'fn main() {
        let out = std::env::var("OUT_DIR").unwrap();
        std::fs::write(format!("{out}/made.rs"), "pub const MADE: u32 = 40;").unwrap();
    }' > library/build.rs
    echo 'include!(concat!(env!("OUT_DIR"), "/made.rs"));' > library/src/lib.rs
fi
for i in $(seq "$modules"); do
    echo "pub mod m$i;" >> library/src/lib.rs
    echo "pub fn value() -> u32 { $i }
#[test] fn is_right() { assert_eq!(value(), $i); }" > "library/src/m$i.rs"
done
echo '[package]
name = "program"
version = "0.1.0"
edition = "2021"
[dependencies]
library = { path = "../library" }' > program/Cargo.toml
echo 'fn main() { println!("{}", library::MADE + library::m2::value()); }' > program/src/main.rs
cargo build --quiet
[ "$(target/debug/program)" = 42 ]
before=$(stat -c %y target/debug/program)
cargo build --quiet
[ "$(stat -c %y target/debug/program)" = "$before" ]
if [ "$SIZE" != 1 ]; then
    cargo test --quiet > log 2>&1 || { cat log; exit 1; }
    # A change is seen.
    sleep 1
    echo 'pub fn value() -> u32 { 3 }' > library/src/m2.rs
    cargo build --quiet
    [ "$(target/debug/program)" = 43 ]
fi
cargo clean --quiet
