//! What Node's loader wants of a library.

fn main() {
    napi_build::setup();
}
