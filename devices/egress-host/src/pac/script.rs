//! The script's interpreter, `QuickJS`, with a limit to the memory that a script has, and to its time.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use cabana_egress::DomainName;
use rquickjs::context::EvalOptions;
use rquickjs::{CatchResultExt, CaughtError, Coerced, Context, Ctx, Function, Runtime};

use crate::resolver::{HostResolver, Resolver, own_address_towards};

/// Whether this program runs scripts.
pub(crate) const AVAILABLE: bool = true;
/// What every script may call.
const FUNCTIONS: &str = include_str!("functions.js");
/// Bytes that a script has.
const MEMORY: usize = 32 << 20;
/// Bytes of its stack.
const STACK: usize = 256 << 10;
/// How long it may compute.
const TIME: Duration = Duration::from_secs(2);

/// A script that is ready to be asked.
pub(super) struct Script {
    context: Context,
    runtime: Runtime,
    /// When it has to be done.
    until: Rc<Cell<Instant>>,
}

impl Script {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let none = |error| format!("no interpreter for the script: {error}");
        let runtime = Runtime::new().map_err(none)?;
        runtime.set_memory_limit(MEMORY);
        runtime.set_max_stack_size(STACK);
        let until = Rc::new(Cell::new(Instant::now() + TIME));
        let limit = Rc::clone(&until);
        runtime.set_interrupt_handler(Some(Box::new(move || Instant::now() > limit.get())));
        let context = Context::full(&runtime).map_err(none)?;
        let script = Self { context, runtime, until };
        script.with(|ctx| {
            let globals = ctx.globals();
            globals.set("dnsResolveEx", Function::new(ctx.clone(), resolve))?;
            globals.set("myIpAddressEx", Function::new(ctx.clone(), own_addresses))?;
            let within = |address: String, prefix: String| is_within(&address, &prefix);
            globals.set("isWithin", Function::new(ctx.clone(), within))?;
            for text in [FUNCTIONS, text] {
                let mut options = EvalOptions::default();
                // As in browsers: scripts of that age assign to what they have not declared.
                options.strict = false;
                ctx.eval_with_options::<(), _>(text, options)?;
            }
            globals.get::<_, Function<'_>>("FindProxyForURL").map(drop)
        })?;
        Ok(script)
    }

    /// What the script says to a URL.
    pub(super) fn find(&self, url: &str, host: &str) -> Result<String, String> {
        self.with(|ctx| {
            let find: Function<'_> = ctx.globals().get("FindProxyForURL")?;
            let said: Option<String> = find.call((url, host))?;
            Ok(said.unwrap_or_default())
        })
    }

    fn with<R>(&self, work: impl FnOnce(&Ctx<'_>) -> rquickjs::Result<R>) -> Result<R, String> {
        self.until.set(Instant::now() + TIME);
        let done = self.context.with(|ctx| {
            work(&ctx).catch(&ctx).map_err(|error| {
                let why = match error {
                    CaughtError::Exception(error) => error.message().unwrap_or_default(),
                    CaughtError::Value(thrown) => {
                        thrown.get::<Coerced<String>>().map(|text| text.0).unwrap_or_default()
                    }
                    CaughtError::Error(error) => error.to_string(),
                };
                format!("the script failed: {}", why.escape_debug())
            })
        });
        if Instant::now() > self.until.get() {
            self.runtime.run_gc();
        }
        done
    }
}

/// Every address of a name, apart by semicolons; nothing if there is none.
fn resolve(host: String) -> String {
    if host.parse::<IpAddr>().is_ok() {
        return host;
    }
    let found = DomainName::parse(&host).and_then(|name| HostResolver.resolve(&name).ok());
    let words: Vec<_> = found.iter().flatten().map(IpAddr::to_string).collect();
    words.join(";")
}

/// The addresses by which this host speaks to the world.
fn own_addresses() -> String {
    let far: [IpAddr; 2] =
        [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    let own = far.into_iter().filter_map(own_address_towards);
    own.map(|address| address.to_string()).collect::<Vec<_>>().join(";")
}

/// Whether an address lies in a network such as `2001:db8::/32`.
fn is_within(address: &str, prefix: &str) -> bool {
    let parsed = address.parse::<IpAddr>().ok().zip(prefix.parse::<ipnet::IpNet>().ok());
    parsed.is_some_and(|(address, network)| network.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an expression is in a script.
    fn value(expression: &str) -> String {
        let script = Script::new(&format!(
            "function FindProxyForURL(url, host) {{ return String({expression}) }}"
        ));
        script.and_then(|script| script.find("https://www.a.example/", "www.a.example")).unwrap()
    }

    #[test]
    fn a_script_may_call_what_browsers_have() {
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
            ("isIPv4(myIpAddress())", "true"),
            ("typeof alert", "function"),
        ] {
            assert_eq!(value(expression), expected, "{expression}");
        }
    }

    #[test]
    fn times_are_from_and_to() {
        // A script's clock stands still: Saturday, 28 November 2026, 22:30:15, wherever it is.
        let at = |expression: &str| {
            value(&format!(
                "(() => {{ const Real = Date; Date = class extends Real {{ constructor() {{ super(2026, 10, 28, 22, 30, 15) }} \
                 getUTCDay() {{ return 0 }} getUTCHours() {{ return 3 }} }}; return {expression} }})()"
            ))
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
        let error = |body: &str| {
            let script =
                Script::new(&format!("function FindProxyForURL(url, host) {{ {body} }}")).unwrap();
            let error = script.find("http://a/", "a").unwrap_err();
            // It can be asked again.
            assert!(script.find("http://a/", "a").is_err(), "{body}");
            error
        };
        assert!(error("for (;;);").contains("interrupted"));
        assert!(error("let all = []; for (;;) all.push('x'.repeat(1 << 20))").contains("memory"));
        assert!(error("return FindProxyForURL(url, host)").contains("stack"));
        assert!(error("throw new Error('no')").contains("no"));
        assert!(error("return missing").contains("missing"));
        assert!(Script::new("function (").is_err() && Script::new("var a = 1").is_err());
    }
}
