//! The agent's program: `/init` of a guest's initramfs.

fn main() {
    cabana_agent::init::run();
}
