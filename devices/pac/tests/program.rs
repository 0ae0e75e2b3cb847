//! The program itself, asked as its parent asks it.

mod common;

use cabana_pac::link::MAX_ANSWER;
use cabana_pac::{Failure, Interpreter};
use common::{Names, script, start};

/// What an expression is in a script.
fn value(interpreter: &mut Interpreter, expression: &str) -> String {
    interpreter.load(&script(&format!("return String({expression})")), &Names).unwrap();
    interpreter.find("https://www.a.example/", "www.a.example", &Names).unwrap()
}

#[test]
fn a_script_may_call_what_browsers_have() {
    let mut interpreter = start();
    for (expression, expected) in [
        ("url + ' ' + host", "https://www.a.example/ www.a.example"),
        ("isPlainHostName('www')", "true"),
        ("isPlainHostName(host)", "false"),
        ("dnsDomainIs(host, '.a.example')", "true"),
        ("dnsDomainIs('a.example', '.a.example')", "false"),
        ("localHostOrDomainIs('www', 'www.a.example')", "true"),
        ("localHostOrDomainIs('www.b.example', 'www.a.example')", "false"),
        ("dnsDomainLevels(host)", "2"),
        ("shExpMatch(url, '*://*.a.example/*')", "true"),
        ("shExpMatch('a.b', 'a?b')", "true"),
        ("shExpMatch('axb', 'a.b')", "false"),
        ("shExpMatch('a(b', 'a(b')", "true"),
        ("isInNet('10.1.2.3', '10.1.0.0', '255.255.0.0')", "true"),
        ("isInNet('10.2.2.3', '10.1.0.0', '255.255.0.0')", "false"),
        ("isInNet('203.0.113.9', '203.0.113.9', '255.255.255.255')", "true"),
        ("isInNetEx('2001:db8::1', '2001:db8::/32')", "true"),
        ("isInNetEx('10.1.2.3', '2001:db8::/32')", "false"),
        ("convert_addr('104.16.41.2')", "1745889538"),
        ("dnsResolve('127.0.0.1')", "127.0.0.1"),
        ("dnsResolve('no such name')", "null"),
        ("isResolvable('localhost')", "true"),
        ("isInNetEx('localhost', '127.0.0.0/8') || isInNetEx('localhost', '::1/128')", "true"),
        ("dnsResolveEx('two.example')", "203.0.113.7;2001:db8::7"),
        ("dnsResolve('two.example')", "203.0.113.7"),
        ("isResolvable('x'.repeat(1000))", "false"),
        ("myIpAddressEx()", "192.0.2.9"),
        ("isIPv4(myIpAddress())", "true"),
        ("typeof alert", "function"),
    ] {
        assert_eq!(value(&mut interpreter, expression), expected, "{expression}");
    }
}

#[test]
fn times_are_from_and_to() {
    let mut interpreter = start();
    // A script's clock stands still: Saturday, 28 November 2026, 22:30:15, wherever it is.
    let mut at = |expression: &str| {
        value(
            &mut interpreter,
            &format!(
                "(() => {{ const Real = Date; Date = class extends Real {{ constructor() {{ super(2026, 10, 28, 22, 30, 15) }} \
             getUTCDay() {{ return 0 }} getUTCHours() {{ return 3 }} }}; return {expression} }})()"
            ),
        )
    };
    for (expression, expected) in [
        ("weekdayRange('SAT')", true),
        ("weekdayRange('SAT', 'GMT')", false),
        ("weekdayRange('SUN', 'GMT')", true),
        ("weekdayRange('MON', 'FRI')", false),
        ("weekdayRange('FRI', 'MON')", true),
        ("weekdayRange('SUNDAY')", false),
        ("dateRange(28)", true),
        ("dateRange(1, 15)", false),
        ("dateRange('NOV')", true),
        ("dateRange('DEC', 'FEB')", false),
        ("dateRange('OCT', 'FEB')", true),
        ("dateRange(2026)", true),
        ("dateRange(2024, 2025)", false),
        ("dateRange(28, 'NOV')", true),
        ("dateRange(1, 'JUN', 15, 'AUG')", false),
        ("dateRange(1, 'JUN', 15, 'DEC')", true),
        ("dateRange('OCT', 2026, 'MAR', 2027)", true),
        ("dateRange(1, 'JUN', 2026, 27, 'NOV', 2026)", false),
        ("dateRange(28, 'NOV', 2026)", true),
        ("timeRange(22)", true),
        ("timeRange(22, 'GMT')", false),
        ("timeRange(3, 'GMT')", true),
        ("timeRange(9, 17)", false),
        ("timeRange(9, 22)", true),
        ("timeRange(22, 6)", true),
        ("timeRange(22, 31, 23, 0)", false),
        ("timeRange(22, 0, 22, 30)", true),
        ("timeRange(22, 30, 16, 23, 0, 0)", false),
        ("timeRange(0, 0, 0, 22, 30, 15)", true),
    ] {
        assert_eq!(at(expression), expected.to_string(), "{expression}");
    }
}

#[test]
fn a_script_ends_within_its_bounds_and_says_what_is_wrong() {
    let mut interpreter = start();
    let mut error = |body: &str| {
        interpreter.load(&script(body), &Names).unwrap();
        let error = interpreter.find("http://a/", "a", &Names).unwrap_err().to_string();
        // It can be asked again.
        assert!(interpreter.find("http://a/", "a", &Names).is_err(), "{body}");
        assert!(error.starts_with("the script failed: "), "{error}");
        error
    };
    assert!(error("for (;;);").contains("interrupted"));
    assert!(error("let all = []; for (;;) all.push('x'.repeat(1 << 20))").contains("memory"));
    assert!(error("return FindProxyForURL(url, host)").contains("stack"));
    assert!(error("throw new Error('no')").contains("no"));
    assert!(error("return missing").contains("missing"));
    assert!(error("throw 'two\\nlines'").ends_with("two\\nlines"));
    for wrong in ["function (", "var a = 1", "", "for (;;);"] {
        let wrong = interpreter.load(wrong, &Names);
        assert!(matches!(wrong, Err(Failure::Script(_))), "{wrong:?}");
    }
    // A long one comes whole, and an answer is not endless.
    let long = format!("//{}\n{}", "x".repeat(1_000_000), script("return 'x'.repeat(1e6)"));
    interpreter.load(&long, &Names).unwrap();
    assert_eq!(interpreter.find("http://a/", "a", &Names).unwrap().len(), MAX_ANSWER);
    assert!(interpreter.load(&"x".repeat((1 << 20) + 1), &Names).is_err());
}
