#![no_main]

use cabana_egress::inspect::{Inspector, Progress};
use cabana_egress::{DomainName, Expect};
use libfuzzer_sys::fuzz_target;

fn inspector(flags: u8) -> Inspector {
    let expect = Expect { tls: flags & 1 != 0, http: flags & 2 != 0, other: flags & 4 != 0 };
    let name = DomainName::parse("a.example").expect("a name");
    Inspector::new(vec![(name, expect)], flags & 8 != 0)
}

fuzz_target!(|input: &[u8]| {
    let [flags, step, bytes @ ..] = input else { return };
    let (mut whole, mut pieces) = (inspector(*flags), inspector(*flags));
    let (mut out, mut slow) = (Vec::new(), Vec::new());
    let result = whole.push(bytes, &mut out);
    let mut last = Ok(Progress::Watching);
    for piece in bytes.chunks(usize::from(*step).max(1)) {
        last = pieces.push(piece, &mut slow);
        if last.is_err() {
            break;
        }
    }
    if !bytes.is_empty() {
        assert_eq!(result.is_ok(), last.is_ok());
    }
    if result.is_ok() {
        assert_eq!(out, slow);
        assert!(bytes.starts_with(&out));
        assert!(out.is_empty() || whole.host().is_some());
    }
});
