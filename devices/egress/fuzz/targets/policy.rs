#![no_main]

use cabana_egress::EgressPolicy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(policy) = EgressPolicy::parse(text) {
        let again = serde_json::to_string(&policy).expect("a policy is plain data");
        assert_eq!(EgressPolicy::parse(&again), Ok(policy));
    }
});
